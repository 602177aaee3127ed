"""What a disk may hold after the power is lost at any moment of a recorded run.

The log of a run is replayed into a file system of nodes, each with what programs see and what a sync has made
sure of: POSIX promises a file's bytes after fsync(file), a name after fsync(folder), and nothing else. From
every moment three kinds of disk can follow:

    synced    only what a sync made sure of, names and bytes: the least that a disk may hold
    names     every change of a name, but of the bytes only what was synced: a journal of names alone
    torn      every change of a name, and of the bytes that were not synced a random part
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from faults import Call

KINDS = ("synced", "names", "torn")


@dataclass(slots=True, eq=False)
class File:
    """A file: its number, the bytes that programs see, and those that were synced."""

    inode: int = 0
    seen: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(slots=True, eq=False)
class Folder:
    """A folder: the entries that programs see, and those that were synced."""

    seen: dict[str, File | Folder] = field(default_factory=dict)
    synced: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """A folder on a disk that is watched through a log.

    Args:
        root: the folder, as it is before the run: all of it counts as synced.
    """

    def __init__(self, root: Path) -> None:
        self.root = PurePosixPath(root)
        self.top = _read(root)

    def apply(self, call: Call) -> None:
        """One entry of the log; "call" entries change nothing."""
        if call.kind in ("call", "read", "open", "lock"):
            return
        where, name = self._place(call.path)
        if call.kind in ("create", "touch"):
            found = where.seen.setdefault(name, File(call.offset))
            if call.kind == "create" and isinstance(found, File):
                found.seen = bytearray()
        elif call.kind == "mkdir":
            where.seen[name] = Folder()
        elif call.kind == "unlink":
            where.seen.pop(name, None)
        elif call.kind in ("rename", "exchange"):
            to, new = self._place(call.second)
            moved, other = where.seen.pop(name, File()), to.seen.get(new)
            to.seen[new] = moved
            if call.kind == "exchange" and other is not None:
                where.seen[name] = other
        else:
            if call.kind == "fsync" and name:
                self._meet(where, name, call.offset)
            self._change(where.seen[name] if name else self.top, call)

    def _meet(self, where: Folder, name: str, inode: int) -> None:
        """Libraries that work past the C library make and rename files: both are seen at the next sync."""
        found = where.seen.get(name)
        if isinstance(found, Folder) or (found is not None and found.inode == inode):
            return
        former = next((key for key, node in where.seen.items() if getattr(node, "inode", 0) == inode), None)
        where.seen[name] = found or File(inode) if former is None else where.seen.pop(former)

    def _change(self, node: File | Folder, call: Call) -> None:
        if isinstance(node, Folder):
            node.synced = dict(node.seen)
        elif call.kind == "write":
            node.seen.extend(bytes(max(0, call.offset - len(node.seen))))
            node.seen[call.offset : call.offset + len(call.data)] = call.data
        elif call.kind == "truncate":
            del node.seen[call.offset :]
            node.seen.extend(bytes(call.offset - len(node.seen)))
        elif call.kind == "allocate":
            node.seen.extend(bytes(max(0, call.offset - len(node.seen))))
        elif call.kind == "fsync":
            node.seen, node.synced = bytearray(call.data), call.data

    def _place(self, path: str) -> tuple[Folder, str]:
        parts = PurePosixPath(path).relative_to(self.root).parts
        node = self.top
        for part in parts[:-1]:
            inner = node.seen[part]
            assert isinstance(inner, Folder)
            node = inner
        return node, parts[-1] if parts else ""

    def write(self, to: Path, kind: str, seed: int = 0) -> None:
        """Write the disk that is left if the power goes now.

        Args:
            to: a new folder.
            kind: one of `KINDS`.
            seed: of what is torn.
        """
        _write(self.top, to, kind, random.Random(seed))


def moments(disk: Disk, log: Iterable[Call]) -> Iterator[int]:
    """Replay a log, and stop after every entry that changed something; yields its number."""
    for number, call in enumerate(log):
        disk.apply(call)
        if call.kind != "call":
            yield number


def _read(path: Path) -> Folder:
    entries: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        if entry.is_dir():
            entries[entry.name] = _read(entry)
        else:
            content = entry.read_bytes()
            entries[entry.name] = File(entry.stat().st_ino, bytearray(content), content)
    return Folder(entries, dict(entries))


def _write(folder: Folder, to: Path, kind: str, draw: random.Random) -> None:
    to.mkdir()
    for name, node in (folder.synced if kind == "synced" else folder.seen).items():
        if isinstance(node, Folder):
            _write(node, to / name, kind, draw)
        else:
            (to / name).write_bytes(_torn(node, draw) if kind == "torn" else node.synced)


def _torn(file: File, draw: random.Random) -> bytes:
    """The synced bytes under a random part of what was written since; the length lies in between."""
    if bytes(file.seen) == file.synced:
        return file.synced
    size = draw.randint(min(len(file.seen), len(file.synced)), max(len(file.seen), len(file.synced)))
    torn = bytearray(file.synced[:size].ljust(size, b"\0"))
    cut = draw.randint(0, size)
    torn[:cut] = file.seen[:cut]
    return bytes(torn)
