"""A child process that stays and answers requests, so that the kernel can bound what is done in it.

A request is a line with a number of bytes, then as many bytes of JSON. An answer is a line of JSON. What
takes too much time or memory ends the child, and the answer is then that there is none.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar


class Child:
    """The process and the two pipes to it.

    Args:
        words: its command line.
        environment: its variables; None for those of this process.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
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


C = TypeVar("C", bound=Child)


class KeptChild(Generic[C]):
    """The one child of this process for its kind of requests; it ends with the process.

    Args:
        start: starts one.

    Attributes:
        child: the one that runs, if any does.
    """

    def __init__(self, start: Callable[[], C]) -> None:
        self.child: C | None = None
        self._start = start
        self._lock = threading.Lock()
        atexit.register(self.drop)
        os.register_at_fork(after_in_child=self._unlock)

    def begin(self) -> None:
        """Start it, if it does not run."""
        with self._lock:
            self._running()

    @contextlib.contextmanager
    def lent(self, *answered: type[BaseException]) -> Iterator[C]:
        """The child for one request and its answers, to one thread at a time.

        Args:
            answered: errors after which the child waits for its next request. After any other it is dropped,
                since its pipes may hold answers that nobody will read.
        """
        with self._lock:
            if self.child is not None and not self.child.usable:
                self.drop()
            try:
                yield self._running()
            except answered:
                raise
            except BaseException:
                self.drop()
                raise

    def drop(self) -> None:
        """End it; the next request starts another one."""
        child, self.child = self.child, None
        if child is not None:
            child.stop()

    def _running(self) -> C:
        if self.child is None:
            self.child = self._start()
        return self.child

    def _unlock(self) -> None:
        """A fork's copy of the lock may be held by a thread that the fork does not have."""
        self._lock = threading.Lock()
