"""The sha256 of a file while several threads write it, so that it need not be read again afterwards.

Parts may come from any thread and in any order, but a digest goes through a file from its beginning. A part
that comes early waits in memory; if too much is waiting, it is read back from the file when its turn comes.
"""

from __future__ import annotations

import hashlib
import os
import threading

WAITING_BYTES = 4 << 20
"""Most bytes of parts that wait in memory for an earlier one."""

READ_BYTES = 1 << 20


class RunningChecksum:
    """sha256 of one file, part by part.

    Args:
        descriptor: the file, open for reading too.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._reached = 0  # everything before this offset is in the digest
        self._waiting: dict[int, bytes | memoryview | int] = {}  # an int is the length of a part on disk
        self._kept = 0
        self._busy = False
        self._lock = threading.Lock()

    def add(self, data: bytes | memoryview, offset: int) -> None:
        """Take a part that has been written; a thread whose part continues the file digests what it can.

        Args:
            data: its bytes, at least one, which must not change afterwards.
            offset: where it stands in the file; parts do not overlap.
        """
        with self._lock:
            keep = self._kept + len(data) <= WAITING_BYTES or offset == self._reached
            self._waiting[offset] = data if keep else len(data)
            self._kept += len(data) if keep else 0
            if self._busy:
                return
            self._busy = True
        # One thread at a time digests, outside the lock: hashlib releases the GIL.
        while (part := self._next()) is not None:
            if isinstance(part, int):
                self._read(self._reached - part, part)
            else:
                self._sha256.update(part)

    def _next(self) -> bytes | memoryview | int | None:
        with self._lock:
            part = self._waiting.pop(self._reached, None)
            if part is None:
                self._busy = False
            elif isinstance(part, int):
                self._reached += part
            else:
                self._reached += len(part)
                self._kept -= len(part)
            return part

    def _read(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end and (piece := os.pread(self._descriptor, min(READ_BYTES, end - offset), offset)):
            self._sha256.update(piece)
            offset += len(piece)

    def hexdigest(self, size: int) -> str:
        """The digest, when every part of a file of `size` bytes was added."""
        assert self._reached == size and not self._waiting, (self._reached, size, len(self._waiting))
        return self._sha256.hexdigest()
