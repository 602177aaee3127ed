"""Reading the header of a GGUF file, checked before anything native reads it.

Models, adapters and importance matrices are read alike. No weights are read and arrays are left undecoded: a
file with 150,000 tokens opens in 0.2 seconds. llama.cpp can abort the whole process on a
damaged file, so every file passes through here first.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    "GGUF" | u32 version | u64 tensors | u64 pairs
    pair   : string key | u32 type | value            string: u64 length | UTF-8
    array  : u32 element type | u64 count | elements
    tensor : string name | u32 dims | u64 dim[dims], cols first | u32 type | u64 offset from the data's start
    padding to general.alignment | data
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from lorafold.errors import InputError
from lorafold.files.signatures import HEAD_BYTES, another_file
from lorafold.gguf_file.header import (
    ARRAY,
    BOOL,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    UINT32,
    GgufArray,
    GgufHeader,
    GgufTensor,
    MetadataValue,
)

_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 63  # GGML_MAX_NAME, less the terminating zero
MAX_KEY = 65535


class _Damaged(Exception):
    """What is wrong, for `read_gguf_header` to put a file and a cure to it."""


class _Short(Exception):
    """The bytes that are there end before the header does, and the file does not."""


class _Cursor:
    """Reads little-endian values from the beginning of a file, and never past its end."""

    def __init__(self, buffer: mmap.mmap | bytes, size: int) -> None:
        self.buffer = buffer
        self.size = size
        self.at = 0

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise _Damaged(f"{what} takes {count:,} bytes at {self.at:,}, but the file ends at {self.size:,}")
        if count > len(self.buffer) - self.at:
            raise _Short

    def reach(self, at: int, key: str) -> None:
        """Check that an array ends before the file does."""
        if at > self.size:
            raise _Damaged(f"array {key} runs past the file's end")
        if at > len(self.buffer):
            raise _Short

    def scalar(self, code: str, what: str) -> int | float | bool:
        width = struct.calcsize("<" + code)
        self.need(width, what)
        (value,) = struct.unpack_from("<" + code, self.buffer, self.at)
        self.at += width
        assert isinstance(value, (int, float))
        return value

    def integer(self, code: str, what: str) -> int:
        return int(self.scalar(code, what))

    def string(self, what: str) -> bytes:
        length = self.integer("Q", f"the length of {what}")
        self.need(length, what)
        self.at += length
        return self.buffer[self.at - length : self.at]

    def name(self, what: str, limit: int) -> str:
        raw = self.string(what)
        if not raw or len(raw) > limit:
            raise _Damaged(f"{what} has {len(raw):,} bytes, expected 1 to {limit}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"{what} is not UTF-8: {raw[:60]!r}") from None

    def array(self, key: str) -> GgufArray:
        kind = self.integer("I", f"the type of array {key}")
        count = self.integer("Q", f"the length of array {key}")
        start = self.at
        if kind == STRING:
            self.need(8 * count, f"array {key} of {count:,} strings")
            buffer, have, at = self.buffer, len(self.buffer), start
            unpack = struct.Struct("<Q").unpack_from
            for _ in range(count):  # hot: a vocabulary and its merges are 400,000 strings
                if at + 8 > have:
                    self.reach(at + 8, key)
                at += 8 + unpack(buffer, at)[0]
            self.reach(at, key)
            self.at = at
        elif kind in SCALARS:
            nbytes = SCALARS[kind][1] * count
            self.need(nbytes, f"array {key} of {count:,} numbers")
            self.at += nbytes
        else:
            raise _Damaged(f"array {key} holds elements of type {kind}, which the format does not have")
        return GgufArray(kind, count, self.buffer[start : self.at])


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Args:
        path: the file.

    Returns:
        Metadata and tensor entries; every tensor is known to lie inside the file.

    Raises:
        InputError: not a GGUF, truncated or inconsistent.
    """
    try:
        with open(path, "rb") as file:
            _check_start(path, file.read(HEAD_BYTES))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                header = _header(path, _Cursor(buffer, len(buffer)))
                assert header is not None
                return header
    except FileNotFoundError as error:
        raise InputError("no such file", at=path, fix="check the path") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", at=path, fix="check the file") from error


def parse_gguf_header(path: Path, start: bytes, size: int) -> GgufHeader | None:
    """Read and check a header of which only the beginning of the file is at hand.

    Args:
        path: what the file is called in messages.
        start: its first bytes.
        size: bytes of the whole file.

    Returns:
        As `read_gguf_header`; None if the header is longer than `start`.

    Raises:
        InputError: not a GGUF, truncated or inconsistent.
    """
    _check_start(path, start[:HEAD_BYTES])
    return _header(path, _Cursor(start, size))


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != b"GGUF" or len(start) < 24:
        raise another_file(path, start, own="a GGUF file") or InputError(
            _not_gguf(start), at=path, fix="give a .gguf file"
        )


def _header(path: Path, cursor: _Cursor) -> GgufHeader | None:
    try:
        return _parse(path, cursor)
    except _Short:
        return None
    except _Damaged as damage:
        fix = "download or export the file again"
        raise InputError(f"damaged GGUF: {damage}", at=path, fix=fix) from None


def _not_gguf(start: bytes) -> str:
    if start[:4] == b"GGUF":
        return f"a GGUF of {len(start)} bytes, which is less than its header"
    return f"not a GGUF: it begins with {start[:4]!r}, expected b'GGUF'" if start else "the file is empty"


def _parse(path: Path, cursor: _Cursor) -> GgufHeader:
    cursor.at = 4
    version = cursor.integer("I", "the version")
    if version & 0xFFFF == 0 and version:
        raise _Damaged("written for machines of the other byte order (big-endian)")
    if version not in _VERSIONS:
        raise _Damaged(f"version {version}, expected {' or '.join(map(str, _VERSIONS))}")
    tensor_count = cursor.integer("q", "the number of tensors")
    pair_count = cursor.integer("q", "the number of metadata pairs")
    # The smallest tensor entry has 8+1+4+8+4+8 bytes, the smallest pair 8+1+4+1.
    for what, count, smallest in (("tensors", tensor_count, 33), ("metadata pairs", pair_count, 14)):
        if not 0 <= count <= cursor.size // smallest:
            raise _Damaged(f"{count:,} {what} do not fit into {cursor.size:,} bytes")
    metadata: dict[str, MetadataValue] = {}
    types: dict[str, int] = {}
    for _ in range(pair_count):
        key = cursor.name("a metadata key", MAX_KEY)
        if key in metadata:
            raise _Damaged(f"metadata key {key} occurs twice")
        types[key] = kind = cursor.integer("I", f"the type of {key}")
        metadata[key] = _value(cursor, key, kind)
    alignment = _alignment(metadata, types)
    entries = _tensor_entries(cursor, tensor_count)
    data = -(-cursor.at // alignment) * alignment
    return GgufHeader(
        path, version, metadata, types, _place(entries, data, alignment, cursor.size), cursor.size
    )


def _value(cursor: _Cursor, key: str, kind: int) -> MetadataValue:
    if kind == STRING:
        return cursor.string(key).decode("utf-8", errors="replace")
    if kind == ARRAY:
        return cursor.array(key)
    if kind not in SCALARS:
        raise _Damaged(f"{key} has value type {kind}, which the format does not have")
    if kind == BOOL:
        byte = cursor.integer("B", key)
        if byte > 1:
            raise _Damaged(f"{key} is a truth value of {byte}, expected 0 or 1")
        return bool(byte)
    return cursor.scalar(SCALARS[kind][0], key)


def _alignment(metadata: Mapping[str, MetadataValue], types: Mapping[str, int]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", UINT32) != UINT32 or not isinstance(value, int):
        raise _Damaged("general.alignment is not a 32-bit number")
    if value < 8 or value & (value - 1):
        raise _Damaged(f"general.alignment is {value}, expected a power of two from 8")
    return value


_Entry = tuple[str, tuple[int, ...], int, int]  # name, dims as in the file, type, relative offset


def _tensor_entries(cursor: _Cursor, count: int) -> list[_Entry]:
    entries = []
    for _ in range(count):
        name = cursor.name("a tensor's name", MAX_NAME)
        dims_count = cursor.integer("I", f"the dimensions of {name}")
        if not 1 <= dims_count <= MAX_DIMS:
            raise _Damaged(f"tensor {name} has {dims_count} dimensions, expected 1 to {MAX_DIMS}")
        dims = tuple(cursor.integer("q", f"a dimension of {name}") for _ in range(dims_count))
        kind = cursor.integer("I", f"the type of {name}")
        entries.append((name, dims, kind, cursor.integer("Q", f"the offset of {name}")))
    return entries


def _place(entries: list[_Entry], data: int, alignment: int, size: int) -> dict[str, GgufTensor]:
    """Check that the tensors lie one after the other, aligned, inside the file."""
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, dims, kind, offset in entries:
        if name in tensors:
            raise _Damaged(f"tensor {name} occurs twice")
        if kind not in TENSOR_TYPES:
            raise _Damaged(f"tensor {name} has type {kind}, which this version does not know")
        if min(dims) < 1:
            raise _Damaged(f"tensor {name} has the shape {list(dims)}")
        count = 1
        for dim in dims:
            count *= dim
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if dims[0] % block:
            raise _Damaged(
                f"tensor {name} has rows of {dims[0]:,}, which {type_name} blocks of {block} do not divide"
            )
        nbytes = count // block * block_bytes
        if nbytes >= 2**62:
            raise _Damaged(f"tensor {name} has the shape {list(dims)}, more than any memory")
        if offset != expected:
            raise _Damaged(f"tensor {name} lies at offset {offset:,}, expected {expected:,}")
        if data + offset + nbytes > size:
            raise _Damaged(
                f"tensor {name} ends at {data + offset + nbytes:,}, but the file ends at {size:,} (truncated)"
            )
        tensors[name] = GgufTensor(name, tuple(reversed(dims)), kind, data + offset, nbytes)
        expected = -(-(offset + nbytes) // alignment) * alignment
    return tensors
