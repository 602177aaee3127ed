"""A child process that stays and answers requests, so that the kernel can bound what is done in it.

A request is a line with a number of bytes, then as many bytes of JSON. An answer is a line of JSON. What
takes too much time or memory ends the child, and the answer is then that there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any


class Child:
    """The process and the two pipes to it.

    Args:
        words: its command line.
        environment: its variables; None for those of this process.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.words = words
        self.pid = os.getpid()
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.buffer = b""

    @property
    def usable(self) -> bool:
        """Whether it lives, and belongs to this process: a fork's copy of this object owns none."""
        return self.pid == os.getpid() and self.process.poll() is None

    def send(self, request: Mapping[str, Any]) -> None:
        """Give it a request; `receive` tells if it is gone."""
        assert self.process.stdin is not None
        body = json.dumps(request).encode()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"%d\n" % len(body) + body)
            self.process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next answer, or None if the child is gone or silent for so many seconds."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        pipe, pieces = self.process.stdout.fileno(), [self.buffer]
        while b"\n" not in pieces[-1]:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(pipe, 1 << 16) if ready else b""
            if not piece:
                return None
            pieces.append(piece)
        line, _, self.buffer = b"".join(pieces).partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ended(self) -> int | None:
        """The exit code of one that is gone, or minus the signal that ended it; None if it is only silent."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return self.process.returncode

    def stop(self) -> None:
        """End it, if it is this process's, and close the pipes."""
        if self.pid == os.getpid():
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
