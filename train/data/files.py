"""Data files → records: one reader per file type, each record with the place where it stands.

Readers stream: a file is never held whole, and one record never takes more than `MAX_RECORD` bytes. Nothing
that a data set could bring is run: no pickle without leave, no loading script, no path out of an archive.
"""

from __future__ import annotations

import csv
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from lorafold.errors import InputError, SystemFault, UnsafeInputError
from lorafold.models import require
from lorafold.train.data.hub import is_hub_id, read_hub, read_saved
from lorafold.train.data.jsontext import MAX_RECORD, Placed, lines, read_json, read_jsonl


def read_records(spec: str, *, allow_pickle: bool = False, offline: bool = False) -> Iterator[Placed]:
    """Read one data source.

    Args:
        spec: a file of a known type, a folder that `datasets` saved, or a hub id "org/name[@revision]".
        allow_pickle: accept pickled DataFrames.
        offline: never connect.

    Yields:
        Place and record, in the order of the file.

    Raises:
        InputError: missing, of unknown type, malformed (line named).
        UnsafeInputError: it would run code or leave its folder.
        SystemFault: the hub cannot be reached.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        yield from read_saved(path)
    elif path.suffix.lower() in _CODE and path.exists():
        raise UnsafeInputError(
            "a loading script is code and is not run",
            at=path,
            fix="run it yourself and give the data file it makes",
        )
    elif path.suffix.lower() in _PICKLES and path.exists():
        yield from _pickle(path, allow_pickle)
    elif path.is_file():
        yield from _file(path)
    elif is_hub_id(spec) and _kind(spec) not in {*_TEXT, *_BINARY, *_PICKLES, *_CODE}:
        yield from read_hub(spec, offline=offline)
    else:
        raise InputError("there is no such file", at=spec, fix="check the path")


def _file(path: Path) -> Iterator[Placed]:
    kind = _kind(path.name)
    try:
        if kind in _TEXT:
            with open(path, "rb") as file:
                yield from _TEXT[kind](file, path.name)
        elif kind in _BINARY:
            yield from _BINARY[kind](path)
        else:
            known = ", ".join([*_TEXT, *_BINARY, *_PICKLES])
            raise InputError(f"unknown file type (known: {known})", at=path, fix="convert it, or rename it")
    except PermissionError as error:
        raise SystemFault("permission denied", at=path, fix="allow reading it") from error


def _kind(name: str) -> str:
    lower = name.lower()
    return next((suffix for suffix in (".tar.gz", ".tgz") if lower.endswith(suffix)), Path(lower).suffix)


# Tables and text


def _table(file: IO[bytes], name: str, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(MAX_RECORD)
    rows = csv.reader((line for _, line in lines(file, name)), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise InputError("a column name occurs twice", at=f"{name}:1", fix="rename one")
        start = rows.line_num + 1
        for row in rows:
            place, start = f"{name}:{start}", rows.line_num + 1
            if row and len(row) != len(header):
                problem = f"expected {len(header)} columns, got {len(row)}"
                raise InputError(problem, at=place, fix="quote fields that hold the separator")
            if row:
                yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", at=f"{name}:{start}", fix="correct the row") from error


def _csv(file: IO[bytes], name: str) -> Iterator[Placed]:
    return _table(file, name, ",")


def _tsv(file: IO[bytes], name: str) -> Iterator[Placed]:
    return _table(file, name, "\t")


def _txt(file: IO[bytes], name: str) -> Iterator[Placed]:
    """Paragraphs: each stretch of lines up to an empty one is a text."""
    start, paragraph, size = 1, list[str](), 0
    for number, line in lines(file, name):
        if not line.strip():
            if paragraph:
                yield f"{name}:{start}", {"text": "".join(paragraph).strip("\r\n")}
            start, paragraph, size = number + 1, [], 0
            continue
        size += len(line)
        if size > MAX_RECORD:
            problem = f"a paragraph is longer than {MAX_RECORD >> 20} MiB"
            raise InputError(problem, at=f"{name}:{start}", fix="put empty lines between texts")
        paragraph.append(line)
    if paragraph:
        yield f"{name}:{start}", {"text": "".join(paragraph).strip("\r\n")}


# Binary files


def _parquet(path: Path) -> Iterator[Placed]:
    require("pyarrow", extra="train")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"not a readable parquet file ({reason})", at=path, fix="fetch it again") from error


def _pickle(path: Path, allowed: bool) -> Iterator[Placed]:
    if not allowed:
        raise UnsafeInputError(
            "a pickle can run any code",
            at=path,
            fix="pass --allow-pickle if you made it, or save it as parquet",
        )
    require("pandas", extra="train")
    import pandas

    try:
        frame = pandas.read_pickle(path)
    except Exception as error:  # unpickling can raise anything
        problem = f"not a readable pickle ({type(error).__name__})"
        raise InputError(problem, at=path, fix="save it as parquet") from error
    if not isinstance(frame, pandas.DataFrame):
        problem = f"expected a pickled DataFrame, got {type(frame).__name__}"
        raise InputError(problem, at=path, fix="save a DataFrame")
    for number, row in enumerate(frame.to_dict(orient="records"), 1):
        # pandas writes a missing value as NaN, whatever the column holds.
        missing = (
            key for key, value in row.items() if pandas.api.types.is_scalar(value) and pandas.isna(value)
        )
        yield f"{path.name}: row {number}", row | dict.fromkeys(missing)


# Archives: members are read where they are, nothing is unpacked


def _member(name: str, archive: Path) -> str | None:
    """The reader's key of a member, None for one to pass over."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        problem = f"the member {name!r} leaves the archive's folder"
        raise UnsafeInputError(problem, at=archive, fix="do not use this archive")
    kind = _kind(pure.name)
    return kind if kind in _TEXT and not pure.name.startswith(".") else None


def _zip(path: Path) -> Iterator[Placed]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [(info, _member(info.filename, path)) for info in archive.infolist()]
            for info, kind in names:
                if kind and not info.is_dir():
                    with archive.open(info) as member:
                        yield from _TEXT[kind](member, f"{path.name}/{info.filename}")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"not a readable zip archive ({error})", at=path, fix="pack it again") from error


def _tar(path: Path) -> Iterator[Placed]:
    try:
        with tarfile.open(path) as archive:
            members = [(info, _member(info.name, path)) for info in archive.getmembers()]
            for info, kind in members:
                if kind and info.isreg() and (member := archive.extractfile(info)) is not None:
                    with member:
                        yield from _TEXT[kind](member, f"{path.name}/{info.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        problem = f"not a readable tar archive ({type(error).__name__})"
        raise InputError(problem, at=path, fix="pack it again") from error


_TEXT: dict[str, Callable[[IO[bytes], str], Iterable[Placed]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _txt,
}
_BINARY: dict[str, Callable[[Path], Iterable[Placed]]] = {
    ".parquet": _parquet,
    ".zip": _zip,
    ".tar": _tar,
    ".tar.gz": _tar,
    ".tgz": _tar,
}
_PICKLES = (".pkl", ".pickle")
_CODE = (".py", ".ipynb")
