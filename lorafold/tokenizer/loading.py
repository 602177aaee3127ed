"""The tokenizers library, given what it can read: at some damage it panics instead of raising an error."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.errors import InputError
from lorafold.tokenizer.charsmap import check_charsmap

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_TOKENS = 1 << 24  # the largest vocabularies have 300,000


def load_tokenizer(path: Path, text: str | None = None, data: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Args:
        path: the file.
        text: its content, if that was changed or has been read already.
        data: the same as JSON, if it has been parsed already.

    Raises:
        InputError: it is damaged.
    """
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8") if text is None else text
        read = json.loads(text) if data is None else data
        model = read.get("model")
        if isinstance(model, dict) and isinstance(vocab := model.get("vocab"), dict):
            check_merges(
                vocab, _pairs(model.get("merges")), path, model.get("continuing_subword_prefix") or ""
            )
        for charsmap in _charsmaps(read.get("normalizer")):
            check_charsmap(charsmap, path)
        tokenizer: Tokenizer = Tokenizer.from_str(text)
    except InputError:
        raise
    except Exception as error:  # the library raises Exception itself
        problem = f"not a tokenizer: {' '.join(str(error).split())}"
        raise InputError(problem, at=path, fix="download it again") from error
    return tokenizer


def check_ids(vocab: Mapping[str, int], at: Path) -> None:
    """See that tokens are numbered as tokens are: the library makes room for each number up to the last.

    Raises:
        InputError: a number is beyond any vocabulary.
    """
    if (last := max(vocab.values(), default=0)) >= _MOST_TOKENS:
        problem = f"a token has the number {last:,}, and no vocabulary has {_MOST_TOKENS:,} tokens"
        raise InputError(problem, at=at, fix="download the tokenizer's files again")


def _charsmaps(normalizer: Any) -> Iterator[bytes]:
    """The tables of characters in a normalizer; what is none the library refuses itself."""
    if isinstance(normalizer, dict):
        for part in normalizer.get("normalizers") or ():
            yield from _charsmaps(part)
        if isinstance(text := normalizer.get("precompiled_charsmap"), str):
            with contextlib.suppress(ValueError):
                yield base64.b64decode(text)


def check_merges(vocab: Collection[str], merges: Sequence[Sequence[str]], at: Path, prefix: str = "") -> None:
    """See that each merge makes a token: the library does not return from one that does not.

    Args:
        vocab: the tokens.
        merges: pairs of tokens.
        at: the file, for the message.
        prefix: of tokens that continue a word, which a merge takes off.

    Raises:
        InputError: a merge makes no token.
    """
    if not prefix and all(left + right in vocab for left, right in merges):
        return  # hot: a vocabulary has 300,000 merges
    for left, right in merges:
        if left + right[len(prefix) :] not in vocab or not right.startswith(prefix):
            raise InputError(
                f"the merge of {left!r} and {right!r} makes no token of the vocabulary",
                at=at,
                fix="download the tokenizer's files again",
            )


def _pairs(merges: Any) -> list[list[str]]:
    """The merges, in either spelling; what is none the library refuses itself."""
    if not isinstance(merges, list):
        return []
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    two = {list} >= set(map(type, pairs)) and {2} >= set(map(len, pairs))
    if two and {str} >= set(map(type, itertools.chain.from_iterable(pairs))):
        return pairs
    return [
        pair
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
    ]
