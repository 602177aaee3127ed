"""Unigram vocabularies (SentencePiece's other kind: T5, XLM-R, llm-jp): `tokenizer.ggml.model` = "t5".

Of all ways to cut a text the one whose pieces' scores have the highest sum is taken
(llm_tokenizer_ugm_session in llama.cpp's src/llama-vocab.cpp). The pieces come from a tokenizer.json of type
Unigram, or from a tokenizer.model. Before, characters are mapped by SentencePiece's own table, which a GGUF
holds as it is.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from lorafold.errors import InputError
from lorafold.export.vocab.differences import (
    Difference,
    doubled_prefix,
    literal_space_mark,
    prefix_everywhere,
    prefix_nowhere,
)
from lorafold.export.vocab.files import AddedToken, TokenizerFiles
from lorafold.export.vocab.model_file import UNIGRAM, Pieces, peek_model_file, read_model_file
from lorafold.export.vocab.parts import BYTE_TOKEN, foreign, leaves, metaspace
from lorafold.export.vocab.spm import Spaces
from lorafold.tokenizer.charsmap import check_charsmap
from lorafold.tokenizer.pieces import SPACE

_FIX = "choose --format folder"


@dataclass(frozen=True, slots=True)
class Unigram:
    """A Unigram vocabulary.

    Attributes:
        pieces: texts, scores and types.
        spaces: what is done about spaces.
        charsmap: SentencePiece's table of characters, or empty.
        unknown: id of the token for what no piece covers.
        by_library: the `tokenizers` library cuts texts, not SentencePiece.
        joined: pieces that span words, which the tokenizer never uses since it cuts words apart first.
    """

    pieces: Pieces
    spaces: Spaces
    charsmap: bytes
    unknown: int
    by_library: bool
    joined: frozenset[str] = frozenset()


def read_unigram(files: TokenizerFiles) -> Unigram | None:
    """Read the Unigram vocabulary of a folder; None if it holds another kind.

    Raises:
        InputError: llama.cpp would cut texts otherwise; a text is named.
    """
    if files.tokenizer is not None:
        if files.tokenizer["model"].get("type") != "Unigram":
            return None
        found = _from_json(files.tokenizer, files.origin)
    else:
        assert files.model_file is not None
        if peek_model_file(files.model_file).model_type != UNIGRAM:
            return None
        pieces, spec = read_model_file(files.model_file)
        spaces = Spaces(
            each=spec.add_dummy_prefix, collapses=spec.remove_extra_whitespaces, maps=bool(spec.charsmap)
        )
        unknown = np.flatnonzero(pieces.types == TokenType.UNKNOWN)
        if not unknown.size:
            raise InputError(
                "no piece is the unknown one; llama.cpp needs a token for what no piece covers",
                at=files.origin,
                fix=_FIX,
            )
        found = Unigram(pieces, spaces, spec.charsmap, int(unknown[0]), by_library=False)
    _check_charsmap(found.charsmap, files.origin)
    _require_same(found, files.origin)
    return found


def _from_json(tokenizer: Mapping[str, Any], at: Path) -> Unigram:
    model = tokenizer["model"]
    vocab, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocab, list) or not all(
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], int | float)
        for entry in vocab
    ):
        raise InputError(
            '"model.vocab" is not a list of texts with scores', at=at, fix="download the tokenizer again"
        )
    if not isinstance(unknown, int) or not 0 <= unknown < len(vocab):
        raise InputError(
            f"model.unk_id is {unknown!r}; llama.cpp needs a token for what no piece covers", at=at, fix=_FIX
        )
    texts = [entry[0] for entry in vocab]
    types = np.full(len(texts), TokenType.NORMAL, np.int32)
    if model.get("byte_fallback"):
        types[[bool(BYTE_TOKEN.fullmatch(text)) for text in texts]] = TokenType.BYTE
    types[unknown] = TokenType.UNKNOWN
    scores = np.asarray([entry[1] for entry in vocab], np.float32)
    spaces, charsmap, apart = _rules(tokenizer, at)
    joined = frozenset(text for text in texts if SPACE in text[1:]) if apart else frozenset()
    return Unigram(Pieces(texts, scores, types), spaces, charsmap, unknown, True, joined)


def _rules(tokenizer: Mapping[str, Any], at: Path) -> tuple[Spaces, bytes, bool]:
    """What is done about spaces, the table of characters, and whether words are cut apart first.

    Raises:
        InputError: the normalizer or the pre-tokenizer does what llama.cpp does not do.
    """
    each = first = unless_there = collapses = escapes = apart = False
    charsmap = b""
    for part in leaves(tokenizer.get("normalizer"), "normalizers"):
        match part:
            case {"type": "Precompiled", "precompiled_charsmap": str(text)} if not charsmap:
                charsmap = _decoded(text, at)
            case {"type": "Prepend", "prepend": "\u2581"}:
                each = True
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "\u2581"}:
                collapses = True
            case {"type": "Strip"}:
                pass  # what it takes, collapsing drops as well; without it, it is refused below
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                escapes = True
            case _:
                raise foreign(part, "normalizer", "Unigram", at)
    for part in leaves(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        match part:
            case {"type": "WhitespaceSplit"} if charsmap:
                collapses = True
            case {"type": "Metaspace", "replacement": "\u2581"}:
                escapes = True
                each, first, unless_there = metaspace(part)
                apart = bool(part.get("split", True))
            case _:
                raise foreign(part, "pre_tokenizer", "Unigram", at)
    strips = any(part.get("type") == "Strip" for part in leaves(tokenizer.get("normalizer"), "normalizers"))
    if not escapes or (strips and not collapses):
        raise InputError(
            "spaces are not written as U+2581, or are dropped at the ends alone", at=at, fix=_FIX
        )
    if collapses:
        unless_there = False
    return Spaces(each, first, unless_there, collapses, bool(charsmap)), charsmap, apart


def _decoded(text: str, at: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InputError(
            "precompiled_charsmap is not base64", at=f"{at}: normalizer", fix="download the tokenizer again"
        ) from None


def _require_same(found: Unigram, at: Path) -> None:
    """Refuse what would differ in nearly every text."""
    if found.spaces.collapses and not found.spaces.each:
        raise InputError(
            "the tokenizer makes one space of several but puts none before each piece of text; llama.cpp "
            'does both or neither, so that "a" gets other tokens',
            at=at,
            fix=_FIX,
        )
    has_bytes = bool((found.pieces.types == TokenType.BYTE).any())
    if has_bytes and set(_mapped("\n", found.charsmap)) - _characters(found.pieces):
        raise InputError(
            r"the tokenizer spells '\n' in bytes; llama.cpp's Unigram knows no bytes and makes <unk> of it",
            at=at,
            fix=_FIX,
        )


def _mapped(text: str, charsmap: bytes) -> str:
    if not charsmap:
        return text
    from tokenizers import normalizers

    mapped: str = normalizers.Precompiled(charsmap).normalize_str(text)
    return mapped


def _check_charsmap(charsmap: bytes, at: Path) -> None:
    check_charsmap(charsmap, at)
    try:
        _mapped("a", charsmap)
    except Exception as error:  # the tokenizers library raises Exception itself
        problem = f"its table of characters cannot be read ({error})"
        raise InputError(problem, at=at, fix="download the tokenizer again") from error


def _characters(pieces: Pieces) -> frozenset[str]:
    """Characters that are pieces of their own, and the space."""
    return frozenset((*(text for text in pieces.texts if len(text) == 1), " ", SPACE))


def unigram_differences(found: Unigram, chat: bool, added: Iterable[AddedToken]) -> Iterator[Difference]:
    """Texts for which llama.cpp is known to give other ids."""
    tokens = list(added)
    texts = [token.content for token in tokens]
    if found.spaces.first:
        yield prefix_nowhere(texts) if chat else prefix_everywhere(texts)
    if found.spaces.unless_there:
        doubled = doubled_prefix(texts, SPACE)
        yield replace(doubled, concerns=lambda text: doubled.concerns(_mapped(text, found.charsmap)))
    if any(SPACE in token.content and not token.special for token in tokens):
        yield literal_space_mark(SPACE)
    if found.joined:
        yield Difference(
            "some pieces span several words; llama.cpp may use them, this tokenizer never does",
            lambda text: any(
                piece in _mapped(text, found.charsmap).replace(" ", SPACE) for piece in found.joined
            ),
        )
    yield _ties(found)
    if found.spaces.collapses and found.by_library:
        yield Difference(
            "the tokenizer drops white space of any kind at the end of a text, llama.cpp spaces alone",
            lambda text: (mapped := _mapped(text, found.charsmap).rstrip(" ")) != mapped.rstrip(),
        )
    if found.spaces.each and not found.spaces.collapses and not found.by_library:
        yield Difference(
            "llama.cpp puts no space before a text of spaces alone",
            lambda text: not _mapped(text, found.charsmap).strip(" "),
        )
    types = found.pieces.types
    if (types == TokenType.BYTE).any():
        own = _characters(found.pieces)
        yield Difference(
            "llama.cpp's Unigram knows no bytes: characters without a piece of their own become <unk>",
            lambda text: bool(set(_mapped(text, found.charsmap)) - own),
        )
    written = {
        text
        for text, kind in zip(found.pieces.texts, types, strict=True)
        if kind not in (TokenType.NORMAL, TokenType.UNUSED)
    } | {token.content for token in tokens if token.special}
    yield _written_out(written)
    if found.charsmap:
        yield COMPOSED


# A unit of one to eight characters, three times or more.
_REPEATED = re.compile(r"(.{1,8}?)\1{2,}", re.DOTALL)


def _ties(found: Unigram) -> Difference:
    """Repetitions that several orders of the same pieces cover: their scores' sums differ by rounding."""
    lengths: dict[str, set[int]] = {}
    for text in found.pieces.texts:
        if text and text == text[0] * len(text):
            lengths.setdefault(text[0], set()).add(len(text))

    def concerns(text: str) -> bool:
        mapped = _mapped(text, found.charsmap).replace(" ", SPACE)
        runs = ((match[1], len(match[0])) for match in _REPEATED.finditer(mapped))
        return any(
            len(unit) > 1
            or (
                size not in (known := lengths.get(unit, set())) and sum(length < size for length in known) > 1
            )
            for unit, size in runs
        )

    return Difference(
        "a long repetition can be cut in several ways of the same score, of which llama.cpp may take another",
        concerns,
    )


def _written_out(texts: Collection[str]) -> Difference:
    pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
    return Difference(
        "the tokenizer finds the names of its bytes and control tokens in any text; llama.cpp does not",
        lambda text: pattern.search(text) is not None,
        parse_special=False,
    )


_JOINED = ("Mn", "Mc", "Me", "Cf")
COMPOSED = Difference(
    "characters that are made of several (marks, joiners, Hangul letters) are mapped together here, and by "
    "the longest entry of the table in llama.cpp",
    lambda text: (
        "\r\n" in text
        or any(unicodedata.category(char) in _JOINED or "\u1100" <= char <= "\u11ff" for char in text)
    ),
)
