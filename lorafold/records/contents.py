"""What a file holds, told by its first bytes: its name may say something else.

Downloads leave web pages, Git LFS pointers and compressed bytes under the names of data, and Excel writes
UTF-16. What can mean only one thing is read as what it is; the rest is refused by name (`signatures`).
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, cast

from lorafold.errors import InputError
from lorafold.files.signatures import HEAD_BYTES, told_by
from lorafold.records.packed import kind_of, unpacked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MOST_PACKINGS = 3  # one within the other

# Compressed files and tables, as `signatures` calls them, and how they are read.
_PACKINGS = {"a gzip file": ".gz", "a bzip2 file": ".bz2", "an xz file": ".xz", "a Zstandard file": ".zst"}
_TABLES = {"a Parquet file (a data set)": ".parquet", "an Arrow file (a data set)": ".arrow"}
_TEXTS = ("UTF-16", "a server's refusal (JSON)")  # a record may begin with a field called "error"
_PROSE = ("a web page", "a server's", "a file with an open git conflict")  # what a plain text may be
# Cures for data sets; of anything else that of `signatures` holds.
_FIXES = {
    "a zip archive": "name it .zip if it is one, or save a workbook's sheet as CSV (UTF-8)",
    "a pickle": "save it as parquet",
    "a PyTorch file": "save its rows as JSON lines",
    "a SQLite database": "export its rows as JSON lines",
    "a NumPy array": "save its rows as JSON lines",
    "a PDF": "give its text",
    "an image": "give text",
}
_MARKS = ((codecs.BOM_UTF8, ""), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@contextmanager
def content_of(file: IO[bytes], name: str) -> Iterator[tuple[IO[bytes], str]]:
    """The content of a file, unpacked and in UTF-8 if it is text, and its type (".jsonl").

    Args:
        file: the bytes, from their beginning.
        name: of the file.

    Raises:
        InputError: it is damaged, or something that holds no records.
        SystemFault: the package that reads Zstandard is not installed.
    """
    kind, packed = kind_of(name)
    refuse_foreign(file, name)
    with ExitStack() as stack:
        content = stack.enter_context(unpacked(file, packed, name))
        for _ in range(_MOST_PACKINGS):
            if not (packing := _read_as(_PACKINGS, _head(content))):
                break
            content = stack.enter_context(unpacked(content, (packing,), name))
        if content is not file:
            refuse_foreign(content, name)
        head = _head(content)
        kind = _read_as(_TABLES, head) or kind
        if kind not in _TABLES.values() and (encoding := _encoding(head)):
            content = cast(IO[bytes], io.BufferedReader(_AsUtf8(content, encoding, name)))
        yield content, kind


def refuse_foreign(file: IO[bytes], name: str) -> None:
    """Look whether a file is something that its name does not say.

    Raises:
        InputError: it is.
    """
    kind, _ = kind_of(name)
    found = told_by(_head(file))
    own = {".zip": ("a zip", "a PyTorch file"), ".tar": ("a tar",), ".txt": _PROSE}.get(kind, ())
    if found is None or found.what.startswith((*_PACKINGS, *_TABLES, *_TEXTS, *own)):
        return
    fix = next((fix for what, fix in _FIXES.items() if found.what.startswith(what)), found.fix)
    raise InputError(f"this is {found.what}, not data", at=name, fix=fix)


def _head(file: IO[bytes]) -> bytes:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return head


def _read_as(table: Mapping[str, str], head: bytes) -> str:
    """How a table of ours reads what begins like this; "" if it does not."""
    found = told_by(head)
    return table.get(found.what, "") if found else ""


def _encoding(head: bytes) -> str:
    """UTF-16 by its mark, or by the zeros in the first four letters; "" for anything else."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    zeros = [byte == 0 for byte in head[:8]]
    return {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(
        (zeros[0], zeros[1]) if len(zeros) == 8 and zeros == zeros[:2] * 4 else (True, True), ""
    )


class _AsUtf8(io.RawIOBase):
    """A text in another encoding, read as UTF-8. It seeks to its beginning alone."""

    def __init__(self, file: IO[bytes], encoding: str, name: str) -> None:
        self._file, self._encoding, self._name = file, encoding, name
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset or whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only to the beginning")
        self._file.seek(0)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._left, self._at, self._ended = b"", 0, False
        return 0

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._left and not self._ended:
            raw = self._file.read(1 << 16)
            self._ended = not raw
            try:
                self._left = self._decoder.decode(raw, final=self._ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                problem = f"invalid {self._encoding.upper()} ({error.reason})"
                raise InputError(problem, at=self._name, fix="save the file as UTF-8") from error
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._left))
        view[:size], self._left = self._left[:size], self._left[size:]
        self._at += size
        return size
