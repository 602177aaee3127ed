"""vocab.json and merges.txt -> tokenizer.json, for bases that were released like this (Qwen2, GPT-2).

The result is what transformers makes of the two files. What they leave open (normalizer, pre-tokenizer,
special tokens) is the tokenizer's class, named in tokenizer_config.json; the facts are those of transformers'
classes of that name. The tokens are added by the tokenizers library itself, so that their ids are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat.sources import CLASS_TOKENS, TOKEN_NAMES
from lorafold.errors import InputError
from lorafold.files.jsonfile import read_object
from lorafold.files.signatures import another_file, head_of
from lorafold.tokenizer.loading import check_ids, check_merges

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

VOCAB, MERGES = "vocab.json", "merges.txt"

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _Class:
    """What one of transformers' tokenizer classes adds to vocab.json and merges.txt.

    Args:
        words: the expression that cuts words; None: ByteLevel's own, GPT-2's.
        nfc: whether texts are brought into Unicode's form NFC.
        defaults: special tokens if the settings do not name them.
    """

    words: str | None
    nfc: bool
    defaults: Mapping[str, str]


CLASSES = {
    "Qwen2Tokenizer": _Class(QWEN2_WORDS, True, CLASS_TOKENS["Qwen2Tokenizer"]),
    "GPT2Tokenizer": _Class(None, False, CLASS_TOKENS["GPT2Tokenizer"]),
}
# Where the folder names no class, as in a base that was copied without tokenizer_config.json.
BY_MODEL_TYPE = {
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
}


def has_merges(folder: Path) -> bool:
    """Whether the folder holds the two files, of a class that is known."""
    if not all((folder / name).is_file() for name in (VOCAB, MERGES)):
        return False
    return _class(folder, _settings(folder)) is not None


def from_merges(folder: Path) -> str:
    """The text of the tokenizer.json of a folder for which `has_merges` holds.

    Raises:
        InputError: the two files are damaged, or contradict the list of added tokens.
    """
    settings = _settings(folder)
    kind = _class(folder, settings)
    assert kind is not None
    text: str = _build(folder, settings, kind).to_str()
    return text


def _class(folder: Path, settings: Mapping[str, Any]) -> _Class | None:
    """What the settings name, else what transformers takes for the model's type."""
    name = settings.get("tokenizer_class")
    if name is None and (folder / "config.json").is_file():
        name = BY_MODEL_TYPE.get(str(read_object(folder / "config.json").get("model_type")))
    return CLASSES.get(str(name).removesuffix("Fast"))


def _build(folder: Path, settings: Mapping[str, Any], kind: _Class) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    try:
        vocab, merges = BPE.read_file(str(folder / VOCAB), str(folder / MERGES))
        check_ids(vocab, folder / VOCAB)
        check_merges(vocab, merges, folder / MERGES)
        tokenizer = Tokenizer(BPE(vocab, merges))
    except Exception as error:  # the library raises Exception itself
        for path in (folder / VOCAB, folder / MERGES):
            if (wrong := another_file(path, head_of(path))) is not None:
                raise wrong from error
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{VOCAB} and {MERGES} make no tokenizer: {' '.join(str(error).split())}",
            at=folder,
            fix="download both again",
        ) from error
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    prefix = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if kind.words is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(kind.words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(folder, tokenizer, settings, kind)
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_object(folder / name)
    return found


def _add_tokens(folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any], kind: _Class) -> None:
    """The added tokens with their flags, in the order of their ids, then the special ones."""
    decoder = settings.get("added_tokens_decoder") or {}
    if odd := [number for number in decoder if not number.isdecimal()]:
        problem = f"added_tokens_decoder: {odd[0]!r} is no number of a token"
        raise InputError(problem, at=folder / "tokenizer_config.json", fix="download the file again")
    listed = {int(number): entry for number, entry in decoder.items()}
    if not listed and (folder / "added_tokens.json").is_file():
        listed = {number: text for text, number in read_object(folder / "added_tokens.json").items()}
    named = [settings.get(name, kind.defaults.get(name)) for name in TOKEN_NAMES]
    more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    named += more.values() if isinstance(more, Mapping) else more
    special = {_text(entry) for entry in named if entry}
    for number in sorted(listed):
        token = _added(listed[number], special)
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise InputError(
                f"the added token {token.content!r} would get the id {tokenizer.token_to_id(token.content)}, "
                f"expected {number}",
                at=folder,
                fix="download the tokenizer's files again",
            )
    known = {_text(entry) for entry in listed.values()}
    for entry in named:
        if entry and _text(entry) not in known:
            tokenizer.add_special_tokens([_added(entry, special)])


def _text(entry: Any) -> str:
    return str(entry["content"] if isinstance(entry, Mapping) else entry)


def _added(entry: Any, special: set[str]) -> AddedToken:
    from tokenizers import AddedToken

    flags = entry if isinstance(entry, Mapping) else {}
    text = _text(entry)
    return AddedToken(
        text,
        single_word=bool(flags.get("single_word")),
        lstrip=bool(flags.get("lstrip")),
        rstrip=bool(flags.get("rstrip")),
        normalized=bool(flags.get("normalized", False)),
        special=bool(flags.get("special", text in special)),
    )
