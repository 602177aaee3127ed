"""Examples -> token ids with the mask of trained tokens, cut to length, with a count of everything lost.

A conversation loses its end if it is longer than `max_length`; a plain text is split there instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.errors import InputError
from lorafold.progress import Progress, silent
from lorafold.records.layouts import Example
from lorafold.train.tokens.encode_many import encode_all


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A tokenized data set.

    Attributes:
        sequences: ids and masks, each with at least one trained token that has a token before it.
        places: where each sequence came from.
        cut: number of examples whose end was cut off.
        dropped: places of examples with no trained token left.
        blank: how many of these had none before anything was cut: no answer of theirs says anything, or all
            are marked as not trained.
        lost_tokens: tokens that were cut off or dropped.
        left_out: (examples, tokens) of which the chat template does not write all that is said.
        left_out_first: where the first of these was read.
        beyond: where the first example was read of which the answer begins behind what is kept; "" for none.
    """

    sequences: tuple[Encoded, ...]
    places: tuple[str, ...]
    cut: int
    dropped: tuple[str, ...]
    lost_tokens: int
    blank: int = 0
    left_out: tuple[int, int] = (0, 0)
    left_out_first: str = ""
    beyond: str = ""

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
        count = len(self.sequences)
        text = f"{count} sequence{'s' * (count != 1)}, {self.tokens} tokens, {self.trained} trained"
        if self.cut:
            text += f"; {self.cut} cut at the end"
        if self.dropped:
            text += f"; {len(self.dropped)} dropped, nothing left to learn ({self.dropped[0]})"
        if self.blank:
            text += f", {self.blank} of them without an answer to train"
        return text

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the tokens beside their number."""
        notes = []
        if self.beyond:
            notes.append(
                f"{len(self.dropped) - self.blank} examples are dropped, since what stands before their "
                f"answer fills --max-length (first: {self.beyond})"
            )
        examples, tokens = self.left_out
        if examples:
            notes.append(
                f"the chat template leaves out (or rewrites) {tokens:,} tokens of what {examples} examples "
                f"say, usually reasoning; they are not trained (first: {self.left_out_first})"
            )
        return tuple(notes)


def tokenize(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    max_length: int,
    progress: Progress = silent,
    processes: int | None = None,
    *,
    may_be_empty: bool = False,
) -> Tokenized:
    """Tokenize a data set.

    Args:
        examples: of `data.load_data`.
        tokenizer: of the base.
        max_length: longest sequence in tokens.
        progress: told if it lasts longer than a second.
        processes: that share the work; None for as many as pay.
        may_be_empty: it is no error if no example has a trained token left (an evaluation set).

    Raises:
        InputError: the template refuses a conversation, or no example has a trained token left.
    """
    sequences: list[Encoded] = []
    places: list[str] = []
    dropped: list[str] = []
    cut = lost = blank = left_out = unwritten = 0
    first = beyond = ""
    encoded = encode_all(examples, tokenizer, progress, processes)
    for example, whole in zip(examples, encoded, strict=True):
        kept = 0
        for piece in _pieces(whole, max_length, split=example.text is not None):
            if any(piece.mask[1:]):
                sequences.append(piece)
                places.append(example.place)
                kept += len(piece.ids)
        lost += len(whole.ids) - kept
        if whole.left_out:
            first = first or example.place
            left_out += 1
            unwritten += whole.left_out
        if not kept:
            dropped.append(example.place)
            answered = any(whole.mask[1:])
            blank += not answered
            beyond = beyond or (example.place if answered else "")
        elif kept < len(whole.ids):
            cut += 1
    if not sequences and not may_be_empty:
        raise _nothing_left(dropped, blank, max_length)
    return Tokenized(
        tuple(sequences),
        tuple(places),
        cut,
        tuple(dropped),
        lost,
        blank,
        left_out=(left_out, unwritten),
        left_out_first=first,
        beyond=beyond,
    )


def _nothing_left(dropped: Sequence[str], blank: int, max_length: int) -> InputError:
    at = dropped[0] if dropped else None
    if blank == len(dropped):
        problem = "every answer is empty or marked as not trained, so there is nothing to learn"
        return InputError(problem, at=at, fix="add answers")
    problem = f"no example has a trained token left within --max-length {max_length}"
    return InputError(problem, at=at, fix="raise --max-length")


def _pieces(whole: Encoded, max_length: int, *, split: bool) -> Iterator[Encoded]:
    last = len(whole.ids) if split else min(1, len(whole.ids))
    for start in range(0, last, max_length):
        yield Encoded(whole.ids[start : start + max_length], whole.mask[start : start + max_length])
