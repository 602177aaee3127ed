"""Data sources → a data set of examples: what was read, in which layouts, and its hash.

The hash is taken over the examples, not over the files, so that it survives a change of file type but not a
change of content or order: a resumed run must see what the stopped one saw.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorafold.errors import InputError
from lorafold.train.config import TrainConfig
from lorafold.train.data.files import read_records
from lorafold.train.data.layouts import Example, build_example, recognise, unread

MOST_NAMES = 12  # of unused fields that a note shows


@dataclass(frozen=True, slots=True)
class DataSet:
    """Examples in the order of their files.

    Attributes:
        examples: at least one.
        layouts: number of examples by layout.
        sha256: over the examples.
        notes: what the user should know of the sources.
    """

    examples: tuple[Example, ...]
    layouts: dict[str, int]
    sha256: str
    notes: tuple[str, ...] = ()


def load_data(
    sources: Sequence[str],
    *,
    layout: str = "auto",
    system: str | None = None,
    allow_pickle: bool = False,
    offline: bool = False,
) -> DataSet:
    """Read and check data sources.

    Args:
        sources: files, saved `datasets` folders or hub ids.
        layout: a name of `layouts.LAYOUTS`, or "auto" to recognise each source by its first record.
        system: system message for conversations that have none.
        allow_pickle: accept pickled DataFrames.
        offline: never connect.

    Raises:
        InputError: a source is missing, empty or malformed; line and field are named.
        UnsafeInputError: a source would run code.
    """
    examples: list[Example] = []
    notes: list[str] = []
    for source in sources:
        chosen = None
        unused: dict[str, None] = {}  # in the order of their first occurrence
        for place, record in read_records(source, allow_pickle=allow_pickle, offline=offline):
            chosen = chosen or recognise(record, place, layout)
            examples.append(build_example(record, place, chosen, system))
            unused.update(dict.fromkeys(unread(record, chosen)))
        if chosen is None:
            raise InputError("the data set is empty", at=Path(source).name, fix="give at least one record")
        if unused:
            notes.append(f"{Path(source).name}: fields not used: {_names(unused)}")
    return DataSet(tuple(examples), _layouts(examples), _sha256(examples), tuple(notes))


def _names(names: Iterable[str]) -> str:
    """Names of fields for a message, not more than a line of them."""
    shown = [name if name.isprintable() and name.strip() else repr(name) for name in map(str, names)]
    return ", ".join(shown[:MOST_NAMES]) + (
        f" and {more} more" if (more := len(shown) - MOST_NAMES) > 0 else ""
    )


def _layouts(examples: Sequence[Example]) -> dict[str, int]:
    return dict(Counter(example.layout for example in examples))


def _sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        content = list(example.messages) if example.text is None else example.text
        digest.update(json.dumps(content, ensure_ascii=True, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def load_splits(config: TrainConfig) -> tuple[DataSet, DataSet | None]:
    """The training data and, where the config asks for one, the evaluation data.

    A split is drawn from the training data with the config's seed; it does not depend on anything else.
    """
    read = partial(
        load_data,
        layout=config.layout,
        system=config.system,
        allow_pickle=config.allow_pickle,
        offline=config.offline,
    )
    data = read(config.data)
    if config.eval_data:
        return data, read(config.eval_data)
    if not config.eval_split:
        return data, None
    count = max(1, round(len(data.examples) * config.eval_split))
    if count >= len(data.examples):
        problem = f"{len(data.examples)} example leaves nothing to train on beside the evaluation split"
        raise InputError(problem, at="--eval-split", fix="give more data")
    held_out = set(random.Random(config.seed).sample(range(len(data.examples)), count))
    parts = [
        [example for index, example in enumerate(data.examples) if (index in held_out) is wanted]
        for wanted in (False, True)
    ]
    return DataSet(tuple(parts[0]), _layouts(parts[0]), data.sha256, data.notes), DataSet(
        tuple(parts[1]), _layouts(parts[1]), _sha256(parts[1])
    )
