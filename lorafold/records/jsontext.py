"""JSON texts -> records with their line numbers: objects one a line (JSONL), or one array.

Both are read as a stream in bounded memory. RFC 8259, stricter in one thing: a key that occurs twice in an
object is an error. A byte order mark and CRLF are accepted; a file that says it is one and is the other is
read as what it is.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from lorafold.errors import InputError

MAX_RECORD = 16 << 20  # bytes
CHUNK = 1 << 20

# A record as it was read and the place it was read from ("data.jsonl:12").
Placed = tuple[str, Any]


class _DuplicateKey(Exception):
    pass


def lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, decoded, a byte order mark taken off, line ends as they are."""
    number = 0
    while raw := file.readline(MAX_RECORD + 1):
        number += 1
        place = f"{name}:{number}"
        if len(raw) > MAX_RECORD:
            raise InputError(f"the line is longer than {MAX_RECORD >> 20} MiB", at=place, fix="split it")
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problem = f"invalid UTF-8 (byte {error.object[error.start]:#04x} at column {error.start + 1})"
            raise InputError(problem, at=place, fix="save the file as UTF-8") from error


def read_jsonl(file: IO[bytes], name: str) -> Iterator[Placed]:
    """One object a line; a file that turns out to hold one array is read as such."""
    for number, line in lines(file, name):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            file.seek(0)
            yield from read_json(file, name)
            return
        place = f"{name}:{number}"
        yield place, _parse(line, place, last=not line.endswith("\n"))


def _parse(text: str, place: str, last: bool = False) -> Any:
    try:
        return _DECODER.decode(text)
    except _DuplicateKey as error:
        raise InputError(f"the key {error.args[0]!r} occurs twice", at=place, fix="keep one") from error
    except RecursionError as error:
        raise InputError("nested too deeply", at=place, fix="flatten the record") from error
    except json.JSONDecodeError as error:
        cut = "; the file looks cut off" if last else ""
        problem = f"not valid JSON ({error.msg} at column {error.colno}{cut})"
        raise InputError(problem, at=place, fix="correct or remove the line") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in names if names.count(key) > 1))
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


# One JSON array


def read_json(file: IO[bytes], name: str) -> Iterator[Placed]:
    """A JSON array of records, item by item; a file of one object a line is read as JSONL."""
    head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    if head[:1] == b"[":
        yield from _Array(file, name).items()
    else:
        yield from _object_or_lines(file, name)


def _object_or_lines(file: IO[bytes], name: str) -> Iterator[Placed]:
    """Objects one a line, or a single object over several lines."""
    text = file.read(MAX_RECORD + 1).removeprefix(codecs.BOM_UTF8)
    file.seek(0)
    first = text.partition(b"\n")[0]
    try:
        _DECODER.decode(first.decode("utf-8"))
    except (ValueError, RecursionError, _DuplicateKey):
        if len(text) <= MAX_RECORD and text.rstrip().endswith(b"}") and first.strip() == b"{":
            whole = "".join(line for _, line in lines(file, name))
            yield f"{name}:1", _parse(whole, f"{name}:1")
            return
    yield from read_jsonl(file, name)


class _Array:
    """A cursor over the text of a JSON array that holds one chunk at a time."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    @property
    def place(self) -> str:
        return f"{self.name}:{self.line}"

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.ended:
            return False
        raw = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not raw
        rest = self.text[self.at :]
        try:
            self.text, self.at = rest + self.decoder.decode(raw, final=self.ended), 0
        except UnicodeDecodeError as error:
            line = self.line + rest.count("\n") + raw[: error.start].count(b"\n")
            problem = f"invalid UTF-8 (byte {error.object[error.start]:#04x})"
            raise InputError(problem, at=f"{self.name}:{line}", fix="save the file as UTF-8") from error
        return True

    def peek(self) -> str:
        """The next character that is not whitespace, or "" at the end."""
        while True:
            start = self.at
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            self.line += self.text.count("\n", start, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, wanted: str) -> None:
        got = self.peek()
        if got not in wanted or not got:
            problem = f"expected {' or '.join(wanted)}, got {got or 'the end of the file'}"
            raise InputError(f"not valid JSON ({problem})", at=self.place, fix="correct the file")
        self.at += 1

    def item(self) -> Any:
        """The value that begins at the cursor."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                break
            except _DuplicateKey as error:
                problem = f"the key {error.args[0]!r} occurs twice"
                raise InputError(problem, at=self.place, fix="keep one") from error
            except RecursionError as error:
                raise InputError("nested too deeply", at=self.place, fix="flatten the record") from error
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > MAX_RECORD:
                    problem = f"a record is longer than {MAX_RECORD >> 20} MiB, or is not valid JSON"
                    raise InputError(problem, at=self.place, fix="split or correct it") from error
                if not self.more():
                    line = self.line + self.text.count("\n", self.at, error.pos)
                    cut = "; the file looks cut off" if error.pos >= len(self.text) - 1 else ""
                    problem = f"not valid JSON ({error.msg}{cut})"
                    raise InputError(problem, at=f"{self.name}:{line}", fix="correct the file") from error
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return value

    def items(self) -> Iterator[Placed]:
        self.take("[")
        if self.peek() == "]":
            return
        while True:
            self.peek()
            place = self.place
            yield place, self.item()
            if self.peek() == "]":
                break
            self.take(",]")
        self.at += 1
        if self.peek():
            raise InputError("text after the end of the array", at=self.place, fix="remove it")
