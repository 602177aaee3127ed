"""Examples → token ids with the mask of trained tokens, cut to length, with a count of everything lost.

A conversation loses its end where it is longer than `max_length`; a plain text is split there instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafold.chat import ChatTokenizer, Encoded
from lorafold.errors import InputError
from lorafold.progress import Progress, silent
from lorafold.train.encoders import encode_all
from lorafold.train.layouts import Example


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A tokenized data set.

    Attributes:
        sequences: ids and masks, each with at least one trained token that has a token before it.
        places: where each sequence came from.
        cut: number of examples whose end was cut off.
        dropped: places of examples with no trained token left.
        lost_tokens: tokens that were cut off or dropped.
    """

    sequences: tuple[Encoded, ...]
    places: tuple[str, ...]
    cut: int
    dropped: tuple[str, ...]
    lost_tokens: int

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(sequence.ids) for sequence in self.sequences)

    @property
    def trained(self) -> int:
        """Tokens that count in the loss; the first of a sequence is never predicted."""
        return sum(sum(sequence.mask[1:]) for sequence in self.sequences)

    def summary(self) -> str:
        """What was kept and what was lost, in one line."""
        text = f"{len(self.sequences)} sequences, {self.tokens} tokens, {self.trained} trained"
        if self.cut:
            text += f"; {self.cut} cut at the end"
        if self.dropped:
            text += f"; {len(self.dropped)} dropped, nothing left to learn ({self.dropped[0]})"
        return text


def tokenize(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    max_length: int,
    progress: Progress = silent,
    processes: int | None = None,
) -> Tokenized:
    """Tokenize a data set.

    Args:
        examples: of `data.load_data`.
        tokenizer: of the base.
        max_length: longest sequence in tokens.
        progress: told where it lasts longer than a second.
        processes: that share the work; None for as many as pay.

    Raises:
        InputError: the template refuses a conversation, or no example has a trained token left.
    """
    sequences: list[Encoded] = []
    places: list[str] = []
    dropped: list[str] = []
    cut = lost = 0
    encoded = encode_all(examples, tokenizer, progress, processes)
    for example, whole in zip(examples, encoded, strict=True):
        kept = 0
        for piece in _pieces(whole, max_length, split=example.text is not None):
            if any(piece.mask[1:]):
                sequences.append(piece)
                places.append(example.place)
                kept += len(piece.ids)
        lost += len(whole.ids) - kept
        if not kept:
            dropped.append(example.place)
        elif kept < len(whole.ids):
            cut += 1
    if not sequences:
        raise InputError(
            f"no example has a trained token left within --max-length {max_length}",
            at=dropped[0] if dropped else None,
            fix="raise --max-length",
        )
    return Tokenized(tuple(sequences), tuple(places), cut, tuple(dropped), lost)


def _pieces(whole: Encoded, max_length: int, *, split: bool) -> Iterator[Encoded]:
    last = len(whole.ids) if split else min(1, len(whole.ids))
    for start in range(0, last, max_length):
        yield Encoded(whole.ids[start : start + max_length], whole.mask[start : start + max_length])
