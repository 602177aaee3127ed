"""Data sources -> records: one reader per file type, each record with the place where it stands.

Readers stream: a file is never held whole, and one record never takes more than `MAX_RECORD` bytes. Nothing
that a data set could bring is run: no pickle without leave, no loading script, no path out of an archive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lorafold.errors import InputError, SystemFault, UnsafeInputError
from lorafold.files.home import expanded
from lorafold.records.contents import content_of
from lorafold.records.hub import is_hub_id, is_saved, read_hub, read_saved
from lorafold.records.jsontext import Placed, read_json
from lorafold.records.members import ARCHIVES, CODE, DAMAGED_MEMBER, opened_members, sort_out
from lorafold.records.packed import OPENERS, kind_of
from lorafold.records.tables import TextUnit, read_arrow, read_parquet, read_pickle, read_table, read_text
from lorafold.sources.recognize import instead

MOST_NAMES = 12  # of members or fields that a note shows


@dataclass(frozen=True, slots=True)
class Reading:
    """How a source is read.

    Attributes:
        text: what of a plain text is one record.
        unknown_is_text: a file of unknown type is plain text, not an error.
        hub: a source may be an id "org/name[@revision][#split]" of the hub.
        offline: never connect.
        allow_pickle: accept pickled DataFrames.
    """

    text: TextUnit = "paragraph"
    unknown_is_text: bool = False
    hub: bool = True
    offline: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True)
class DataPart:
    """One file of a source. Its records are to be read before the next part is asked for.

    Attributes:
        name: for messages ("data.zip/part-1.jsonl").
        records: place and record, in the order of the file.
    """

    name: str
    records: Iterator[Placed]


def read_parts(spec: str, reading: Reading, note: Callable[[str], None]) -> Iterator[DataPart]:
    """Read one data source.

    Args:
        spec: a file of a known type (also compressed), an archive or folder of such, a folder that `datasets`
            saved, or a hub id.
        reading: how.
        note: told what a user should know: which members were read, and which were not.

    Yields:
        The source's files; several of an archive or folder.

    Raises:
        InputError: missing, of unknown type, malformed (line named).
        UnsafeInputError: it would run code or leave its folder.
        SystemFault: the hub cannot be reached, or a package is not installed.
    """
    path = expanded(spec)
    kind, packed = kind_of(path.name)
    try:
        if path.is_dir() and is_saved(path):
            yield DataPart(path.name, read_saved(path, note))
        elif path.is_dir() and (wrong := instead(path, "data")):
            raise InputError(wrong[0], at=path, fix=wrong[1])
        elif path.is_dir() or (path.is_file() and kind in ARCHIVES):
            yield from _members(path, reading, note)
        elif path.is_file():
            yield DataPart(path.name, _file(path, reading))
        elif reading.hub and is_hub_id(spec) and not packed and kind not in KNOWN:
            yield DataPart(spec, read_hub(spec, note, offline=reading.offline))
        else:
            raise InputError("there is no such file", at=spec, fix="check the path")
    except PermissionError as error:
        raise SystemFault("permission denied", at=path, fix="allow reading it") from error


def _file(path: Path, reading: Reading) -> Iterator[Placed]:
    kind, packed = kind_of(path.name)
    if kind in CODE:
        fix = "run it yourself and give the data file it makes"
        raise UnsafeInputError("a loading script is code and is not run", at=path, fix=fix)
    if kind in _PICKLES and not packed:
        yield from read_pickle(path, reading.allow_pickle)
        return
    if kind not in READERS and not (reading.unknown_is_text and kind not in KNOWN):
        known = ", ".join([*READERS, *ARCHIVES, *_PICKLES])
        problem = f"unknown file type (known: {known}; each also with {', '.join(OPENERS)})"
        raise InputError(problem, at=path, fix=_SHEETS if kind in _SHEET else "convert it, or rename it")
    with open(path, "rb") as file:
        yield from _records(file, path.name, reading)


def _records(file: IO[bytes], name: str, reading: Reading) -> Generator[Placed, None, None]:
    """The records of an open file, by the type that its name tells, or its first bytes."""
    try:
        with content_of(file, name) as (content, kind):
            yield from READERS.get(kind, _text)(content, name, reading)
    except (*DAMAGED_MEMBER, MemoryError) as error:  # an xz file names the memory that it wants
        problem = f"its bytes cannot be unpacked ({str(error) or type(error).__name__})"
        raise InputError(problem, at=name, fix="download it again, or pack it again") from error


def _members(path: Path, reading: Reading, note: Callable[[str], None]) -> Iterator[DataPart]:
    with opened_members(path) as members:
        data, left_out = sort_out(members, frozenset(READERS))
        if not data and path.is_dir() and any(reason == "code" for reason in left_out.values()):
            fix = "run it yourself and give the data file it makes"
            raise UnsafeInputError("a folder with a loading script; scripts are not run", at=path, fix=fix)
        because = [f"{name} ({reason})" for name, reason in left_out.items()]
        if not data:
            problem = f"no data file is in it (not read: {shown(because) or 'it is empty'})"
            raise InputError(problem, at=path, fix="give the data files themselves")
        if len(data) > 1:
            note(f"{path.name}: {len(data)} files are read: {shown([member.name for member in data])}")
        if because:
            note(f"{path.name}: not read: {shown(because)}")
        for member in data:
            assert member.open is not None
            name = f"{path.name}/{member.name}"
            with member.open() as file, closing(_records(file, name, reading)) as records:
                yield DataPart(name, records)


def holds_data(folder: Path) -> bool:
    """Whether a folder is a saved data set, or has a file that a reader takes."""
    if is_saved(folder):
        return True
    with opened_members(folder) as members:
        return bool(sort_out(members, frozenset(READERS))[0])


def shown(names: Sequence[str]) -> str:
    """Names of fields or files for a message, not more than a line of them."""
    clean = [name if name.isprintable() and name.strip() else repr(name) for name in map(str, names)]
    more = len(clean) - MOST_NAMES
    return ", ".join(clean[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _text(file: IO[bytes], name: str, reading: Reading) -> Iterator[Placed]:
    return read_text(file, name, reading.text)


READERS: dict[str, Callable[[IO[bytes], str, Reading], Iterator[Placed]]] = {
    ".json": lambda file, name, _: read_json(file, name),
    ".jsonl": lambda file, name, _: read_json(file, name),
    ".ndjson": lambda file, name, _: read_json(file, name),
    ".jsonlines": lambda file, name, _: read_json(file, name),
    ".csv": lambda file, name, _: read_table(file, name, ","),
    ".tsv": lambda file, name, _: read_table(file, name, "\t"),
    ".txt": _text,
    ".parquet": lambda file, name, _: read_parquet(file, name),
    ".arrow": lambda file, name, _: read_arrow(file, name),
    ".feather": lambda file, name, _: read_arrow(file, name),
}
_PICKLES = (".pkl", ".pickle")
_SHEET, _SHEETS = (".xlsx", ".xls", ".ods"), "save the sheet as CSV (UTF-8)"
KNOWN = frozenset((*READERS, *ARCHIVES, *_PICKLES, *CODE))
