"""Data sources -> a data set of examples: what was read, in which layouts, and its hash.

The hash is taken over the examples, not over the files, so that it survives a change of file type but not a
change of content or order: a resumed run must see what the stopped one saw.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.chat.dialogue import calls_of, name_of, tools_of
from lorafold.errors import InputError
from lorafold.records.files import DataPart, Reading, read_parts, shown
from lorafold.records.layouts import Example, build_example, recognise, unread
from lorafold.records.misread import misread_note
from lorafold.train.config import TrainConfig
from lorafold.train.data.noted import oddities
from lorafold.train.data.split import draw_split, leak_note


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
        sources: files, archives, folders or hub ids.
        layout: a name of `layouts.LAYOUTS`, or "auto" to recognise each file by its first record.
        system: system message for conversations that have none.
        allow_pickle: accept pickled DataFrames.
        offline: never connect.

    Raises:
        InputError: a source is missing, empty or malformed; line and field are named.
        UnsafeInputError: a source would run code.
    """
    reading = Reading(offline=offline, allow_pickle=allow_pickle)
    examples: list[Example] = []
    notes: list[str] = []
    for source in sources:
        before = len(examples)
        for part in read_parts(source, reading, notes.append):
            found, unused = _examples(part, layout, system)
            examples += found
            if unused:
                notes.append(f"{part.name}: fields not used: {shown(unused)}")
            if not found:
                notes.append(f"{part.name}: there is no record in it")
        if len(examples) == before:
            raise InputError("the data set is empty", at=Path(source).name, fix="give at least one record")
    if (misread := misread_note(_texts(examples))) is not None:
        notes.append(misread)
    return _data_set(examples, (*notes, *_tool_note(examples), *oddities(examples)))


def _tool_note(examples: Sequence[Example]) -> list[str]:
    """How many conversations have tools, and what they do with them."""
    defined = [{name_of(tool) for tool in tools_of(example.messages)} for example in examples]
    messages = [message for example in examples for message in example.messages]
    calls = sum(len(calls_of(message)) for message in messages)
    results = sum(message["role"] == "tool" for message in messages)
    if not (any(defined) or calls):
        return []
    using = sum(
        bool(names) or any(map(calls_of, example.messages))
        for names, example in zip(defined, examples, strict=True)
    )
    return [
        f"tools: {using:,} of {len(examples):,} examples use some ({len(set().union(*defined)):,} are "
        f"defined); {calls:,} calls are trained, {results:,} results are not"
    ]


def _texts(examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Place and text of everything that is said in the examples."""
    for example in examples:
        whole = (example.text,) if example.text is not None else ()
        for text in (*whole, *(turn["content"] for turn in example.messages)):
            yield example.place, text


def _examples(part: DataPart, layout: str, system: str | None) -> tuple[list[Example], list[str]]:
    """The examples of a file, and the names of fields that were not used."""
    chosen = None
    examples: list[Example] = []
    unused: dict[str, None] = {}  # in the order of their first occurrence
    for place, record in part.records:
        chosen = chosen or recognise(record, place, layout)
        examples.append(build_example(record, place, chosen, system))
        unused.update(dict.fromkeys(unread(record, chosen)))
    return examples, list(unused)


def _data_set(examples: Sequence[Example], notes: Sequence[str] = (), sha256: str | None = None) -> DataSet:
    layouts = dict(Counter(example.layout for example in examples))
    return DataSet(tuple(examples), layouts, sha256 or _sha256(examples), tuple(notes))


def _sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        content: Any = list(example.messages) if example.text is None else example.text
        content = [content, list(tools)] if (tools := tools_of(example.messages)) else content
        said = [content, list(example.trained)] if example.trained else content
        digest.update(json.dumps(said, ensure_ascii=True, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def load_splits(config: TrainConfig) -> tuple[DataSet, DataSet | None]:
    """The training data and, if the config asks for one, the evaluation data.

    A split is drawn from the training data with the config's seed; it does not depend on anything else.
    Examples that are in both sets, or would be without our care, are reported in the notes of the
    evaluation set.
    """

    def read(sources: Sequence[str]) -> DataSet:
        return load_data(
            sources,
            layout=config.layout,
            system=config.system,
            allow_pickle=config.allow_pickle,
            offline=config.offline,
        )

    data = read(config.data)
    if config.eval_data:
        held_out = read(config.eval_data)
        leak = leak_note(data.examples, held_out.examples)
        return data, _data_set(held_out.examples, (*held_out.notes, *leak), held_out.sha256)
    if not config.eval_split:
        return data, None
    drawn, notes = draw_split(data.examples, config.eval_split, config.seed)
    parts = [
        [example for index, example in enumerate(data.examples) if (index in drawn) is wanted]
        for wanted in (False, True)
    ]
    return _data_set(parts[0], data.notes, data.sha256), _data_set(parts[1], notes)
