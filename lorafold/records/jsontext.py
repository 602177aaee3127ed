"""JSON texts -> records with their line numbers: objects one a line (JSONL), an array, an object around one.

All are read as a stream in bounded memory, each as what it is, whatever its file is called. RFC 8259,
stricter in one thing: a key that occurs twice in an object is an error. What can mean only one thing is
accepted: a byte order mark, CRLF, several objects in a line, commas between or behind them, NaN (pandas'
empty value).
"""

from __future__ import annotations

import codecs
import json
import re
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


def read_json(file: IO[bytes], name: str) -> Iterator[Placed]:
    """The records of a JSON text: one object a line, an array, or an object that holds one array of them."""
    begins = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    wrapper, over_lines = _looked_at(file, name) if begins == b"{" else ("", False)
    file.seek(0)
    if begins == b"[":
        yield from _Text(file, name).items()
    elif wrapper:
        yield from _Text(file, name).wrapped(wrapper)
    elif over_lines:
        yield from _Text(file, name).values()
    else:
        for number, line in lines(file, name):
            yield from _values(line, f"{name}:{number}", last=not line.endswith("\n"))


def _looked_at(file: IO[bytes], name: str) -> tuple[str, bool]:
    """Of a text that begins with an object: (the list of records in it, it is written over several lines)."""
    file.seek(0)
    text = _Text(file, name)
    try:
        text.peek()
        over_lines = text.over_lines()
        return text.wraps(), over_lines
    except InputError:  # said when it is read
        return "", False


def _values(line: str, place: str, last: bool) -> Iterator[Placed]:
    """The values of a line: one as a rule, several if lines were joined."""
    at = _skip(line, 0)
    while at < len(line):
        try:
            value, end = _DECODER.raw_decode(line, at)
        except _DuplicateKey as error:
            raise InputError(f"the key {error.args[0]!r} occurs twice", at=place, fix="keep one") from error
        except RecursionError as error:
            raise InputError("nested too deeply", at=place, fix="flatten the record") from error
        except json.JSONDecodeError as error:
            told = _told(error, f" at column {error.colno}", ended=last)
            raise InputError(told[0], at=place, fix=told[1] or "correct or remove the line") from error
        yield place, value
        at = _skip(line, end)


def _is_whole(line: str) -> bool:
    """Whether a line begins with a whole value."""
    try:
        _DECODER.raw_decode(line)
    except (ValueError, RecursionError, _DuplicateKey):
        return False
    return True


def _skip(text: str, at: int) -> int:
    """The place of the next value: behind blanks, a comma, and the mark before a record (RFC 7464)."""
    found = _BETWEEN.match(text, at)
    assert found is not None
    return found.end()


def _told(error: json.JSONDecodeError, where: str, *, ended: bool) -> tuple[str, str]:
    """What is wrong with a text, and the cure if the cause is known ("" if not)."""
    text, at = error.doc, error.pos
    rest = text[at:].rstrip()
    if ended and (error.msg.startswith("Unterminated") or rest in ("", *',:{["')):
        return f"not valid JSON ({error.msg}{where}; the file looks cut off)", ""
    for standing, said, cause, fix in _CAUSES:
        if (said and error.msg.startswith(said)) or (standing and re.match(standing, text[at : at + 10])):
            return f"not valid JSON ({cause}{where})", fix
    return f"not valid JSON ({error.msg}{where})", ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in names if names.count(key) > 1))
    return record


def _constant(word: str) -> float | None:
    """What json.dumps writes beyond JSON: NaN is a missing value of pandas."""
    return None if word == "NaN" else float(word)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)
_BETWEEN = re.compile(r"[\s\x1e]*(?:,[\s\x1e]*)?")
_DUMPED = "write the file with json.dumps"
# What stands where JSON ends, or how the decoder's message begins -> cause, cure.
_CAUSES = (
    ("'", "", "single quotes of Python instead of JSON's", _DUMPED),
    ("None|True|False|nan", "", "Python's None, True or False", _DUMPED),
    ("[“”„«]", "", "typographic quotes", 'write "'),
    (r"//|/\*|#", "", "a comment", "remove it"),
    ("", "Invalid control", "a line break or another control character within a string", _DUMPED),
    ("", "Invalid \\", "a backslash that escapes nothing", "write \\\\ for it"),
)
# Fields of a record: an object that has one is no wrapper, whatever lists it has beside it.
_FIELDS = ("instruction", "prompt", "question", "query", "input", "output", "answer", "text", "messages")
# Names of the one list in an object that a file is wrapped in; they name no field of a record.
_WRAPPERS = ("data", "train", "training", "examples", "rows", "items", "instances", "records", "samples")
_OTHERS = ("test", "validation", "valid", "val", "dev", "eval")  # lists that are not to be trained on


# A text of any length, by a cursor


class _Text:
    """A cursor over a JSON text that holds one chunk at a time."""

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
                    problem, fix = _told(error, "", ended=True)
                    at = f"{self.name}:{line}"
                    raise InputError(problem, at=at, fix=fix or "correct the file") from error
        self.line += self.text.count("\n", self.at, end)
        self.at = end
        return value

    def items(self) -> Iterator[Placed]:
        """The items of an array that is the rest of the text."""
        yield from self.array()
        if self.peek():
            raise InputError("text after the end of the array", at=self.place, fix="remove it")

    def array(self) -> Iterator[Placed]:
        """The items of the array that begins at the cursor; a comma behind the last is passed over.

        An item that begins in the line of the one before it is also told by its number.
        """
        self.take("[")
        number, last = 0, ""
        while self.peek() != "]":
            number, place = number + 1, self.place
            yield f"{place} (record {number})" if place == last else place, self.item()
            last = place
            if self.peek() != "]":
                self.take(",]")
        self.take("]")

    def values(self) -> Iterator[Placed]:
        """Values one behind the other, over any number of lines, with or without commas between them."""
        while self.peek():
            place = self.place
            yield place, self.item()
            if self.peek() == ",":
                self.take(",")

    def over_lines(self) -> bool:
        """Whether the first object is written over several lines, as with an indent."""
        first, line_end, _ = self.text.lstrip().partition("\n")
        return bool(line_end) and first.rstrip().endswith(("{", "[", ",")) and not _is_whole(first)

    def wraps(self) -> str:
        """The name of the list of records in an object that is the whole text; "" if it is none.

        A list of turns is no list of records, and an object that others follow is a record.
        """
        first, _, rest = self.text.lstrip().partition("\n")
        if rest.lstrip().startswith("{") and _is_whole(first):
            return ""
        self.take("{")
        while self.peek() == '"':
            key: str = self.item()
            self.take(":")
            if key in _FIELDS:
                return ""
            if self.peek() == "[" and key in _WRAPPERS:
                self.take("[")
                item = self.item() if self.peek() == "{" else None
                return key if isinstance(item, dict) and not {"role", "from"} & set(item) else ""
            self.item()
            if self.peek() == ",":
                self.take(",")
        return ""

    def wrapped(self, wrapper: str) -> Iterator[Placed]:
        """The items of one member of the object that is the whole text; the other members hold none."""
        self.take("{")
        while self.peek() != "}":
            place, key = self.place, self.item()
            self.take(":")
            if key == wrapper:
                yield from self.array()
            elif key in _FIELDS:
                problem = f"a record's field {key!r} stands beside the list of records {wrapper!r}"
                raise InputError(problem, at=place, fix="write one record a line")
            elif self.peek() == "[" and key in (*_WRAPPERS, *_OTHERS):
                problem = f"the file holds several lists of records: {wrapper!r} and {key!r}"
                raise InputError(problem, at=place, fix="write each into a file of its own")
            else:
                self.item()
            if self.peek() != "}":
                self.take(",}")
        self.take("}")
        if self.peek():
            problem = f"text after the end of the object around {wrapper!r}"
            raise InputError(problem, at=self.place, fix="remove it, or write one record a line")
