"""SentencePiece BPE vocabularies (Llama 2, Mistral, Gemma, Phi-3): `tokenizer.ggml.model` = "llama".

They come from tokenizer.model, or from a tokenizer.json of the same kind (BPE with byte fallback, spaces
written as U+2581).

llama.cpp merges the pair whose joined piece has the highest score, leftmost first (llm_tokenizer_spm_session
in its src/llama-vocab.cpp). tokenizer.json has ranked pairs instead; the rank of the first pair that makes a
piece, negated, is its score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from lorafold.errors import InputError
from lorafold.export.vocab.bpe import Merges, read_merges, read_ordinary_tokens, require_bpe
from lorafold.export.vocab.differences import (
    COLLAPSED_SPACES,
    MAPPED_CHARACTERS,
    Difference,
    doubled_prefix,
    literal_space_mark,
    prefix_everywhere,
    prefix_nowhere,
)
from lorafold.export.vocab.files import AddedToken, TokenizerFiles
from lorafold.export.vocab.model_file import Pieces, read_model_file
from lorafold.export.vocab.parts import BYTE_TOKEN, foreign, leaves, metaspace
from lorafold.export.vocab.ranked import IN_ORDER, Ranked, require_ranked
from lorafold.tokenizer.pieces import SPACE

# Scores of pieces that no merge makes: they never compete, so any value serves; SentencePiece has 0 there.
_NEVER_MERGED = 0.0


@dataclass(frozen=True, slots=True)
class Spaces:
    """What is done about spaces before a text is cut.

    Attributes:
        each: one is put before each piece of text: at the start and after every special token.
        first: one is put before the very first text only; llama.cpp cannot do that.
        unless_there: none is put if the text begins with one; llama.cpp cannot do that either.
        collapses: several become one; nor that.
        maps: characters are mapped to others before; nor that.
        notes: sentences for the report.
    """

    each: bool = False
    first: bool = False
    unless_there: bool = False
    collapses: bool = False
    maps: bool = False
    notes: tuple[str, ...] = ()


def read_pieces(
    files: TokenizerFiles, in_order: Ranked | None = None
) -> tuple[Pieces, Spaces, Ranked | None]:
    """Read the pieces of a folder, and what is done about spaces.

    tokenizer.json says which pieces there are; a tokenizer.model of the same ones has their scores.

    Args:
        files: the tokenizer files of a folder.
        in_order: the model's own way to have its merges done in their order, if it has one.

    Returns:
        The pieces, the handling of spaces, and how llama.cpp is told of the order of merges if scores cannot.

    Raises:
        InputError: neither file holds a SentencePiece BPE that llama.cpp can represent.
    """
    pieces: Pieces | None = None
    if files.model_file is not None:
        pieces, spec = read_model_file(files.model_file)
        if files.tokenizer is None:
            wanted = spec.add_dummy_prefix and files.settings.get("add_prefix_space") is not False
            legacy = files.settings.get("legacy") is not False
            spaces = Spaces(
                each=wanted and legacy,
                first=wanted and not legacy,
                collapses=spec.remove_extra_whitespaces,
                maps=bool(spec.charsmap),
            )
            return pieces, spaces, None
    assert files.tokenizer is not None
    at, model = files.origin, files.tokenizer["model"]
    require_bpe(model, at)
    vocab = read_ordinary_tokens(model, at)
    spaces = spaces_from_json(files.tokenizer, at)
    if pieces is not None and in_order is None:
        if vocab == dict(zip(pieces.texts, range(len(pieces.texts)), strict=True)):
            return pieces, spaces, None
        note = "tokenizer.model has other pieces than tokenizer.json and is not used"
        spaces = replace(spaces, notes=(*spaces.notes, note))
    merges = read_merges(model, vocab, at)
    found = pieces_from_json(model, vocab, merges)
    why = "" if in_order else _one_way(vocab, merges)
    if in_order or why:
        require_ranked(model, vocab, spaces.each or spaces.first, at, why)
        return found, spaces, in_order or IN_ORDER
    return found, spaces, None


def pieces_from_json(model: Mapping[str, Any], vocab: Mapping[str, int], merges: Merges) -> Pieces:
    """The pieces of a tokenizer.json: scores from the order of the merges.

    Args:
        model: the "model" object.
        vocab: its tokens.
        merges: its merges, best first.

    Returns:
        The pieces by id; ids without a token have an empty text and are UNUSED.
    """
    count = max(vocab.values()) + 1
    texts = [""] * count
    for text, token_id in vocab.items():
        texts[token_id] = text
    ids = np.fromiter(vocab.values(), np.int64, len(vocab))
    types = np.full(count, TokenType.UNUSED, np.int32)
    types[ids] = TokenType.NORMAL
    types[[token_id for text, token_id in vocab.items() if BYTE_TOKEN.fullmatch(text)]] = TokenType.BYTE
    # Backwards, so that of several merges that make the same piece the first, best one stays. float32 holds
    # every whole number up to 2**24 exactly; the longest known list has 0.6 million merges.
    made = np.fromiter(map(vocab.__getitem__, merges.made), np.int64, len(merges.made))
    scores = np.full(count, _NEVER_MERGED, np.float32)
    scores[made[::-1]] = -1.0 - np.arange(len(made), dtype=np.float32)[::-1]
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in vocab:
        types[vocab[unknown]] = TokenType.UNKNOWN
    return Pieces(texts, scores, types)


def _one_way(vocab: Mapping[str, int], merges: Merges) -> str:
    """Why these merges are not SentencePiece's, found on a sample; empty if they are.

    SentencePiece merges whatever gives a piece. A BPE that was trained otherwise knows one way for each
    piece, and comes to other pieces.
    """
    ways = Counter(merges.made)
    for text in list(vocab)[:: max(1, len(vocab) // 4000)]:
        splits = sum(text[:cut] in vocab and text[cut:] in vocab for cut in range(1, len(text)))
        if 0 < ways[text] < splits:
            return (
                f"the merges make the token {text!r} in {ways[text]} of {splits} possible ways, where "
                "SentencePiece has them all"
            )
    return ""


def spaces_from_json(tokenizer: Mapping[str, Any], at: Path) -> Spaces:
    """Read from the normalizer and the pre-tokenizer where a space is put.

    Args:
        tokenizer: the parsed tokenizer.json.
        at: the file, for messages.

    Returns:
        Where a space is put.

    Raises:
        InputError: a part that llama.cpp's SentencePiece tokenizer has not.
    """
    each = first = unless_there = escapes = maps = False
    notes: list[str] = []
    for part in leaves(tokenizer.get("normalizer"), "normalizers"):
        match part:
            case {"type": "Prepend", "prepend": "\u2581"}:
                each = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                escapes = True
            case {"type": "NFC" | "NFKC" | "Precompiled"}:
                maps = True
            case _:
                raise foreign(part, "normalizer", "SentencePiece", at)
    for part in leaves(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        match part:
            case {"type": "Metaspace", "replacement": "\u2581"}:
                escapes = True
                each, first, unless_there = metaspace(part)
                if part.get("split", True) and _joins_words(tokenizer["model"]["vocab"]):
                    notes.append(
                        "some tokens span several words; llama.cpp may use them, this tokenizer never does"
                    )
            case {"type": "Split", "pattern": {"String": " "}} if escapes:
                pass  # Gemma: the normalizer has left no space to split at
            case _:
                raise foreign(part, "pre_tokenizer", "SentencePiece", at)
    if not escapes:
        raise InputError(
            "is neither byte-level BPE nor SentencePiece: nothing maps bytes to letters or spaces to U+2581",
            at=at,
            fix="choose --format folder",
        )
    return Spaces(each, first, unless_there, maps=maps, notes=tuple(notes))


def space_differences(spaces: Spaces, chat: bool, added: Iterable[AddedToken]) -> Iterator[Difference]:
    """Known differences of SentencePiece vocabularies in the handling of spaces."""
    tokens = [token.content for token in added]
    if spaces.first:
        yield prefix_nowhere(tokens) if chat else prefix_everywhere(tokens)
    if spaces.collapses:
        yield COLLAPSED_SPACES
    if spaces.maps:
        yield MAPPED_CHARACTERS
    if spaces.unless_there:
        yield doubled_prefix(tokens, SPACE)
    if any(SPACE in token.content and not token.special for token in added):
        yield literal_space_mark(SPACE)


def _joins_words(vocab: Iterable[str]) -> bool:
    return any(SPACE in text[1:] and not text.startswith("<") for text in vocab)
