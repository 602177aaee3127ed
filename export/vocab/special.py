"""Special token ids, and whether BOS and EOS are added to a prompt.

They become `tokenizer.ggml.*_token_id` and `add_*_token`, which llama_vocab::impl::load in llama.cpp's
src/llama-vocab.cpp reads.

Sources in order, as transformers has them: the settings' `bos_token` and so on; the first token of the
post-processor (BOS only); `bos_token_id` and so on of config.json; of generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafold.errors import InputError
from lorafold.export.vocab.files import TokenizerFiles, content_of

# Token kinds in the order in which llama.cpp's converter writes them.
SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "mask")

# A copy of llama.cpp's own list (src/llama-vocab.cpp, special_eog_ids): it stops at these texts without any
# metadata. A token that is added here would lose its entry in the header, and llama.cpp would not stop at it.
_END_OF_GENERATION = """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s>
    <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>
    <｜end▁of▁sentence｜> [e~[
"""
END_OF_GENERATION = frozenset(_END_OF_GENERATION.split())


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Special tokens of one model.

    Attributes:
        ids: kind ("bos", "eos", "eot", …) → token id.
        add_bos: the tokenizer puts BOS before a prompt.
        add_eos: the tokenizer puts EOS after it.
        notes: what llama.cpp cannot be told, as sentences for the report.
    """

    ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    notes: tuple[str, ...] = ()


def find_special_tokens(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    id_of: Mapping[str, int],
    texts: list[str],
    *,
    end_of_turn: str | None = None,
    add_bos_without_word: bool = False,
) -> SpecialTokens:
    """Find the special tokens.

    Args:
        files: the tokenizer's files.
        config: config.json.
        id_of: token text → id, added tokens included.
        texts: token texts by id.
        end_of_turn: the text that ends an assistant's turn in the chat template, if known.
        add_bos_without_word: whether BOS is added when no file says a word about it (SentencePiece).

    Returns:
        The special tokens; every id is below `len(texts)`.

    Raises:
        InputError: there is no EOS, or an id is out of range.
    """
    ids: dict[str, int] = {}
    notes: list[str] = []
    leading, trailing = _post_processor_tokens(files.tokenizer or {})
    for kind in SPECIAL_KINDS:
        text = content_of(files.settings.get(f"{kind}_token"))
        found = id_of.get(text) if text is not None else None
        if found is None and kind == "bos" and leading:
            found = id_of.get(leading[0])
        candidates = [found, *_config_ids(config, kind), *_ids(files.generation.get(f"{kind}_token_id"))]
        chosen = next((candidate for candidate in candidates if candidate is not None), None)
        if chosen is None:
            continue
        if chosen >= len(texts):
            raise InputError(
                f"{kind}_token_id is {chosen}, but there are {len(texts)} tokens",
                at=files.folder / "config.json",
                fix="correct the id, or choose the tokenizer that belongs to this model",
            )
        ids[kind] = chosen
    if "eos" not in ids:
        raise InputError(
            "there is no end-of-sequence token: no file names an eos_token that is in the vocabulary "
            "(llama.cpp would take token 11 or 2 for it)",
            at=files.folder / "tokenizer_config.json",
            fix='add "eos_token", with the token that ends an answer',
        )
    add_bos, add_eos = _added_around(files, leading, trailing, ids, texts, add_bos_without_word)
    if add_bos and len(leading) > 1:
        notes.append(f"the tokenizer puts {' '.join(leading)} before a prompt; llama.cpp adds only the first")
    # Without this line llama.cpp takes token 11 (byte-level) or 1 (SentencePiece) for BOS.
    ids.setdefault("bos", ids["eos"])
    ids.update(_further_ends(files, config, ids, id_of, texts, end_of_turn, notes))
    ordered = {kind: ids[kind] for kind in ("bos", "eos", "eot", "eom", *SPECIAL_KINDS[2:]) if kind in ids}
    return SpecialTokens(ordered, add_bos, add_eos, tuple(notes))


def _config_ids(config: Mapping[str, Any], kind: str) -> list[int]:
    """Ids of one kind in config.json, also below "text_config"; EOS may be a list."""
    inner = config.get("text_config")
    own = _ids(config.get(f"{kind}_token_id"))
    return own or (_ids(inner.get(f"{kind}_token_id")) if isinstance(inner, Mapping) else [])


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]


def _post_processor_tokens(tokenizer: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The special tokens that the post-processor puts before and after one text."""
    processor = tokenizer.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if part.get("type") != "TemplateProcessing":
            continue
        pieces = part.get("single") or []
        at = next((index for index, piece in enumerate(pieces) if "Sequence" in piece), len(pieces))
        texts = [piece.get("SpecialToken", {}).get("id") for piece in pieces]
        return [text for text in texts[:at] if text], [text for text in texts[at + 1 :] if text]
    return [], []


def _added_around(
    files: TokenizerFiles,
    leading: list[str],
    trailing: list[str],
    ids: Mapping[str, int],
    texts: list[str],
    without_word: bool,
) -> tuple[bool, bool]:
    """Whether BOS and EOS are added: the settings' word for each, else what the post-processor does.

    So do transformers 4 for most tokenizers, and llama.cpp's converter; transformers 5 looks at the
    post-processor alone if there is a tokenizer.json.
    """
    bos, eos = (files.settings.get(f"add_{kind}_token") for kind in ("bos", "eos"))
    if not isinstance(bos, bool):
        first = leading[0] if leading else None
        bos = without_word if files.tokenizer is None else "bos" in ids and texts[ids["bos"]] == first
    if not isinstance(eos, bool):
        eos = bool(trailing) and texts[ids["eos"]] == trailing[-1]
    return bos and "bos" in ids, eos


def _further_ends(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    ids: Mapping[str, int],
    id_of: Mapping[str, int],
    texts: list[str],
    end_of_turn: str | None,
    notes: list[str],
) -> dict[str, int]:
    """Ends of generation that llama.cpp does not know by their text; there is room for two."""
    wanted: list[int] = []
    if end_of_turn is not None and (found := id_of.get(end_of_turn)) is not None:
        wanted.append(found)
    wanted += _config_ids(config, "eos") + _ids(files.generation.get("eos_token_id"))
    further = [
        token_id
        for token_id in dict.fromkeys(wanted)
        if token_id < len(texts) and token_id != ids["eos"] and texts[token_id] not in END_OF_GENERATION
    ]
    for token_id in further[2:]:
        notes.append(
            f"generation should also stop at {texts[token_id]!r}; a GGUF has no place for a third such token"
        )
    return dict(zip(("eot", "eom"), further, strict=False))
