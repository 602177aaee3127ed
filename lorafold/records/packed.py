"""Compressed files, read as streams: gzip, bzip2, xz and Zstandard."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from lorafold.errors import InputError
from lorafold.models import require

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


def kind_of(name: str) -> tuple[str, tuple[str, ...]]:
    """A file's type by its name, and how it is compressed: "a.jsonl.gz" -> (".jsonl", (".gz",))."""
    lower = PurePosixPath(name.replace("\\", "/")).name.lower()
    for short, long in _SHORT.items():
        lower = lower.removesuffix(short) + long if lower.endswith(short) else lower
    packed: list[str] = []
    while (suffix := PurePosixPath(lower).suffix) in OPENERS:
        packed.append(suffix)
        lower = lower.removesuffix(suffix)
    return suffix, tuple(packed)


@contextmanager
def unpacked(file: IO[bytes], packed: tuple[str, ...], name: str) -> Iterator[IO[bytes]]:
    """The content of a file that may be compressed, several times over if its name says so.

    Args:
        file: the bytes, from their beginning.
        packed: of `kind_of`.
        name: for messages.

    Raises:
        InputError: it is damaged, or not compressed in this way.
        SystemFault: the package that reads Zstandard is not installed.
    """
    try:
        inner = file
        for suffix in packed:
            inner = OPENERS[suffix](inner)
        yield inner
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if (isinstance(error, OSError) and error.errno is not None) or not packed:
            raise  # of the disk
        problem = f"not a readable {packed[0]} file ({str(error).splitlines()[0]})"
        raise InputError(problem, at=name, fix="download it again, or pack it again") from error


class _Zstandard(io.RawIOBase):
    """A Zstandard stream. It seeks as gzip's does: forward by reading, back by beginning again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._begin()

    def _begin(self) -> None:
        import pyarrow

        self._file.seek(0)
        # The stream closes the file that it is given, so it gets one that passes this on to nobody.
        held = pyarrow.PythonFile(_KeptOpen(self._file), mode="r")
        self._stream, self._at = pyarrow.CompressedInputStream(held, "zstd"), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        found = self._stream.read(len(memoryview(buffer)))
        memoryview(buffer)[: len(found)] = found
        self._at += len(found)
        return len(found)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            while self.read(1 << 20):
                pass
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._at}[whence]
        if target < self._at:
            self._begin()
        while self._at < target and self.read(min(1 << 20, target - self._at)):
            pass
        return self._at


class _KeptOpen(io.RawIOBase):
    """A file that is not closed with what reads from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._inner = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(size)


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    require("pyarrow", extra="data")
    return cast(IO[bytes], io.BufferedReader(_Zstandard(file)))


OPENERS: dict[str, Callable[[Any], IO[bytes]]] = {
    ".gz": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb")),
    ".bz2": lambda file: cast(IO[bytes], bz2.BZ2File(file)),
    ".xz": lambda file: cast(IO[bytes], lzma.LZMAFile(file)),  # noqa: SIM115 - closed with what it reads
    ".zst": _zstandard,
}
