"""The header of one safetensors file, validated without reading the data.

Each tensor becomes a `TensorInfo` with the absolute position of its bytes. The format
(https://github.com/huggingface/safetensors, "Format"):

    | 8 bytes: N, little-endian u64 | N bytes: JSON header, starts with "{", may end in spaces | data |
    header: {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]},
             "__metadata__": {str: str}}

Offsets count from the start of the data, and the tensors cover the data without overlap, hole or rest.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import operator
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from lorafold.errors import InputError, SystemFault
from lorafold.files.jsonfile import unique_keys
from lorafold.files.reading import read_faults
from lorafold.files.signatures import HEAD_BYTES, another_file

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
}  # fmt: skip
"""Bits of one element, by the format's spelling."""

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the header."""

DOWNLOAD = "download the file again"
OWN = "a safetensors file"  # in the words of `signatures`


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Args:
        name: the tensor's name in the file.
        dtype: safetensors spelling ("BF16", "F16", "F32").
        shape: as stored, rows first.
        file: the file that holds it.
        offset: first byte, counted from the start of the file.
        nbytes: size of its data in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Rows of the tensor seen as 2-D: all leading dimensions flattened; 1 for a vector or a scalar."""
        return math.prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        """Columns of the tensor seen as 2-D: its last dimension; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file.

    Args:
        path: the file.

    Returns:
        Its tensors by name, in the order of the header.

    Raises:
        InputError: any departure from the format, a truncated file, or something else under its name.
        SystemFault: the file cannot be read.
    """
    with _opened(path) as (file, size):
        try:
            header, data_start = _parse(path, file, size)
        except InputError as error:  # only now: the length of a right header may look like anything
            file.seek(0)
            raise another_file(path, file.read(HEAD_BYTES), "the weights", OWN) or error from None
        return _checked(path, header, data_start, size)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself beside its tensors.

    Args:
        path: a file whose header `read_header` has checked.

    Raises:
        InputError: the header is damaged.
        SystemFault: the file cannot be read.
    """
    with _opened(path) as (file, size):
        header, _ = _parse(path, file, size)
        return header.get("__metadata__") or {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file at its beginning, and its size."""
    with read_faults(path), path.open("rb") as file, _no_collection():
        size = file.seek(0, 2)
        file.seek(0)
        yield file, size


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector: it would walk the growing header again and again, half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class ShardFiles:
    """Open file descriptors by path. `os.preadv` has no shared position, so threads share them freely."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def read(self, path: Path, offset: int, into: memoryview, ahead: int = 0) -> None:
        """Fill `into` from the file, starting at the byte `offset`.

        `ahead` bytes behind them will be read soon; the system sees that by itself.

        Raises:
            SystemFault: the file cannot be read, or ends before `into` is full.
        """
        done = 0
        try:
            descriptor = self._descriptor(path)
            while done < len(into):
                got = os.preadv(descriptor, [into[done : done + (1 << 30)]], offset + done)
                if got == 0:
                    raise SystemFault(
                        f"ended at byte {offset + done:,}, expected more: it has changed since it was opened",
                        at=path,
                        fix="let nothing write to the folder while it is read",
                    )
                done += got
        except OSError as error:
            raise SystemFault(f"cannot read: {error.strerror}", at=path, fix="check the disk") from None

    def _descriptor(self, path: Path) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            fresh = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            descriptor = self._open.setdefault(path, fresh)  # atomic: of two threads one wins
            if descriptor != fresh:
                os.close(fresh)
        return descriptor

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close every file. A later `read` opens it again."""
        # `os.close` is bound here, for when the interpreter ends the modules may be gone before this object.
        while self._open:
            _close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _parse(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header's JSON object and the position where the data starts."""
    if size < 8:
        raise InputError(f"not a safetensors file: {size} bytes, expected at least 8", at=path, fix=DOWNLOAD)
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(
            f"header length {length:,} is over the format's limit of {MAX_HEADER_BYTES:,} bytes",
            at=path,
            fix="check that this is a safetensors file, and " + DOWNLOAD,
        )
    if 8 + length > size:
        raise InputError(
            f"truncated: the header alone needs {8 + length:,} bytes, got {size:,}", at=path, fix=DOWNLOAD
        )
    raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
        # A name given twice; the slow hook says which.
        if isinstance(header, dict) and raw.count(b'"data_offsets"') > len(header):
            header = json.loads(raw, object_pairs_hook=unique_keys)
    except RecursionError:
        raise InputError("header: JSON nested too deeply", at=path, fix=DOWNLOAD) from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"header is not valid JSON: {error}", at=path, fix=DOWNLOAD) from None
    if not isinstance(header, dict):
        raise InputError(f"header is a {type(header).__name__}, expected an object", at=path, fix=DOWNLOAD)
    return header, 8 + length


def _checked(path: Path, header: dict[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
    """The header's tensors, its metadata set aside."""
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # mlx writes null
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("__metadata__ is not an object of strings", at=path, fix=DOWNLOAD)
    return _place(path, header, data_start, size)


def _place(path: Path, header: dict[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
    """Check every entry, and that the entries cover the data exactly."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if type(shape) is not list or len(entry) != 3:
                raise TypeError
            count = 1
            for dim in shape:
                if type(dim) is not int or dim < 0:
                    raise ValueError
                count *= dim
                if count >> 63:  # also if a later size is 0, as the format's own reader has it
                    raise ValueError
            whole = type(begin) is int and type(end) is int and 0 <= begin <= end
            exact = whole and count * DTYPE_BITS[dtype] == (end - begin) * 8
        except (KeyError, TypeError, ValueError):
            exact = False
        if not exact:
            raise InputError(f"tensor {name!r}: {_wrong_entry(entry)}", at=path, fix=DOWNLOAD)
        spans.append((begin, end, name))
        tensors[name] = TensorInfo(name, dtype, tuple(shape), path, data_start + begin, end - begin)
    data = size - data_start
    spans.sort()
    covered, last = 0, "the start of the data"
    for begin, end, name in spans:
        if begin != covered:
            what = "overlaps" if begin < covered else f"leaves a hole of {begin - covered:,} bytes after"
            raise InputError(f"tensor {name!r} {what} {last}", at=path, fix=DOWNLOAD)
        covered, last = end, name
    if covered > data:
        raise InputError(
            f"truncated: the tensors need {data_start + covered:,} bytes, got {size:,}", at=path, fix=DOWNLOAD
        )
    if covered < data:
        raise InputError(f"{data - covered:,} bytes follow the last tensor", at=path, fix=DOWNLOAD)
    return tensors


def _wrong_entry(entry: Any) -> str:
    """Say what is wrong with an entry that `_place` refused; kept apart, for a header may hold 100,000."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "expected dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        return f"unknown dtype {dtype!r}"
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape):
        return f"shape {shape!r} is not a list of sizes"
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(offset) is not int for offset in offsets)
    ):
        return f"data_offsets {offsets!r} are not two numbers"
    if not 0 <= offsets[0] <= offsets[1]:
        return f"data_offsets {offsets!r} are not a range"
    if any(product >> 63 for product in accumulate(shape, operator.mul)):
        return f"shape {shape} overflows 63 bits"
    needs = math.prod(shape) * DTYPE_BITS[dtype] // 8
    return f"{dtype} {shape} needs {needs:,} bytes, got {offsets[1] - offsets[0]:,}"
