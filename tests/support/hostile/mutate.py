"""Changes of a file's bytes that keep enough of its form to reach what lies behind the first check.

Each form has changes of its own: a JSON text is changed at its values, a text at its words and lines, a
binary file at its records. A share of the changes takes the file as bytes: bits, numbers at the edges of
their types, pieces doubled, removed or taken from another file.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from hostile.binaries import RECORDS
from hostile.texts import WORDS, change_text
from hostile.trees import TEXTS, change_tree

_INTEGERS = (
    0,
    1,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**63,
    2**64 - 1,
    100_000_000,
    2**40,
)


def mutate(data: bytes, form: str, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """A changed copy.

    Args:
        data: the file.
        form: "json" if it is a JSON text, "lines" if each line is one, a key of `WORDS` if it is a text,
            one of `RECORDS` if it is a binary file with records, else "bytes".
        dice: decides everything.
        others: further files, of which pieces may be taken.
    """
    times = dice.choice((1, 1, 1, 2, 3, 6))
    made = None
    if dice.random() < 0.88:
        if form == "json":
            made = change_tree(data, dice, others, times)
        elif form == "lines":
            made = _change_lines(data, dice, others, times)
        elif form in WORDS:
            made = change_text(data, form, dice, others, times)
        elif form in RECORDS:
            made = RECORDS[form](data, dice, others, times)
    if made is not None:
        return made
    for _ in range(times):
        data = dice.choice(_BYTES)(data, dice, others)
    return data


def _change_lines(data: bytes, dice: random.Random, others: Sequence[bytes], times: int) -> bytes:
    """Some lines changed as JSON, left out, doubled, or taken from another file."""
    lines = data.split(b"\n")
    at, what = dice.randrange(len(lines)), dice.random()
    if what < 0.06:
        del lines[at]
    elif what < 0.12:
        lines.insert(at, lines[at])
    elif what < 0.18 and others:
        lines.insert(at, dice.choice(dice.choice(others).split(b"\n")))
    else:
        if not lines[at]:  # the last one, mostly
            at = 0
        lines[at] = change_tree(lines[at], dice, others, times) or lines[at]
    return b"\n".join(lines)


_BytesChange = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def _flip(data: bytes, dice: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return bytes([dice.randrange(256)])
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def _number(data: bytes, dice: random.Random, _: Sequence[bytes]) -> bytes:
    width, code = dice.choice(((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q"), (4, ">I"), (8, ">Q")))
    raw = struct.pack(code, dice.choice(_INTEGERS) & (1 << 8 * width) - 1)
    at = dice.randrange(len(data) + 1)
    return data[:at] + raw + data[at + width :]


def _remove(data: bytes, dice: random.Random, _: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 2, 4, 8, 64, len(data))) :]


def _double(data: bytes, dice: random.Random, _: Sequence[bytes]) -> bytes:
    at, size = dice.randrange(len(data) + 1), dice.choice((1, 4, 8, 64, 512))
    return data[:at] + data[at : at + size] * dice.choice((2, 2, 3, 40)) + data[at + size :]


def _insert(data: bytes, dice: random.Random, _: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    text = dice.choice(TEXTS)[1:-1]
    return data[:at] + (text if dice.random() < 0.5 else dice.randbytes(dice.choice((1, 4, 16)))) + data[at:]


def _splice(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    if not others:
        return _double(data, dice, others)
    other = dice.choice(others)
    here, there = dice.randrange(len(data) + 1), dice.randrange(len(other) + 1)
    return data[:here] + other[there:]


_BYTES: tuple[_BytesChange, ...] = (_flip, _number, _number, _remove, _double, _insert, _splice)
