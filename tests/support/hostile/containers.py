"""Archives, packed files and tables that are whole, with changed content, which no change of bytes makes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from hostile.mutate import mutate

_NAMES = (
    *("train.jsonl", "test.jsonl", "data/train.json", "a.csv", "README.md", "../x.jsonl", "/etc/x.jsonl"),
    *(
        "a\\..\\b.jsonl",
        "x.jsonl.gz",
        "inner.zip",
        "loader.py",
        "x.pkl",
        "",
        ".",
        "dir/",
        "a" * 300 + ".jsonl",
    ),
    *("\x1b[2J.jsonl", "é.jsonl", "train.parquet", "dataset_info.json", "state.json", "__MACOSX/._a.jsonl"),
)
_KEYS = (
    *("instruction", "output", "input", "messages", "conversations", "prompt", "chosen", "rejected", "text"),
    *("system", "history", "tools", "role", "content", "from", "value", "completion", "", "label", "images"),
)


def packed_texts(rows: Sequence[bytes]) -> Callable[[bytes, random.Random], bytes]:
    """What makes a packed file of changed rows, of the kind that its first byte chooses."""

    def made(_: bytes, dice: random.Random) -> bytes:
        import pyarrow

        text = _changed_lines(rows, dice)
        kind = dice.randrange(5)
        packed = (
            lambda: gzip.compress(text, 1, mtime=0),
            lambda: bz2.compress(text, 1),
            lambda: lzma.compress(text, preset=0),
            lambda: pyarrow.compress(text, codec="zstd", asbytes=True),
            lambda: text,
        )[kind]()
        if dice.random() < 0.1:
            packed = mutate(packed, "bytes", dice)
        if kind == 4 and dice.random() < 0.3:
            packed = text.decode("utf-8", "replace").encode(dice.choice(("utf-16", "utf-16-be", "utf-32")))
        return bytes([kind if dice.random() < 0.95 else dice.randrange(5)]) + packed

    return made


def _changed_lines(rows: Sequence[bytes], dice: random.Random) -> bytes:
    text = b"\n".join(dice.choice(rows) for _ in range(dice.choice((1, 2, 3))))
    return mutate(text, "lines", dice, rows) if dice.random() < 0.8 else text


def archives(rows: Sequence[bytes]) -> Callable[[bytes, random.Random], bytes]:
    """What makes a zip or a tar of changed rows under odd names, of the kind that its first byte chooses."""

    def made(_: bytes, dice: random.Random) -> bytes:
        members = [(dice.choice(_NAMES), _changed_lines(rows, dice)) for _ in range(dice.randrange(4))]
        kind = dice.randrange(3)
        body = _zipped(members, dice) if kind == 0 else _tarred(members, dice)
        if kind == 2:
            body = gzip.compress(body, 1, mtime=0)
        return bytes([kind]) + (mutate(body, "bytes", dice) if dice.random() < 0.1 else body)

    return made


def _zipped(members: Sequence[tuple[str, bytes]], dice: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name or "x")
            info.external_attr = dice.choice((0o644, 0o120777, 0o40755, 0o666)) << 16
            info.compress_type = archive.compression
            archive.writestr(info, content)
    return file.getvalue()


def _tarred(members: Sequence[tuple[str, bytes]], dice: random.Random) -> bytes:
    file, kinds = io.BytesIO(), (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"x")
    with tarfile.open(fileobj=file, mode="w", format=dice.randrange(3), errors="surrogateescape") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), dice.choice((0, 1, 2**33 - 1))
            if dice.random() < 0.2:
                info.type, info.linkname, info.size = dice.choice(kinds), dice.choice(_NAMES), 0
            try:
                archive.addfile(info, io.BytesIO(content) if info.size else None)
            except ValueError:  # a name or a number that this format cannot hold
                continue
    return file.getvalue()


def tables(write: Callable[[Any, Any], None]) -> Callable[[bytes, random.Random], bytes]:
    """What makes a table with columns of odd types, whole or with changed bytes."""

    def made(data: bytes, dice: random.Random) -> bytes:
        import pyarrow

        rows = dice.randrange(4)
        names = dice.sample(_KEYS, dice.randrange(1, 4))
        file = io.BytesIO()
        try:
            write(pyarrow.table({name: _column(rows, dice) for name in names}), file)
        except (pyarrow.ArrowException, OverflowError, TypeError):  # values of several kinds in one column
            return mutate(data, "bytes", dice)
        body = file.getvalue()
        return mutate(body, "bytes", dice) if dice.random() < 0.3 else body

    return made


def _column(rows: int, dice: random.Random) -> Any:
    import pyarrow

    kind = dice.randrange(9)
    if kind == 0:
        return pyarrow.array([_cell(dice, 2)] * rows)
    if kind == 1:
        return pyarrow.nulls(rows)
    if kind == 2:
        return pyarrow.array([dice.choice((None, b"\xff\xfe", b"a")) for _ in range(rows)], pyarrow.binary())
    if kind == 3:
        dates = dice.choice((pyarrow.timestamp("ns", tz="UTC"), pyarrow.date64(), pyarrow.duration("s")))
        return pyarrow.array([dice.choice((0, None, 2**62)) for _ in range(rows)], pyarrow.int64()).view(
            dates
        )
    if kind == 4:
        return pyarrow.array(["a", None, ""][:rows] + ["b"] * max(0, rows - 3)).dictionary_encode()
    if kind == 5:
        return pyarrow.array([[("k", _text(dice))]] * rows, pyarrow.map_(pyarrow.string(), pyarrow.string()))
    if kind == 6:
        return pyarrow.array([dice.choice((1.5, float("nan"), None)) for _ in range(rows)], pyarrow.float64())
    return pyarrow.array([_cell(dice, 3) for _ in range(rows)] if dice.random() < 0.5 else _turns(rows, dice))


def _turns(rows: int, dice: random.Random) -> list[Any]:
    roles = (*("user", "assistant", "system", "tool", "human", "gpt", "", "x"), None)
    pairs = (("role", "content"), ("from", "value"))
    role, said = dice.choice(pairs)
    return [
        [{role: dice.choice(roles), said: _text(dice)} for _ in range(dice.randrange(4))] for _ in range(rows)
    ]


def _text(dice: random.Random) -> str | None:
    return dice.choice((None, "", "a", "q\n", "\x1b[2J", "\u202e", "é🐚", "\0", json.dumps([1]), "x" * 500))


def _cell(dice: random.Random, depth: int) -> Any:
    kind = dice.randrange(6 if depth else 4)
    if kind == 0:
        return dice.choice((0, 1, -1, 2**63 - 1))
    if kind == 4:
        return [_cell(dice, depth - 1)] * dice.randrange(3)
    if kind == 5:
        return {key: _cell(dice, depth - 1) for key in dice.sample(_KEYS, dice.randrange(1, 3))}
    return _text(dice)
