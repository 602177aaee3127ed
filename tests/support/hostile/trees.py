"""Changes of a JSON text at its values, without reading and writing the whole of it.

The places of a text's values are found once; a change is then a cut and a paste, so that a text of ten
thousand values is changed as quickly as one of ten, and stays JSON.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_MOST = 3000  # places of a text
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
    "(",
    ".*",
    "{0}",
    "\n",
    " ",
)
TEXTS = tuple(
    dict.fromkeys(
        json.dumps(text, ensure_ascii=plain).encode("utf-8", "surrogatepass")
        for text in _TEXTS
        for plain in (True, False)
    )
)
_NUMBERS = (
    *(b"0", b"1", b"-1", b"2", b"3", b"4", b"8", b"32", b"255", b"2147483647", b"2147483648", b"4294967296"),
    *(b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1e30"),
    *(b"-9223372036854775808", b"1000000000000000000000000000000", b"0.5", b"-0.0", b"1e308", b"1e-320"),
    *(b"Infinity", b"-Infinity", b"NaN", b"1e400", b"1.0"),
)


class Place(NamedTuple):
    """A value of a text: text[start:end]; with its key, if it has one, text[entry:end]."""

    depth: int
    start: int
    end: int
    entry: int
    key_end: int


@lru_cache(maxsize=4096)
def places(text: bytes) -> tuple[Place, ...]:
    """Where the values of a text are, outer ones first. What is no JSON has the places that look like it."""
    found: list[Place] = []
    opened: list[tuple[int, int, int]] = []  # where a list or an object, its entry and its key's end are
    entry = key_end = last = last_end = -1
    for token in _TOKEN.finditer(text):
        start, end, kind = token.start(), token.end(), text[token.start()]
        if kind == 0x3A:  # :
            entry, key_end = last, last_end
            if found and found[-1].start == last:
                found.pop()
        elif kind == 0x2C:  # ,
            entry = key_end = -1
        elif kind in b"{[":
            opened.append((start, entry if entry >= 0 else start, key_end))
            entry = key_end = -1
        elif kind in b"}]":
            if opened:
                begun, its_entry, its_key = opened.pop()
                found.append(Place(len(opened), begun, end, its_entry, its_key))
            entry = key_end = -1
        else:
            last, last_end = start, end
            found.append(Place(len(opened), start, end, entry if entry >= 0 else start, key_end))
        if len(found) >= _MOST:
            break
    return tuple(sorted(found))


def value(dice: random.Random) -> bytes:
    """Any JSON value."""
    kind = dice.randrange(8)
    if kind == 0:
        return dice.choice((b"null", b"true", b"false"))
    if kind in (1, 2):
        return dice.choice(TEXTS)
    if kind in (3, 4):
        return dice.choice(_NUMBERS)
    if kind == 5:
        return b"[" + b",".join(value(dice) for _ in range(dice.randrange(3))) + b"]"
    if kind == 6:
        pairs = (dice.choice(TEXTS) + b":" + value(dice) for _ in range(dice.randrange(3)))
        return b"{" + b",".join(pairs) + b"}"
    deep = dice.choice((3, 30, 300))
    return b"[" * deep + dice.choice(TEXTS) + b"]" * deep


def change_tree(text: bytes, dice: random.Random, others: Sequence[bytes], times: int) -> bytes | None:
    """A copy with so many values changed, removed, doubled or renamed; None if there are none."""
    found = places(text)
    if not found:
        return None
    if dice.random() < 0.01:
        return value(dice)
    # Keys near the root decide more than the ten thousandth entry of a list.
    likely = 1 / (1 + len(found) / 3)
    chosen = {min(int(dice.expovariate(likely)), len(found) - 1) for _ in range(times)}
    before = len(text)
    for place in sorted((found[at] for at in chosen), key=lambda place: -place.start):
        if place.end <= before:
            text = _edited(text, place, dice, others)
            before = place.entry
    return text


def _edited(text: bytes, place: Place, dice: random.Random, others: Sequence[bytes]) -> bytes:
    _, start, end, entry, key_end = place
    here, what = text[start:end], dice.random()
    if what < 0.13:
        return _removed(text, entry, end)
    if what < 0.30:
        other = dice.choice(others) if others and dice.random() < 0.7 else text
        there = places(other)
        if not there:
            return text
        taken = dice.choice(there)
        if key_end >= 0 and taken.key_end >= 0 and dice.random() < 0.5:  # with its key
            return text[:entry] + other[taken.entry : taken.end] + text[end:]
        made = other[taken.start : taken.end]
    elif what < 0.37 and key_end >= 0:
        return text[:entry] + dice.choice(TEXTS) + text[key_end:]
    elif what < 0.43:
        made = b"[" + here + b"]"
    elif what < 0.48:
        made = b'{"content":' + here + b"}"
    elif what < 0.54:
        return text[:end] + b"," + text[entry:end] + text[end:]
    elif what < 0.58:
        made = json.dumps(here.decode("utf-8", "replace")).encode()
    else:
        made = value(dice)
    return text[:start] + made + text[end:]


def _removed(text: bytes, start: int, end: int) -> bytes:
    """Without an entry and a comma beside it."""
    after = text[end:].lstrip()
    if after[:1] == b",":
        return text[:start] + after[1:]
    return text[:start].rstrip().removesuffix(b",") + text[end:]
