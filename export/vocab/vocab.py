"""A model's vocabulary as GGUF metadata, from the tokenizer files alone (no transformers).

`Vocab.metadata()` is the `tokenizer.ggml.*` part of a GGUF header as llama.cpp reads it
(llama_vocab::impl::load in its src/llama-vocab.cpp). `probe.probe_texts()` gives texts on which it is
compared with the original.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, TokenType
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.gguf.parts import KeyValue
from lorafold.export.vocab.bpe import (
    read_merges,
    read_ordinary_tokens,
    require_bpe,
    words_reached_only_whole,
)
from lorafold.export.vocab.differences import (
    Difference,
    found_elsewhere,
    needed_name,
    token_differences,
)
from lorafold.export.vocab.files import AddedToken, TokenizerFiles, named_special_texts, read_tokenizer_files
from lorafold.export.vocab.pre_tokenizers import find_pre_tokenizer, is_byte_level
from lorafold.export.vocab.ranked import IN_GEMMA4, Ranked, is_gemma4
from lorafold.export.vocab.special import SpecialTokens, find_special_tokens
from lorafold.export.vocab.spm import read_pieces, space_differences, spaces_from_json
from lorafold.export.vocab.token_rows import TokenRows, place_tokens
from lorafold.export.vocab.unigram import read_unigram, unigram_differences
from lorafold.tokenizer.pieces import SPACE


@dataclass(frozen=True, slots=True)
class Vocab:
    """A vocabulary, complete for one GGUF.

    Attributes:
        model: `tokenizer.ggml.model`: "gpt2" (BPE), "llama" (SentencePiece), "t5" (its Unigram) or "gemma4".
        pre: `tokenizer.ggml.pre`: llama.cpp's pre-tokenizer; None if the model implies it.
        texts: token texts, one for each row of the embedding.
        types: `gguf.TokenType` numbers, int32 (rows,).
        special: kind ("bos", "eos", "eot", …) → token id.
        add_bos: BOS is put before a prompt.
        add_eos: EOS is put after it.
        scores: float32 (rows,), for "llama" only: the piece with the higher score is merged first.
        merges: "left right", best first, for "gpt2" only.
        add_space_prefix: a space is put before a text and after each special token; "llama" only.
        collapses_spaces: several spaces become one, and those at the ends none; "t5" only.
        charsmap: SentencePiece's table of characters, "t5" only.
        needs_name: what `general.name` must contain for llama.cpp to swallow the white space after special
            tokens as this tokenizer does, or None.
        differences: for which texts llama.cpp is known to give other ids than the Hugging Face tokenizer.
        remarks: what else the report should say, as sentences.
    """

    model: str
    pre: str | None
    texts: list[str]
    types: NDArray[np.int32]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    scores: NDArray[np.float32] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    collapses_spaces: bool | None = None
    charsmap: bytes = b""
    needs_name: str | None = None
    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything the report should say about this vocabulary."""
        return (*(each.reason for each in self.differences if not each.everywhere), *self.remarks)

    def known_difference(self, text: str, parse_special: bool = True) -> str | None:
        """Why llama.cpp may give other ids for a text; None if the ids must be equal.

        Args:
            text: a text.
            parse_special: whether special tokens in the text are recognised as such by both sides.
        """
        concerned = (
            each.reason
            for each in self.differences
            if each.parse_special in (None, parse_special) and each.concerns(text)
        )
        return next(concerned, None)

    def comparable(self, texts: Iterable[str], parse_special: bool = True) -> tuple[list[str], Counter[str]]:
        """Set aside the texts with a known difference.

        Args:
            texts: texts to compare ids on.
            parse_special: as in `known_difference`.

        Returns:
            The texts whose ids must be equal, and how many were set aside for each reason.
        """
        equal: list[str] = []
        aside: Counter[str] = Counter()
        for text in texts:
            reason = self.known_difference(text, parse_special)
            if reason is None:
                equal.append(text)
            else:
                aside[reason] += 1
        return equal, aside

    def without_tokens(self) -> Vocab:
        """What is still needed when the header is made; the lists of a large vocabulary take 25 MB."""
        return replace(self, texts=[], merges=None, scores=None)

    def metadata(self) -> list[KeyValue]:
        """The `tokenizer.ggml.*` entries, in the order of llama.cpp's converter (chat template excluded)."""
        entries = [
            _scalar("model", self.model, GGUFValueType.STRING),
            *([] if self.pre is None else [_scalar("pre", self.pre, GGUFValueType.STRING)]),
            _array("tokens", self.texts, GGUFValueType.STRING),
        ]
        if self.scores is not None:
            entries.append(_array("scores", self.scores, GGUFValueType.FLOAT32))
        entries.append(_array("token_type", self.types, GGUFValueType.INT32))
        if self.merges is not None:
            entries.append(_array("merges", self.merges, GGUFValueType.STRING))
        entries += [
            _scalar(_ID_KEYS[kind], token_id, GGUFValueType.UINT32) for kind, token_id in self.special.items()
        ]
        # Always written: llama.cpp's defaults follow the pre-tokenizer's name and are often not the model's.
        entries.append(_scalar("add_bos_token", self.add_bos, GGUFValueType.BOOL))
        entries.append(_scalar("add_eos_token", self.add_eos, GGUFValueType.BOOL))
        if self.add_space_prefix is not None:
            entries.append(_scalar("add_space_prefix", self.add_space_prefix, GGUFValueType.BOOL))
        if self.collapses_spaces is not None:
            entries.append(_scalar("remove_extra_whitespaces", self.collapses_spaces, GGUFValueType.BOOL))
        if self.charsmap:
            table = np.frombuffer(self.charsmap, np.uint8)
            entries.append(_array("precompiled_charsmap", table, GGUFValueType.UINT8))
        return entries


# `tokenizer.ggml.…`; the odd spellings are gguf-py's Keys.Tokenizer.
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}


def _scalar(key: str, value: str | int | bool, kind: GGUFValueType) -> KeyValue:
    return KeyValue(f"tokenizer.ggml.{key}", value, kind)


def _array(key: str, values: Any, kind: GGUFValueType) -> KeyValue:
    return KeyValue(f"tokenizer.ggml.{key}", values, GGUFValueType.ARRAY, kind)


def read_vocab(
    folder: Path,
    config: Mapping[str, Any],
    rows: int,
    *,
    pre_tokenizer: str | None = None,
    end_of_turn: str | None = None,
    add_bos: bool | None = None,
) -> Vocab:
    """Read a model folder's tokenizer.

    Args:
        folder: the folder with tokenizer.json or tokenizer.model and the settings beside it.
        config: its parsed config.json.
        rows: rows of the token embedding; the vocabulary is padded to them.
        pre_tokenizer: llama.cpp's name for the pre-tokenizer, if it is not recognised.
        end_of_turn: the text that ends an assistant's turn in the chat template, if known.
        add_bos: overrides the tokenizer's own setting (a chat template may say it better).

    Returns:
        The vocabulary.

    Raises:
        InputError: no tokenizer, one that llama.cpp cannot represent, more tokens than rows, or no EOS.
        UsageError: llama.cpp has no pre-tokenizer of that name.
    """
    files = read_tokenizer_files(folder)
    if end_of_turn is not None:
        end_of_turn = end_of_turn.strip()
    if files.tokenizer is not None and (pre_tokenizer is not None or is_byte_level(files.tokenizer)):
        vocab = _read_byte_level(files, files.tokenizer, config, rows, pre_tokenizer, end_of_turn)
    else:
        vocab = _read_sentencepiece(files, config, rows, end_of_turn)
    # For Gemma 4's kind llama.cpp adds BOS whatever the file says.
    fixed = add_bos is None or vocab.model == IN_GEMMA4.model
    return vocab if fixed else replace(vocab, add_bos=bool(add_bos))


def _read_byte_level(
    files: TokenizerFiles,
    tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: int,
    pre_tokenizer: str | None,
    end_of_turn: str | None,
) -> Vocab:
    at, model = files.origin, tokenizer["model"]
    require_bpe(model, at)
    pre = find_pre_tokenizer(tokenizer, at, str(config.get("model_type", "")), pre_tokenizer)
    ordinary = read_ordinary_tokens(model, at)
    merges = read_merges(model, ordinary, at)
    whole_words = bool(model.get("ignore_merges"))
    if pre.whole_words not in (None, whole_words) and (lost := words_reached_only_whole(tokenizer, merges)):
        raise InputError(
            f"{len(lost)} tokens, {lost[0]!r} among them, are {'only' if whole_words else 'never'} found by "
            f'looking up whole words (ignore_merges); llama.cpp\'s "{pre.name}" does the opposite',
            at=f"{at}: model.ignore_merges",
            fix="pass another of llama.cpp's with --pre-tokenizer, or choose --format folder",
        )
    layout = place_tokens(ordinary.items(), _with_named(files, ordinary), rows, at)
    special = find_special_tokens(files, config, layout.id_of, layout.texts, end_of_turn=end_of_turn)
    _mark_control(layout, special, end_of_turn)
    return Vocab(
        model="gpt2",
        pre=pre.name,
        texts=layout.texts,
        types=layout.types,
        special=special.ids,
        add_bos=special.add_bos,
        add_eos=special.add_eos,
        merges=merges.lines(),
        needs_name=needed_name(layout, files.added.values()),
        differences=(
            *pre.differences,
            *token_differences(layout, files.added.values()),
            *found_elsewhere(tokenizer, files.added.values()),
        ),
        remarks=(*layout.notes, *special.notes),
    )


def _read_sentencepiece(
    files: TokenizerFiles, config: Mapping[str, Any], rows: int, end_of_turn: str | None
) -> Vocab:
    if (unigram := read_unigram(files)) is not None:
        pieces, spaces, ranked = unigram.pieces, unigram.spaces, None
    else:
        pieces, spaces, ranked = read_pieces(files, IN_GEMMA4 if is_gemma4(config) else None)
    ordinary = {text: index for index, text in enumerate(pieces.texts) if text}
    added = {
        # llama.cpp looks for these in the text before spaces become U+2581.
        index: token if token.special else replace(token, content=token.content.replace(SPACE, " "))
        for index, token in _with_named(files, ordinary).items()
    }
    layout = place_tokens(ordinary.items(), added, rows, files.origin)
    count = min(len(pieces.texts), rows)
    # What an added token says about a piece holds, but bytes and the unknown token stay what they are.
    own = np.isin(pieces.types[:count], (TokenType.UNKNOWN, TokenType.BYTE))
    own |= layout.types[:count] == TokenType.NORMAL
    layout.types[:count] = np.where(own, pieces.types[:count], layout.types[:count])
    scores = np.full(rows, _PADDING_SCORE, np.float32)
    scores[:count] = pieces.scores[:count]
    replaced = [index for index, token in added.items() if pieces.texts[index : index + 1] != [token.content]]
    scores[[index for index in replaced if index < rows]] = _ADDED_SCORE
    special = find_special_tokens(
        files, config, layout.id_of, layout.texts, end_of_turn=end_of_turn, add_bos_without_word=True
    )
    _mark_control(layout, special, end_of_turn)
    if ranked is not None:
        return _in_order(files, ranked, layout, special)
    chat = end_of_turn is not None or "chat_template" in files.settings or _has_template(files.folder)
    tokens = files.added.values()
    return Vocab(
        model="llama" if unigram is None else "t5",
        pre="default",
        texts=layout.texts,
        types=layout.types,
        special=special.ids if unigram is None else {**special.ids, "unk": unigram.unknown},
        add_bos=special.add_bos,
        add_eos=special.add_eos,
        scores=scores,
        add_space_prefix=spaces.each or (spaces.first and not chat),
        collapses_spaces=None if unigram is None else spaces.collapses,
        charsmap=b"" if unigram is None else unigram.charsmap,
        needs_name=needed_name(layout, tokens),
        differences=(
            *(
                space_differences(spaces, chat, tokens)
                if unigram is None
                else unigram_differences(unigram, chat, tokens)
            ),
            *token_differences(layout, tokens),
            *found_elsewhere(files.tokenizer, tokens),
        ),
        remarks=(*spaces.notes, *layout.notes, *special.notes),
    )


def _in_order(files: TokenizerFiles, ranked: Ranked, layout: TokenRows, special: SpecialTokens) -> Vocab:
    """A vocabulary of pieces whose merges are done in their order."""
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    merges = read_merges(model, read_ordinary_tokens(model, files.origin), files.origin)
    shown = [index for text in ranked.shown if (index := layout.id_of.get(text)) is not None]
    layout.types[shown] = TokenType.USER_DEFINED
    scores = None if ranked.score is None else np.full(len(layout.texts), ranked.score, np.float32)
    tokens = files.added.values()
    spaces = spaces_from_json(files.tokenizer, files.origin)
    return Vocab(
        model=ranked.model,
        pre=ranked.pre,
        texts=layout.texts,
        types=layout.types,
        special=special.ids,
        add_bos=special.add_bos or ranked.adds_bos,
        add_eos=special.add_eos,
        scores=scores,
        merges=merges.lines(),
        add_space_prefix=None if ranked.score is None else False,
        differences=(
            *space_differences(spaces, False, tokens),
            *token_differences(layout, tokens),
            *found_elsewhere(files.tokenizer, tokens),
        ),
        remarks=(*layout.notes, *special.notes),
    )


# What llama.cpp's converter gives to added tokens and padding; neither takes part in merging.
_ADDED_SCORE = -1000.0
_PADDING_SCORE = -10000.0


def _with_named(files: TokenizerFiles, ordinary: Mapping[str, int]) -> dict[int, AddedToken]:
    """The added tokens, and ordinary tokens that the settings call special (transformers adds those too)."""
    named = named_special_texts(files.settings)
    return {
        ordinary[text]: AddedToken(text, special=True) for text in sorted(named & ordinary.keys())
    } | dict(files.added)


def _mark_control(layout: TokenRows, special: SpecialTokens, end_of_turn: str | None) -> None:
    """Tokens that end or begin a text are never text themselves."""
    ids = {special.ids[kind] for kind in ("bos", "eos", "eot", "eom") if kind in special.ids}
    if end_of_turn is not None and end_of_turn in layout.id_of:
        ids.add(layout.id_of[end_of_turn])
    for index in ids:
        if layout.types[index] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            layout.types[index] = TokenType.CONTROL


def _has_template(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
