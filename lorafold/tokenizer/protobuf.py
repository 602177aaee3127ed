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
    view, at = memoryview(message), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(view) and shift < 64:
            byte = view[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
        raise ValueError(f"a number has no end at byte {at:,}")

    while at < len(view):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        if wire != 2 and wire not in _FIXED:
            raise ValueError(f"field {number} has the wire type {wire}")
        size = varint() if wire == 2 else _FIXED[wire]
        if size > len(view) - at:
            raise ValueError(f"field {number} takes {size:,} bytes at {at:,} of {len(view):,}")
        yield number, view[at : at + size]
        at += size
