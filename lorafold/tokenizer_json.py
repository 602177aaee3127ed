"""A tokenizer.json for folders that have none: vocab.json and merges.txt, as Qwen2 and GPT-2 were released.

In: a model folder. Out: the same folder, or a temporary one with its small files and the tokenizer.json that
transformers makes of the two. What they leave open (normalizer, pre-tokenizer, special tokens) is the
tokenizer's class, named in tokenizer_config.json; the facts are those of transformers' classes of that name.
The tokens are added by the tokenizers library itself, so that their ids are its own.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.errors import InputError
from lorafold.jsonfile import read_object

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

VOCAB, MERGES, JSON = "vocab.json", "merges.txt", "tokenizer.json"

# What a tokenizer reads beside its vocabulary, and what a prompt asks of a model's folder.
SMALL_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "chat_template.*",
)
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
        defaults: special tokens where the settings do not name them.
    """

    words: str | None
    nfc: bool
    defaults: Mapping[str, str]


_END = "<|endoftext|>"
CLASSES = {
    "Qwen2Tokenizer": _Class(QWEN2_WORDS, True, {"unk_token": _END, "eos_token": _END, "pad_token": _END}),
    "GPT2Tokenizer": _Class(None, False, {"unk_token": _END, "bos_token": _END, "eos_token": _END}),
}
SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@functools.cache
def with_tokenizer_json(folder: Path) -> Path:
    """The folder itself, or where it has only vocab.json and merges.txt one that also has a tokenizer.json.

    Args:
        folder: a model folder.

    Returns:
        A folder with a tokenizer.json, or the one that was given: it has one, or another kind of tokenizer,
        or one of a class that is not known. A temporary one lives as long as the process.

    Raises:
        InputError: the two files are damaged, or contradict the list of added tokens.
    """
    complete = any((folder / name).exists() for name in (JSON, "tokenizer.model"))
    if complete or not all((folder / name).is_file() for name in (VOCAB, MERGES)):
        return folder
    settings = _settings(folder)
    kind = CLASSES.get(str(settings.get("tokenizer_class")).removesuffix("Fast"))
    if kind is None:
        return folder
    tokenizer = _build(folder, settings, kind)
    made = Path(tempfile.mkdtemp(dir=_home().name))
    for pattern in SMALL_FILES:
        for path in folder.glob(pattern):
            shutil.copyfile(path, made / path.name)
    tokenizer.save(str(made / JSON))
    return made


@functools.cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lorafold-tokenizer-")


def _build(folder: Path, settings: Mapping[str, Any], kind: _Class) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    try:
        vocab, merges = BPE.read_file(str(folder / VOCAB), str(folder / MERGES))
        tokenizer = Tokenizer(BPE(vocab, merges))
    except Exception as error:  # the library raises Exception itself
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
    listed = {int(number): entry for number, entry in (settings.get("added_tokens_decoder") or {}).items()}
    if not listed and (folder / "added_tokens.json").is_file():
        listed = {number: text for text, number in read_object(folder / "added_tokens.json").items()}
    named = [settings.get(name, kind.defaults.get(name)) for name in SPECIALS]
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
