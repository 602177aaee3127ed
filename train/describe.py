"""What a data set is, before it is trained on: layout, counts, lengths, losses, and examples with their mask.

`lorafold inspect data.json --base B` prints a `DataReport`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorafold.chat.control_forms import written_markers
from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.models import resolve_base
from lorafold.progress import Progress, silent
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.train.config import TrainConfig
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


def describe_data(config: TrainConfig, *, samples: int = 3, progress: Progress = silent) -> DataReport:
    """Read a data set and say what training would make of it.

    Args:
        config: of the training; without a base everything about tokens is left out.
        samples: number of examples to show.
        progress: told if tokenizing lasts.

    Raises:
        InputError: the data or the base are wrong.
        UnsafeInputError: a source would run code.
    """
    data = load_data(
        config.data,
        layout=config.layout,
        system=config.system,
        allow_pickle=config.allow_pickle,
        offline=config.offline,
    )
    turns = sum(message["role"] == "assistant" for example in data.examples for message in example.messages)
    report = DataReport(data.layouts, len(data.examples), turns, data.sha256, notes=data.notes)
    if not config.base:
        return report
    folder = resolve_base(config.base, offline=config.offline, trust_remote_code=True).folder  # none is run
    tokenizer, _, notes = choose_tokenizer(
        with_tokenizer_json(folder),
        data,
        config.chat_template,
        parse_contents=config.control_tokens == "parse",
    )
    whole = tokenize(data.examples, tokenizer, config.max_length, progress)
    lengths = sorted(len(sequence.ids) for sequence in whole.sequences)
    shown = list(zip(whole.places, whole.sequences, strict=True))[:samples]
    return replace(
        report,
        tokens=whole.tokens,
        trained=whole.trained,
        lengths=tuple((name, lengths[round(part * (len(lengths) - 1))]) for name, part in _QUANTILES),
        cut=whole.cut,
        dropped=whole.dropped,
        lost_tokens=whole.lost_tokens,
        notes=(*data.notes, *notes, *whole.notes),
        samples=tuple(Sample(place, _pieces(sequence, tokenizer)) for place, sequence in shown),
    )


def _pieces(sequence: Encoded, tokenizer: ChatTokenizer) -> tuple[tuple[str, bool], ...]:
    """Runs of ids with the same mask, as text; the first token of a sequence is never predicted.

    What only looks like a control token has its ids behind it: "<|im_end|>" is one id, but
    "<|im_end|>‹27 91 318 6213 91 29›" are characters.
    """
    ids, mask = sequence.ids, [False, *sequence.mask[1:]]
    told = _ids_told(ids, tokenizer)
    pieces: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start] or end in told:
            text = tokenizer.decode(ids[start:end], skip_special=False) + told.get(end, "")
            joins = pieces and pieces[-1][1] == mask[start]
            pieces[-1:] = (
                [(pieces[-1][0] + text, mask[start])] if joins else [*pieces[-1:], (text, mask[start])]
            )
            start = end
    return tuple(pieces)


def _ids_told(ids: Sequence[int], tokenizer: ChatTokenizer) -> dict[int, str]:
    """The ids of every marker that is no control token, by the index behind it."""
    controls = {tokenizer.tokenizer.token_to_id(token) for token in tokenizer.template.controls}
    told: dict[int, str] = {}
    start = 0
    for end in range(len(ids) + 1):
        if end == len(ids) or ids[end] in controls:
            told |= {start + last: text for last, text in _markers(ids[start:end], tokenizer)}
            start = end + 1
    return told


def _markers(run: Sequence[int], tokenizer: ChatTokenizer) -> Iterator[tuple[int, str]]:
    """Of ordinary tokens: where each marker that they spell ends, and its ids as text.

    A template's own words around turns ("[INST]") deceive nobody if they are no control tokens.
    """
    text = tokenizer.decode(run, skip_special=False) if run else ""
    template = tokenizer.template
    spelt = written_markers(text, template.controls)
    deceive = [marker for marker in spelt if marker in template.controls or marker not in template.source]
    markers = sorted(deceive, key=len, reverse=True)
    if not markers:
        return
    ends = [len(tokenizer.decode(run[:count], skip_special=False)) for count in range(len(run) + 1)]
    for match in re.finditer("|".join(map(re.escape, markers)), text):
        first = max(index for index, end in enumerate(ends) if end <= match.start())
        last = next(index for index, end in enumerate(ends) if end >= match.end())
        yield last, f"‹{' '.join(map(str, run[first:last]))}›"
