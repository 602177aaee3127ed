"""The fields of a protobuf message, as SentencePiece's tokenizer.model is one.

Encoding: https://protobuf.dev/programming-guides/encoding/
    field : varint number << 3 | wire type, then the value
    wire  : 0 varint, 1 eight bytes, 2 varint length and so many bytes, 5 four bytes
"""

from __future__ import annotations

from collections.abc import Iterator

_FIXED = {1: 8, 5: 4}


def fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value): varints as int, the other wire types as views of their bytes.

    Raises:
        ValueError: the message is damaged.
    """
    view, data, at = memoryview(message), bytes(message), 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire != 2 and wire not in _FIXED:
            raise ValueError(f"field {number} has the wire type {wire}")
        size, at = _varint(data, at) if wire == 2 else (_FIXED[wire], at)
        if size > len(data) - at:
            raise ValueError(f"field {number} takes {size:,} bytes at {at:,} of {len(data):,}")
        yield number, view[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    if at < len(data) and data[at] < 0x80:  # most of them
        return data[at], at + 1
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number has no end at byte {at:,}")
