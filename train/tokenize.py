"""Examples → token ids with the mask of trained tokens, cut to length, with a count of everything lost.

Conversations go through `lorafold.chat`, so the tokens are those that chat and an export will send, and every
assistant turn is trained with the token that ends it. A plain text is trained whole, ends with the end of
sequence token, and is split at `max_length` instead of cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafold.chat import ChatTokenizer, Encoded
from lorafold.errors import InputError
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


def tokenize(examples: Sequence[Example], tokenizer: ChatTokenizer, max_length: int) -> Tokenized:
    """Tokenize a data set.

    Args:
        examples: of `data.load_data`.
        tokenizer: of the base.
        max_length: longest sequence in tokens.

    Raises:
        InputError: the template refuses a conversation, or no example has a trained token left.
    """
    sequences: list[Encoded] = []
    places: list[str] = []
    dropped: list[str] = []
    cut = lost = 0
    for example in examples:
        whole = encode_example(example, tokenizer)
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


def encode_example(example: Example, tokenizer: ChatTokenizer) -> Encoded:
    """Ids and mask of one whole example.

    Raises:
        InputError: the template refuses the conversation; the example's place is named.
    """
    if example.text is not None:
        ids = [*tokenizer.tokenize(example.text, False), end_of_text(tokenizer)]
        return Encoded(ids, [True] * len(ids))
    try:
        whole = tokenizer.encode_chat(list(example.messages))
    except InputError as error:
        raise type(error)(error.problem, at=example.place, fix=error.fix) from error
    last = next((token for token, on in zip(whole.ids[::-1], whole.mask[::-1], strict=True) if on), None)
    if last in tokenizer.eos_ids or example.messages[-1]["role"] != "assistant":
        return whole
    # A template without an end of turn (Index): the answer still has to end, or chat would never stop.
    return Encoded([*whole.ids, end_of_text(tokenizer)], [*whole.mask, True])


def end_of_text(tokenizer: ChatTokenizer) -> int:
    """The id that ends a plain text: the tokenizer's EOS."""
    named = tokenizer.template.tokens.get("eos_token")
    found = None if named is None else tokenizer.tokenizer.token_to_id(named)
    return tokenizer.eos_ids[-1] if found is None else int(found)


def _pieces(whole: Encoded, max_length: int, *, split: bool) -> Iterator[Encoded]:
    last = len(whole.ids) if split else min(1, len(whole.ids))
    for start in range(0, last, max_length):
        yield Encoded(whole.ids[start : start + max_length], whole.mask[start : start + max_length])
