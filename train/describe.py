"""What a data set is, before it is trained on: layout, counts, lengths, losses, and examples with their mask.

`lorafold inspect data.json --base B` prints a `DataReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.models import resolve_base
from lorafold.progress import Progress, silent
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.train.data.load import load_data
from lorafold.train.material import choose_tokenizer
from lorafold.train.tokens.tokenize import tokenize


@dataclass(frozen=True, slots=True)
class Sample:
    """An example as the model will see it.

    Attributes:
        place: where it was read ("data.jsonl:12").
        pieces: (text, trained) in order; a caller colours the trained ones.
    """

    place: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class DataReport:
    """What is known of a data set without a base, and with one.

    Attributes:
        layouts: number of examples by layout.
        examples: number of examples.
        turns: number of assistant turns.
        sha256: over the examples.
        tokens: number of all tokens, None without a base.
        trained: tokens that count in the loss.
        lengths: (name, tokens) at some quantiles of the examples' lengths.
        cut: examples whose end is cut off at `max_length`.
        dropped: places of examples that are dropped, because nothing is left to learn.
        lost_tokens: tokens cut off or dropped.
        notes: of the sources and of the template.
        samples: the first examples.
    """

    layouts: dict[str, int]
    examples: int
    turns: int
    sha256: str
    tokens: int | None = None
    trained: int | None = None
    lengths: tuple[tuple[str, int], ...] = ()
    cut: int = 0
    dropped: tuple[str, ...] = ()
    lost_tokens: int = 0
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()


_QUANTILES = (("shortest", 0.0), ("median", 0.5), ("90%", 0.9), ("99%", 0.99), ("longest", 1.0))


def describe_data(
    sources: Sequence[str],
    base: str | None = None,
    *,
    max_length: int = 1024,
    layout: str = "auto",
    system: str | None = None,
    chat_template: str | None = None,
    allow_pickle: bool = False,
    offline: bool = False,
    samples: int = 3,
    progress: Progress = silent,
) -> DataReport:
    """Read a data set and say what training would make of it.

    Args:
        sources: files, saved `datasets` folders or hub ids.
        base: base model whose tokenizer and template count; None leaves out everything about tokens.
        max_length: as in training.
        layout, system, chat_template, allow_pickle, offline: as in training.
        samples: number of examples to show.
        progress: told where tokenizing lasts.

    Raises:
        InputError: the data or the base are wrong.
        UnsafeInputError: a source would run code.
    """
    data = load_data(sources, layout=layout, system=system, allow_pickle=allow_pickle, offline=offline)
    turns = sum(message["role"] == "assistant" for example in data.examples for message in example.messages)
    if base is None:
        return DataReport(data.layouts, len(data.examples), turns, data.sha256, notes=data.notes)
    folder = resolve_base(base, offline=offline, trust_remote_code=True).folder  # none of it is run here
    tokenizer, _, notes = choose_tokenizer(with_tokenizer_json(folder), data, chat_template)
    whole = tokenize(data.examples, tokenizer, max_length, progress)
    lengths = sorted(len(sequence.ids) for sequence in whole.sequences)
    shown = list(zip(whole.places, whole.sequences, strict=True))[:samples]
    return DataReport(
        layouts=data.layouts,
        examples=len(data.examples),
        turns=turns,
        sha256=data.sha256,
        tokens=whole.tokens,
        trained=whole.trained,
        lengths=tuple((name, lengths[round(part * (len(lengths) - 1))]) for name, part in _QUANTILES),
        cut=whole.cut,
        dropped=whole.dropped,
        lost_tokens=whole.lost_tokens,
        notes=(*data.notes, *notes),
        samples=tuple(Sample(place, _pieces(sequence, tokenizer)) for place, sequence in shown),
    )


def _pieces(sequence: Encoded, tokenizer: ChatTokenizer) -> tuple[tuple[str, bool], ...]:
    """Runs of ids with the same mask, decoded; the first token of a sequence is never predicted."""
    mask = [False, *sequence.mask[1:]]
    pieces: list[tuple[str, bool]] = []
    start = 0
    for index in range(1, len(mask) + 1):
        if index == len(mask) or mask[index] != mask[start]:
            pieces.append((tokenizer.decode(sequence.ids[start:index], skip_special=False), mask[start]))
            start = index
    return tuple(pieces)
