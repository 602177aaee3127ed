"""Tables and texts -> records: CSV and TSV, Parquet, pickled DataFrames, and plain text."""

from __future__ import annotations

import csv
import io
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from lorafold.errors import InputError, UnsafeInputError
from lorafold.models import require
from lorafold.records.jsontext import MAX_RECORD, Placed, lines

TextUnit = Literal["paragraph", "line", "whole"]
_AT_ONCE = 1024  # rows of a table


def read_table(file: IO[bytes], name: str, delimiter: str) -> Iterator[Placed]:
    """Rows under a header, as objects of texts.

    Args:
        file: its bytes.
        name: for places.
        delimiter: that the file's type stands for; another usual one counts if only it parts the header.
    """
    csv.field_size_limit(MAX_RECORD)
    given, delimiter = _delimiter(file, name, delimiter)
    texts = (line for _, line in lines(file, name))
    rows = csv.reader(texts, delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next(rows, [])
        if given:
            start = rows.line_num + 1
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


def _delimiter(file: IO[bytes], name: str, delimiter: str) -> tuple[bool, str]:
    """(the first line only says what parts columns: Excel's "sep=;", what does)."""
    first = next((line for _, line in lines(file, name)), "").strip("\r\n")
    file.seek(0)
    if said := re.fullmatch(r'"?sep=(.)"?', first):
        return True, said[1]
    try:
        counts = {each: len(next(csv.reader([first], delimiter=each), [])) for each in (delimiter, *",;\t|")}
    except csv.Error:  # said at the header, with its line
        return False, delimiter
    return False, delimiter if counts[delimiter] > 1 else max(counts, key=lambda each: counts[each])


def read_text(file: IO[bytes], name: str, unit: TextUnit) -> Iterator[Placed]:
    """Plain text: a record for each paragraph (lines up to an empty one), for each line, or for the file."""
    if unit == "line":
        for number, line in lines(file, name):
            if line.strip():
                yield f"{name}:{number}", {"text": line.strip()}
    elif unit == "whole":
        text = "".join(line for _, line in lines(file, name))
        if text.strip():
            yield name, {"text": text}
    else:
        yield from _paragraphs(file, name)


def _paragraphs(file: IO[bytes], name: str) -> Iterator[Placed]:
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


def read_parquet(file: IO[bytes], name: str) -> Iterator[Placed]:
    """Rows of a Parquet file, group by group."""
    require("pyarrow", extra="data")
    from pyarrow import parquet

    with _readable("parquet", name, "download it again"), parquet.ParquetFile(file) as table:
        yield from _rows(table.iter_batches(batch_size=_AT_ONCE), name)


def read_arrow(file: IO[bytes], name: str) -> Iterator[Placed]:
    """Rows of an Arrow file: a stream, as `datasets` keeps its data, or a file, as Feather writes one."""
    require("pyarrow", extra="data")
    from pyarrow import ipc

    with _readable("Arrow", name, "save it again, or as parquet"), _in_memory(file) as content:
        if bytes(content[:6]) == b"ARROW1":
            opened = ipc.open_file(content)
            yield from _rows(map(opened.get_batch, range(opened.num_record_batches)), name)
        else:
            yield from _rows(iter(ipc.open_stream(content)), name)


@contextmanager
def _readable(kind: str, name: str, fix: str) -> Iterator[None]:
    """Say of what pyarrow raises that the file is damaged."""
    import pyarrow

    try:
        yield
    # A text that is no UTF-8, a length below 0, a date beyond Python, buffers that claim more than there is.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, SystemError, MemoryError) as error:
        reason = (str(error).splitlines() or ["it is empty, or claims more memory than there is"])[0]
        raise InputError(f"not a readable {kind} file ({reason})", at=name, fix=fix) from error


@contextmanager
def _in_memory(file: IO[bytes]) -> Iterator[memoryview]:
    """The bytes of a file, mapped: what lies outside of them cannot be asked for."""
    with ExitStack() as stack:
        # What is unpacked on the way has no bytes of its own on the disk.
        if not (isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)):
            spooled = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, spooled)
            spooled.flush()
            file = spooled
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed when pyarrow lets go of it
        yield memoryview(mapped)


def _rows(batches: Iterable[Any], name: str) -> Iterator[Placed]:
    """The rows of batches whose buffers were checked: pyarrow follows their offsets without a look."""
    number = 0
    for batch in batches:
        batch.validate(full=True)
        # A column of nulls takes no bytes, so that a file may claim any number of rows.
        for start in range(0, batch.num_rows, _AT_ONCE):
            for row in batch.slice(start, _AT_ONCE).to_pylist():
                number += 1
                yield f"{name}: row {number}", row


def read_pickle(path: Path, allowed: bool) -> Iterator[Placed]:
    """Rows of a pickled DataFrame, which is code: only with leave."""
    if not allowed:
        raise UnsafeInputError(
            "a pickle can run any code",
            at=path,
            fix="save it as parquet, or pass --allow-pickle to `train` if you made it",
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
