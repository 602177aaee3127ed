"""The bytes in front of a GGUF file's tensors.

They are made before one weight has been read, with every offset in them; that is why a plan knows the exact
size of the output.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little endian:

    "GGUF" | u32 version | u64 tensors | u64 entries
    per entry:   string key | u32 type | value         string = u64 length | UTF-8 bytes
                                                       array  = u32 type | u64 count | elements
    per tensor:  string name | u32 dimensions | u64 sizes, fastest first | u32 type | u64 offset
    padding to the alignment | tensor data, each tensor padded to the alignment; offsets count from here
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.export.quant import ggml
from lorafold.gguf_file.header import GgufArray

VERSION = 3
ALIGNMENT = 32  # GGUF's default; llama.cpp's converter never writes another one

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True)
class TypedTensor:
    """A tensor and the type it is written in.

    Attributes:
        tensor: what it is made of.
        type: its type in the file.
        offset: bytes from the beginning of the data section.
    """

    tensor: MappedTensor
    type: GGMLQuantizationType
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ggml.row_size(self.type, self.tensor.cols)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, without padding."""
        return self.tensor.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file to be written.

    Attributes:
        name: file name.
        recipe: the quantization's name, e.g. "Q4_K_M".
        header: everything before the tensors' data.
        tensors: types and offsets; offsets count from the header's end.
        first: False for the further files of a split model.
        joined: what the whole file is called if this is a part of it, else None.
    """

    name: str
    recipe: str
    header: bytes
    tensors: tuple[TypedTensor, ...]
    first: bool = True
    joined: str | None = None

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        last = self.tensors[-1] if self.tensors else None
        data = 0 if last is None else last.offset + padded(last.nbytes)
        return len(self.header) + data


def place_tensors(tensors: Sequence[tuple[MappedTensor, GGMLQuantizationType]]) -> list[TypedTensor]:
    """Give each tensor its offset in the data section, in the given order."""
    placed = []
    offset = 0
    for tensor, type_ in tensors:
        placed.append(TypedTensor(tensor, type_, offset))
        offset += padded(placed[-1].nbytes)
    return placed


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode_header(metadata: Sequence[KeyValue], tensors: Sequence[TypedTensor]) -> bytes:
    """Everything before the data section, padding included."""
    header = encode_metadata(metadata, len(tensors)) + b"".join(map(encode_tensor, tensors))
    return header + bytes(padded(len(header)) - len(header))


def encode_metadata(metadata: Sequence[KeyValue], tensors: int) -> bytes:
    """The header's beginning: what stands before the list of tensors.

    Args:
        metadata: the entries.
        tensors: how many there are in the list.
    """
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, tensors, len(metadata))]
    for entry in metadata:
        parts += [_string(entry.key), struct.pack("<I", entry.type), _value(entry)]
    return b"".join(parts)


def encode_tensor(placed: TypedTensor) -> bytes:
    """One tensor's place in the header's list."""
    shape = placed.tensor.shape[::-1]
    numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, placed.type, placed.offset)
    return _string(placed.tensor.name) + numbers


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(entry: KeyValue) -> bytes:
    if entry.type == GGUFValueType.STRING:
        assert isinstance(entry.value, str)
        return _string(entry.value)
    if entry.type != GGUFValueType.ARRAY:
        return struct.pack(_SCALARS[entry.type], entry.value)
    if isinstance(entry.value, GgufArray):
        return struct.pack("<IQ", entry.value.type, entry.value.count) + entry.value.packed
    assert entry.subtype is not None and not isinstance(entry.value, (str, bool, int, float))
    head = struct.pack("<IQ", entry.subtype, len(entry.value))
    if entry.subtype == GGUFValueType.STRING:
        # Vocabularies and merges: hundreds of thousands of strings of few lengths.
        texts = [str(item).encode("utf-8") for item in entry.value]
        lengths = {length: struct.pack("<Q", length) for length in set(map(len, texts))}
        return head + b"".join([lengths[len(text)] + text for text in texts])
    return head + np.asarray(entry.value, dtype=_SCALARS[entry.subtype]).tobytes()
