"""What a GGUF file says about its tokenizer and its prompt, without loading the model.

That is: special tokens by transformers' names, control tokens, chat template, context length, BOS setting.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (`tokenizer.ggml.*`,
`tokenizer.chat_template`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorafold.gguf_file.header import STRING, GgufArray, GgufHeader
from lorafold.gguf_file.read import read_gguf_header

CONTROL = 3  # token type, llama_token_type in llama.h
_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # the format's own spelling
    "pad_token": "tokenizer.ggml.padding_token_id",
}

# Where the file does not say, llama.cpp adds BOS for these tokenizer models and pre-tokenizers
# (llama-vocab.cpp).
_BOS_MODELS = frozenset(("llama", "bert"))
_BOS_PRE = frozenset(
    (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        *("jina-v5-nano", "tekken", "chameleon"),
    )
)


@dataclass(frozen=True, slots=True)
class GgufTokens:
    """The prompt's side of a GGUF.

    Attributes:
        tokens: special tokens by name ("bos_token").
        controls: all tokens of type CONTROL.
        chat_template: the Jinja text, or None.
        tool_use: the one for conversations with tools, or None.
        context_length: tokens the model was made for, or None.
        add_bos: whether llama.cpp puts BOS before a prompt: `tokenizer.ggml.add_bos_token`, or its default.
        eot: the text of `tokenizer.ggml.eot_token_id`, or None.
    """

    tokens: Mapping[str, str]
    controls: frozenset[str]
    chat_template: str | None
    context_length: int | None
    add_bos: bool
    eot: str | None
    tool_use: str | None = None


def read_gguf_tokens(source: Path | GgufHeader) -> GgufTokens:
    """Read the tokenizer's metadata of a GGUF.

    Args:
        source: the file, or its header if the caller has read it already.

    Returns:
        What it says.

    Raises:
        InputError: the file is missing, or not a readable GGUF.
    """
    header = source if isinstance(source, GgufHeader) else read_gguf_header(source)
    names, kinds = (
        header.metadata.get("tokenizer.ggml.tokens"),
        header.metadata.get("tokenizer.ggml.token_type"),
    )
    vocabulary = (
        [raw.decode("utf-8", errors="replace") for raw in names.strings()]
        if isinstance(names, GgufArray) and names.type == STRING
        else []
    )
    types = kinds.values() if isinstance(kinds, GgufArray) and kinds.type != STRING else ()

    def token(key: str) -> str | None:
        index = header.number(key)
        return vocabulary[index] if index is not None and 0 <= index < len(vocabulary) else None

    tokens = {name: text for name, key in _IDS.items() if (text := token(key)) is not None}
    add_bos = header.metadata.get("tokenizer.ggml.add_bos_token")
    model, pre = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    # llama.cpp adds BOS for Gemma 4's tokenizer, whatever the file says.
    says = add_bos if isinstance(add_bos, bool) else model in _BOS_MODELS or pre in _BOS_PRE
    return GgufTokens(
        tokens=tokens,
        controls=frozenset(text for text, kind in zip(vocabulary, types, strict=False) if kind == CONTROL),
        chat_template=header.text("tokenizer.chat_template"),
        tool_use=header.text("tokenizer.chat_template.tool_use"),
        context_length=header.number(f"{header.architecture}.context_length"),
        add_bos=says or model == "gemma4",
        eot=token("tokenizer.ggml.eot_token_id"),
    )
