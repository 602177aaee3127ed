"""sha256 of the weights that answer: computed in the background, and remembered while a file stays as it is.

Gigabytes take seconds to read. As git does for its index, a file whose device, inode, size and times of
change are those noted before is taken to be the same file; its time of change cannot be set by a program.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from lorafold.artifacts import sha256_file, write_atomic
from lorafold.errors import LorafoldError
from lorafold.files.seals import has_changed, sealed
from lorafold.models import cache_folder
from lorafold.serve.protocol import About

NOTED = 200  # files remembered
RACY = 2_000_000_000  # nanoseconds: a file changed this recently may change again within the clock's grain
_lock = threading.Lock()


def weights_sha256(path: Path) -> str:
    """The sha256 of a file of weights, from what was noted of it if it has not changed since."""
    key, state = str(path.resolve()), _state(path)
    with _lock:
        noted = _notes().get(key)
    if isinstance(noted, list) and noted[:-1] == state:
        return str(noted[-1])
    digest = sha256_file(path)
    if _state(path) == state and time.time_ns() - max(state[3:]) > RACY:
        # A full disk or a home that cannot be written only costs the time again.
        with _lock, contextlib.suppress(LorafoldError, OSError):
            notes = {known: value for known, value in _notes().items() if known != key}
            kept = [*notes.items(), (key, [*state, digest])][-NOTED:]
            write_atomic(_file(), sealed(dict(kept), indent=1))
    return digest


def _state(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _file() -> Path:
    return cache_folder() / "digests.json"


def _notes() -> dict[str, object]:
    """path -> [device, inode, size, mtime, ctime, sha256]; empty if the file is missing or damaged."""
    try:
        text = _file().read_text(encoding="utf-8")
        notes = json.loads(text)
    except (OSError, ValueError):
        return {}
    if not isinstance(notes, dict) or has_changed(text):
        return {}
    notes.pop("sha256", None)  # its seal
    return notes


class Digests:
    """sha256 of every model's weights, computed in the background."""

    def __init__(self, abouts: Sequence[About]) -> None:
        self.found: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, args=(abouts,), daemon=True, name="digests")
        self._thread.start()

    def _run(self, abouts: Sequence[About]) -> None:
        for index, about in enumerate(abouts):
            try:
                self.found[index] = about.digest()
            except OSError:
                self.found[index] = ""

    def short(self, index: int) -> str:
        """The first digits of each file's digest, or "…" while it is computed."""
        if index not in self.found:
            return "…"
        return "+".join(part[:8] for part in self.found[index].split("+"))

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all are known, at most so long."""
        self._thread.join(seconds)
