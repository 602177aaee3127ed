"""What a GGUF file says about its tokenizer and its prompt, without loading the model.

In: a GGUF. Out: special tokens by transformers' names, control tokens, chat template, context length, BOS
setting. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (`tokenizer.ggml.*`,
`tokenizer.chat_template`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import InputError

CONTROL = 3  # token type, llama_token_type in llama.h
_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # the format's own spelling
    "pad_token": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True, slots=True)
class GgufTokens:
    """The prompt's side of a GGUF.

    Args:
        tokens: special tokens by name ("bos_token").
        controls: all tokens of type CONTROL.
        chat_template: the Jinja text, or None.
        context_length: tokens the model was made for, or None.
        add_bos: `tokenizer.ggml.add_bos_token`, or None where absent.
        eot: the text of `tokenizer.ggml.eot_token_id`, or None.
    """

    tokens: Mapping[str, str]
    controls: frozenset[str]
    chat_template: str | None
    context_length: int | None
    add_bos: bool | None
    eot: str | None


def read_gguf_tokens(path: Path) -> GgufTokens:
    """Read the tokenizer's metadata of a GGUF.

    Args:
        path: the file.

    Returns:
        What it says.

    Raises:
        InputError: the file is missing, or not a readable GGUF.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise InputError("no such file", at=path, fix="check the path")
    try:
        reader = GGUFReader(path)
        fields = reader.fields

        def value(key: str) -> Any:
            return fields[key].contents() if key in fields else None

        vocabulary = value("tokenizer.ggml.tokens") or []
        types = value("tokenizer.ggml.token_type") or []
        architecture = value("general.architecture")
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, OSError) as error:
        raise InputError(
            f"not a readable GGUF: {error}", at=path, fix="export or download it again"
        ) from error

    def token(key: str) -> str | None:
        index = value(key)
        return vocabulary[index] if isinstance(index, int) and 0 <= index < len(vocabulary) else None

    tokens = {name: text for name, key in _IDS.items() if (text := token(key)) is not None}
    return GgufTokens(
        tokens=tokens,
        controls=frozenset(text for text, kind in zip(vocabulary, types, strict=False) if kind == CONTROL),
        chat_template=value("tokenizer.chat_template"),
        context_length=value(f"{architecture}.context_length"),
        add_bos=value("tokenizer.ggml.add_bos_token"),
        eot=token("tokenizer.ggml.eot_token_id"),
    )
