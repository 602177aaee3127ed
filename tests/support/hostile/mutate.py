"""Changes of a file's bytes that keep enough of its form to reach what lies behind the first check.

A JSON text is changed as a tree: values of other types and sizes, keys that are missing, doubled or
swapped. Anything else is changed as bytes: bits, numbers at the edges of their types, pieces doubled,
removed or taken from another file.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

_TEXTS = (
    "",
    "x",
    "../../outside",
    "/etc/passwd",
    "\x1b]52;c;eA==\x07",
    "\udc80",
    "\u202e",
    "a" * 300,
    "NaN",
    "<|im_end|>",
    "{{ 1 }}",
    "main",
    "0",
    "-1",
    "__class__",
    "C:\\x",
    "\0",
    "é🐚",
    "%s",
    "model.layers.0",
)
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
)
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
        form: "json" if it is a JSON text, "lines" if each line is one, else "bytes".
        dice: decides everything.
        others: further files, of which pieces may be taken.
    """
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        if form == "json" and dice.random() < 0.85:
            data = _tree(data, dice)
        elif form == "lines" and dice.random() < 0.85:
            lines = data.split(b"\n")
            at = dice.randrange(len(lines))
            lines[at : at + 1] = [_tree(lines[at], dice)] * dice.choice((1, 1, 1, 0, 2))
            data = b"\n".join(lines)
        else:
            data = dice.choice(_BYTES)(data, dice, others)
    return data


def _tree(data: bytes, dice: random.Random) -> bytes:
    try:
        value = _changed(json.loads(data), dice)
        text = json.dumps(value, ensure_ascii=dice.random() < 0.5)
    except (ValueError, RecursionError):  # no JSON, or too deep to be changed as a tree
        return dice.choice(_BYTES)(data, dice, ())
    if dice.random() < 0.02 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # every key twice
    return text.encode("utf-8", "surrogatepass" if dice.random() < 0.3 else "replace")


def _changed(tree: Any, dice: random.Random) -> Any:
    """The tree with one node changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(places) < 3000:
        node = waiting.pop()
        if isinstance(node, dict):
            places += [(node, key) for key in node]
            waiting += node.values()
        elif isinstance(node, list):
            places += [(node, index) for index in range(len(node))]
            waiting += node
    if not places or dice.random() < 0.02:
        return _value(dice)
    # Keys near the root decide more than the ten thousandth entry of a list.
    node, key = places[min(int(dice.expovariate(1 / (1 + len(places) / 3))), len(places) - 1)]
    what = dice.random()
    if what < 0.15:
        del node[key]
    elif what < 0.25:
        other, there = dice.choice(places)
        there_still = there in other if isinstance(other, dict) else there < len(other)
        node[key] = copy.deepcopy(other[there]) if there_still else None
    elif what < 0.35 and isinstance(node, dict):
        node[str(_value(dice)) if dice.random() < 0.3 else dice.choice(_TEXTS)] = node.pop(key)
    elif what < 0.42:
        node[key] = [node[key]]
    elif what < 0.48:
        node[key] = {"content": node[key]}
    elif what < 0.54 and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    elif what < 0.58:
        node[key] = str(node[key])
    else:
        node[key] = _value(dice)
    return tree


def _value(dice: random.Random) -> Any:
    kind = dice.randrange(8)
    if kind == 0:
        return dice.choice((None, True, False))
    if kind in (1, 2):
        return dice.choice(_TEXTS)
    if kind in (3, 4):
        return dice.choice(_NUMBERS)
    if kind == 5:
        return [_value(dice) for _ in range(dice.randrange(3))]
    if kind == 6:
        return {dice.choice(_TEXTS): _value(dice) for _ in range(dice.randrange(3))}
    deep: Any = dice.choice(_TEXTS)
    for _ in range(dice.choice((3, 30, 300))):
        deep = [deep]
    return deep


_Change = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


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
    text = dice.choice(_TEXTS).encode("utf-8", "surrogatepass")
    return data[:at] + (text if dice.random() < 0.5 else dice.randbytes(dice.choice((1, 4, 16)))) + data[at:]


def _splice(data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
    if not others:
        return _double(data, dice, others)
    other = dice.choice(others)
    here, there = dice.randrange(len(data) + 1), dice.randrange(len(other) + 1)
    return data[:here] + other[there:]


_BYTES: tuple[_Change, ...] = (_flip, _number, _number, _remove, _double, _insert, _splice)
