"""Tokens laid out over the rows of the embedding, as a GGUF wants them: one text and one type for each row.

llama.cpp ends the process if two texts are equal, and cuts a text at a NUL: both are handled here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.vocab.files import AddedToken

# Added tokens that real models list although their embedding has no row for them.
WITHOUT_A_ROW = frozenset(("<image_soft_token>",))  # Gemma 3, in its text-only sizes


@dataclass(slots=True)
class TokenRows:
    """One text and type for each row.

    Attributes:
        texts: token texts, (rows,).
        types: `gguf.TokenType` numbers, int32 (rows,).
        id_of: text → id, without padding.
        notes: what was left out, as sentences for the report.
    """

    texts: list[str]
    types: NDArray[np.int32]
    id_of: dict[str, int]
    notes: list[str]


def place_tokens(
    vocab: Iterable[tuple[str, int]],
    added: Mapping[int, AddedToken],
    rows: int,
    at: Path,
) -> TokenRows:
    """Give every row of the embedding its token.

    Args:
        vocab: (text, id) of the ordinary tokens, no id twice.
        added: the added tokens by id; one of them replaces an ordinary token of the same id.
        rows: rows of the embedding; ids without a token become `[PAD{id}]`, UNUSED.
        at: the tokenizer's file, for messages.

    Returns:
        The layout.

    Raises:
        InputError: more tokens than rows, or one text for two ids.
    """
    notes: list[str] = []
    placed: list[str | None] = [None] * rows
    types = np.full(rows, TokenType.UNUSED, np.int32)
    beyond: dict[int, str] = {}
    for text, token_id in vocab:
        if token_id >= rows:
            beyond[token_id] = text
        else:
            placed[token_id] = text
    ordinary = [index for index, text in enumerate(placed) if text is not None]
    types[ordinary] = TokenType.NORMAL
    for token_id, token in added.items():
        beyond.pop(token_id, None)
        if token_id < rows:
            placed[token_id] = token.content
            types[token_id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        elif token.content in WITHOUT_A_ROW:
            notes.append(f"token {token_id}, {token.content!r}, has no row in the embedding and is left out")
        else:
            beyond[token_id] = token.content
    if beyond:
        raise _too_many(beyond, rows, at)
    return _padded(placed, types, notes, at)


def _padded(placed: list[str | None], types: NDArray[np.int32], notes: list[str], at: Path) -> TokenRows:
    """Fill the holes and check that every text stands once and survives llama.cpp's C strings."""
    id_of = {text: index for index, text in enumerate(placed) if text is not None}
    if len(id_of) + placed.count(None) < len(placed):
        first, text = next(
            (index, text) for index, text in enumerate(placed) if text is not None and id_of[text] != index
        )
        raise InputError(
            f"token {text!r} stands twice, as {first} and {id_of[text]}",
            at=at,
            fix="remove one of them; llama.cpp ends with an abort on such a vocabulary",
        )
    texts: list[str] = []
    for index, placed_text in enumerate(placed):
        text = _fresh(f"[PAD{index}]", id_of) if placed_text is None else placed_text
        if "\0" in text:
            # llama.cpp reads texts as C strings: "a\0b" would become a second "a".
            types[index] = TokenType.UNUSED
            notes.append(
                f"token {index} holds a NUL character, which llama.cpp cannot represent; it is unused"
            )
            text = _fresh(f"[NUL{index}]", id_of)
        texts.append(text)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        broken = next(
            index for index, text in enumerate(texts) if any("\ud800" <= c <= "\udfff" for c in text)
        )
        raise InputError(
            f"token {broken} holds a lone surrogate and is no valid text",
            at=at,
            fix="download the tokenizer again",
        ) from None
    return TokenRows(texts, types, id_of, notes)


def _fresh(text: str, taken: Collection[str]) -> str:
    while text in taken:
        text = f"[{text}]"
    return text


def _too_many(beyond: Mapping[int, str], rows: int, at: Path) -> InputError:
    named = ", ".join(f"{text!r} ({token_id})" for token_id, text in sorted(beyond.items())[:3])
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    return InputError(
        f"there are more tokens than embedding rows: {named}{more} lie beyond the last row {rows - 1}",
        at=at,
        fix="choose the tokenizer that was trained with this model, or save the model after "
        "resize_token_embeddings (for an adapter: with modules_to_save for embed_tokens and lm_head)",
    )
