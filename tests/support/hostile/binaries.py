"""Changes of binary files at their records: the file stays one, with another content than it had.

safetensors   | u64 length of header | header (JSON) | data |
GGUF          | "GGUF" | u32 version | u64 tensors | u64 entries | entry … | tensor … | padding | data |
  entry         | u64 length, key | u32 type | value |
  tensor        | u64 length, name | u32 dimensions | u64 size … | u32 type | u64 offset |
protobuf      | varint number << 3 | wire type | value | …
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from hostile.trees import change_tree

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a GGUF's scalars
_STRING, _ARRAY = 8, 9
_EDGES = (
    0,
    1,
    2,
    3,
    4,
    8,
    31,
    32,
    127,
    128,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)
_KEYS = (
    *(b"general.architecture", b"general.alignment", b"general.type", b"split.count", b"split.no", b"x"),
    *(b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type", b"\xff", b""),
    *(b"tokenizer.ggml.merges", b"tokenizer.ggml.eos_token_id", b"tokenizer.chat_templates", b"adapter.type"),
    *(b"tokenizer.chat_template.tool_use", b"general.file_type", b"llama.block_count", b"imatrix.chunk_size"),
)


def change_safetensors(data: bytes, dice: random.Random, others: Sequence[bytes], times: int) -> bytes | None:
    """Another header, with its own length before it and the same data behind it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > len(data) - 8:
        return None
    headers = [other[8 : 8 + int.from_bytes(other[:8], "little")] for other in others[:8]]
    made = change_tree(data[8 : 8 + size], dice, headers, times)
    if made is None:
        return None
    made += b" " * dice.choice((0, -len(made) % 8))
    body = data[8 + size :]
    if dice.random() < 0.2:
        body += bytes(dice.choice((1, 2, 4, 12)))
    return len(made).to_bytes(8, "little") + made + body


# GGUF


class _Gguf(NamedTuple):
    version: bytes
    entries: tuple[bytes, ...]
    tensors: tuple[bytes, ...]
    rest: bytes


@lru_cache(maxsize=2048)
def _gguf(data: bytes) -> _Gguf | None:
    """The records of a file; None if it is none that can be read."""
    try:
        if data[:4] != b"GGUF":
            return None
        tensors, entries = struct.unpack_from("<QQ", data, 8)
        if tensors + entries > 4000:
            return None
        at, found = 24, ([], [])  # type: tuple[int, tuple[list[bytes], list[bytes]]]
        for _ in range(entries):
            start, at = at, _text_end(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            at = _value_end(data, at + 4, kind)
            found[0].append(data[start:at])
        for _ in range(tensors):
            start, at = at, _text_end(data, at)
            (dimensions,) = struct.unpack_from("<I", data, at)
            at += 4 + 8 * min(dimensions, 64) + 12
            found[1].append(data[start:at])
        if at > len(data):
            return None
        return _Gguf(data[4:8], tuple(found[0]), tuple(found[1]), data[at + -at % 32 :])
    except (struct.error, KeyError):
        return None


def _text_end(data: bytes, at: int) -> int:
    (size,) = struct.unpack_from("<Q", data, at)
    if size > len(data):
        raise KeyError(size)
    return at + 8 + int(size)


def _value_end(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _text_end(data, at)
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return int(at + _SIZES[inner] * min(count, len(data)))
    for _ in range(min(count, 4000)):
        at = _value_end(data, at, inner)
    return at


def _key(record: bytes) -> tuple[bytes, bytes]:
    """The name that a record begins with, and all behind it."""
    end = _text_end(record, 0)
    return record[8:end], record[end:]


def _named(name: bytes, rest: bytes) -> bytes:
    return len(name).to_bytes(8, "little") + name + rest


def _gguf_value(dice: random.Random, kind: int | None = None) -> bytes:
    """A value of a GGUF, its type included if none is given."""
    chosen = dice.choice((*_SIZES, _STRING, _STRING, _ARRAY, _ARRAY)) if kind is None else kind
    head = struct.pack("<I", chosen) if kind is None else b""
    if chosen == _STRING:
        return head + _named(
            dice.choice((*_KEYS, b"llama", b"gpt2", b"adapter", b"{{ 1 }}", b"\x1b[2J")), b""
        )
    if chosen == _ARRAY:
        inner, count = dice.choice((0, 5, 6, 7, 8, 9)), dice.choice((0, 1, 2, 3, 3, 5))
        if inner == _ARRAY:
            count = min(count, 1)
        return (
            head + struct.pack("<IQ", inner, count) + b"".join(_gguf_value(dice, inner) for _ in range(count))
        )
    raw = (dice.choice(_EDGES) & (1 << 64) - 1).to_bytes(8, "little")
    return head + (raw[: _SIZES[chosen]] if dice.random() < 0.7 else dice.randbytes(_SIZES[chosen]))


def _tensor(record: bytes, dice: random.Random) -> bytes:
    """A tensor's record with another name, shape, type or place."""
    name, rest = _key(record)
    (dimensions,) = struct.unpack_from("<I", rest)
    if len(rest) != 16 + 8 * dimensions:  # more of them than any reader follows
        return record
    sizes = [*struct.unpack_from(f"<{dimensions}Q", rest, 4)]
    kind, offset = struct.unpack_from("<IQ", rest, 4 + 8 * dimensions)
    what = dice.randrange(5)
    if what == 0:
        name = dice.choice((*_KEYS, name + b".in_sum2", name + b".counts", name + b"\n", b"blk.0." + name))
    elif what == 1 and sizes:
        sizes[dice.randrange(len(sizes))] = dice.choice(_EDGES)
    elif what == 2:
        sizes = dice.choice((sizes[:-1], [*sizes, 1], [*sizes, dice.choice(_EDGES)], sizes[::-1], sizes * 3))
    elif what == 3:
        kind = dice.choice((*range(42), 2**32 - 1))
    else:
        offset = dice.choice((*_EDGES, offset + 32, offset + 1, 64, 96))
    packed = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset % 2**64)
    return _named(name, packed)


def change_gguf(data: bytes, dice: random.Random, others: Sequence[bytes], times: int) -> bytes | None:
    """Other entries and tensors, counted as they are and padded as it must be, most of the time."""
    read = _gguf(data)
    if read is None:
        return None
    entries, tensors = list(read.entries), list(read.tensors)
    for _ in range(times):
        records = tensors if tensors and dice.random() < 0.35 else entries
        if not records:
            records.append(_named(dice.choice(_KEYS), _gguf_value(dice)))
            continue
        at, what = dice.randrange(len(records)), dice.random()
        if what < 0.12:
            del records[at]
        elif what < 0.2:
            records.append(records[at])
        elif what < 0.35 and (other := _gguf(dice.choice(others or [data]))) is not None:
            pool = other.tensors if records is tensors else other.entries
            records[at : at + dice.randrange(2)] = [dice.choice(pool)] if pool else []
        elif records is tensors:
            records[at] = _tensor(records[at], dice)
        elif what < 0.5:
            records[at] = _named(dice.choice(_KEYS), _key(records[at])[1])
        elif what < 0.6:
            records.append(_named(dice.choice(_KEYS), _gguf_value(dice)))
        else:
            records[at] = _named(_key(records[at])[0], _gguf_value(dice))
    counts = [len(tensors), len(entries)]
    if dice.random() < 0.05:
        counts[dice.randrange(2)] = dice.choice(_EDGES)
    head = b"GGUF" + read.version + struct.pack("<QQ", *counts) + b"".join((*entries, *tensors))
    rest = read.rest[: dice.randrange(len(read.rest) + 1)] if dice.random() < 0.1 else read.rest
    return head + bytes(-len(head) % 32) + rest + bytes(dice.choice((0, 0, 32)))


# protobuf


@lru_cache(maxsize=1024)
def _fields(data: bytes) -> tuple[bytes, ...] | None:
    """The fields of a message, each with its number; None if it is none."""
    at, found = 0, []
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            at += size
        else:
            return None
        if at > len(data) or tag == 0:
            return None
        found.append(data[start:at])
    return tuple(found)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            break
    return value, at


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def change_protobuf(data: bytes, dice: random.Random, others: Sequence[bytes], times: int) -> bytes | None:
    """Fields that are changed, doubled, removed or moved, also within messages, with right lengths."""
    read = _fields(data)
    if not read:
        return None
    parts = list(read)
    for _ in range(times):
        at, what = dice.randrange(len(parts)), dice.random()
        if dice.random() < 0.3:  # the settings of the model come last
            at = max(0, len(parts) - 1 - dice.randrange(4))
        if what < 0.1 and len(parts) > 1:
            del parts[at]
        elif what < 0.2:
            parts.insert(dice.randrange(len(parts) + 1), parts[at])
        elif what < 0.3 and (other := _fields(dice.choice(others or [data]))):
            parts[at] = dice.choice(other)
        else:
            parts[at] = _field(parts[at], dice)
    return b"".join(parts)


def _field(part: bytes, dice: random.Random) -> bytes:
    tag, at = _varint(part, 0)
    kind = tag & 7
    if dice.random() < 0.05:
        tag = dice.choice((8, 10, 13, 18, 26, 34, 9, 11, tag ^ 1, tag + 8))
        return _as_varint(tag) + part[at:]
    if kind == 0:
        return _as_varint(tag) + _as_varint(dice.choice(_EDGES))
    if kind != 2:
        return part[:at] + dice.choice((bytes(4), b"\xff" * 4, struct.pack("<f", dice.uniform(-9, 9))))
    _, at = _varint(part, at)
    body = part[at:]
    inner = change_protobuf(body, dice, (), 1) if len(body) < 4096 and dice.random() < 0.6 else None
    if inner is None:
        inner = dice.choice((b"", b"\xff", b"\xe2\x96\x81a", b"<0x41>", b"<s>", body * 2, body[:-1], b"a"))
    return _as_varint(tag) + _as_varint(len(inner)) + inner


Change = Callable[[bytes, random.Random, Sequence[bytes], int], bytes | None]
RECORDS: dict[str, Change] = {
    "safetensors": change_safetensors,
    "gguf": change_gguf,
    "protobuf": change_protobuf,
}
