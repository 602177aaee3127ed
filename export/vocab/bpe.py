"""Byte-level BPE vocabularies (GPT-2's kind): `tokenizer.ggml.model` = "gpt2".

They come from a tokenizer.json whose pre-tokenizer ends in ByteLevel. The checks here are those that
llama.cpp omits: it would load a wrong vocabulary without a word and give other ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import add
from pathlib import Path
from typing import Any

from lorafold.errors import InputError
from lorafold.export.vocab.cuts import pieces
from lorafold.export.vocab.parts import library_tokenizer

_MOST_TOKENS = 1 << 24  # far above any vocabulary, far below what would exhaust the memory


@dataclass(frozen=True, slots=True)
class Merges:
    """Merges, best first: `left[i]` and `right[i]` become `made[i]`."""

    left: list[str]
    right: list[str]
    made: list[str]

    def lines(self) -> list[str]:
        """The merges as a GGUF holds them."""
        return [f"{left} {right}" for left, right in zip(self.left, self.right, strict=True)]


def require_bpe(model: Mapping[str, Any], at: Path) -> None:
    """Refuse models of another type (Unigram, WordPiece, WordLevel)."""
    if model.get("type", "BPE") != "BPE":
        raise InputError(
            f"the tokenizer is of type {model['type']}; only BPE is exported",
            at=at,
            fix="choose --format folder",
        )


def read_ordinary_tokens(model: Mapping[str, Any], at: Path) -> dict[str, int]:
    """The "vocab" of a BPE model, checked.

    Args:
        model: the "model" object of tokenizer.json.
        at: the file, for messages.

    Returns:
        Text → id.

    Raises:
        InputError: the vocabulary or the kind of BPE cannot be put into a GGUF.
    """
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(
            '"model.vocab" is not an object with tokens', at=at, fix="download the tokenizer again"
        )
    if (
        set(map(type, vocab.values())) != {int}
        or min(vocab.values()) < 0
        or max(vocab.values()) >= _MOST_TOKENS
    ):
        text, bad = next(
            (text, bad) for text, bad in vocab.items() if type(bad) is not int or not 0 <= bad < _MOST_TOKENS
        )
        raise InputError(
            f"token {text!r} has the id {bad!r}; expected a number from 0 to {_MOST_TOKENS - 1}",
            at=at,
            fix="download the tokenizer again",
        )
    if len(set(vocab.values())) < len(vocab):
        of_id: dict[int, str] = {}
        second = next(text for text, number in vocab.items() if of_id.setdefault(number, text) != text)
        raise InputError(
            f"tokens {of_id[vocab[second]]!r} and {second!r} have the same id {vocab[second]}",
            at=at,
            fix="download the tokenizer again",
        )
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise InputError(
                f"model.{key} is {model[key]!r}; llama.cpp's BPE has no such affix",
                at=at,
                fix="choose --format folder",
            )
    return vocab


def read_merges(model: Mapping[str, Any], vocab: Mapping[str, int], at: Path) -> Merges:
    """The merges, best first.

    Args:
        model: the "model" object of tokenizer.json.
        vocab: the ordinary tokens.
        at: the file, for messages.

    Returns:
        The merges; both parts and what they make are tokens.

    Raises:
        InputError: a merge is malformed, or names a token that is not in the vocabulary.
    """
    entries = model.get("merges")
    if not isinstance(entries, list):
        raise InputError('"model.merges" is not a list', at=at, fix="download the tokenizer again")
    # "a b" up to tokenizers 0.19, ["a", "b"] since 0.20 (so that parts may hold spaces). Half a million of
    # them are common: everything is done in bulk here, and one by one only to name the wrong one.
    if {str} >= set(map(type, entries)):
        entries = [entry.split(" ") for entry in entries]
    if not {list} >= set(map(type, entries)) or not {2} >= set(map(len, entries)):
        raise _malformed(entries, at)
    left, right = [entry[0] for entry in entries], [entry[1] for entry in entries]
    if not {str} >= set(map(type, left)) | set(map(type, right)):
        raise _malformed(entries, at)
    merges = Merges(left, right, list(map(add, left, right)))
    for texts in (left, right, merges.made):
        if not all(map(vocab.__contains__, texts)):
            index, missing = next((index, text) for index, text in enumerate(texts) if text not in vocab)
            raise InputError(
                f"merge {index}, {left[index]!r} with {right[index]!r}, needs the token {missing!r}, "
                "which does not exist",
                at=at,
                fix="download the tokenizer again; vocabulary and merges do not belong together",
            )
    return merges


def _malformed(entries: list[Any], at: Path) -> InputError:
    index, merge = next(
        (index, merge)
        for index, merge in enumerate(entries)
        if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(part, str) for part in merge)
    )
    return InputError(
        f"merge {index} is {merge!r}; expected two tokens", at=at, fix="download the tokenizer again"
    )


def words_reached_only_whole(tokenizer: Mapping[str, Any], merges: Merges) -> list[str]:
    """Tokens that merges alone do not build although the pre-tokenizer leaves them in one piece.

    Such tokens are found only where a whole word is looked up first (`ignore_merges`). If there are none,
    looking up or not makes no difference.

    Args:
        tokenizer: the parsed tokenizer.json.
        merges: its merges.

    Returns:
        The tokens' texts in the byte alphabet.
    """
    from tokenizers.models import BPE

    model = tokenizer["model"]
    bpe = BPE(vocab=model["vocab"], merges=list(zip(merges.left, merges.right, strict=True)))
    unreached = [text for text in model["vocab"] if len(bpe.tokenize(text)) != 1]
    if not unreached:
        return []
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    whole = library_tokenizer(pre_tokenizer=tokenizer.get("pre_tokenizer"), decoder=decoder)
    return [text for text in unreached if pieces(whole.pre_tokenizer, whole.decoder.decode([text])) == [text]]
