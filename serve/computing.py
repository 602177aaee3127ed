"""Who computes when, on how many threads: models that answer side by side share the cores.

Each model has a lane. GGUF models that answer at once compute at once, each on its share of the threads: two
models with a thread each need no barriers, where one with two threads waits at hundreds per token, spinning.
When one has ended, the other takes all threads; llama.cpp's results do not depend on their number.
What cannot be shared (more models than threads, or torch, whose results do depend on it) takes turns, token
by token, first come first served.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class _Cores:
    """Threads in use by all lanes of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used = 0
        self.waiting: deque[tuple[int, int, threading.Event]] = deque()  # wanted, limit, its turn has come
        self.answering = 0  # lanes that share

    def take(self, wanted: int, limit: int) -> None:
        """Wait until `wanted` threads fit under a limit; nobody overtakes."""
        turn = threading.Event()
        with self.lock:
            self.waiting.append((wanted, limit, turn))
            self._admit()
        turn.wait()

    def give(self, count: int) -> None:
        """Let others have threads."""
        with self.lock:
            self.used -= count
            self._admit()

    def _admit(self) -> None:
        while self.waiting:
            wanted, limit, turn = self.waiting[0]
            if self.used and self.used + wanted > limit:
                return
            self.used += wanted
            self.waiting.popleft()
            turn.set()


_cores = _Cores()


@cache
def _common() -> ThreadPoolExecutor:
    """The one thread of all lanes that do not share: OpenMP keeps idle threads for each that computes."""
    return ThreadPoolExecutor(1, thread_name_prefix="compute")


class Lane:
    """Where one model computes.

    Args:
        threads: that it may use when it computes alone; 0: see `thread_count`.
        shares: it computes beside others, on fewer threads; otherwise it takes turns with them.
    """

    def __init__(self, threads: int = 0, *, shares: bool = True) -> None:
        self.limit = thread_count(threads)
        self.shares = shares
        self._own = ThreadPoolExecutor(1, thread_name_prefix="compute") if shares else _common()

    @property
    def threads(self) -> int:
        """How many threads a computation may use now."""
        return max(1, self.limit // max(1, _cores.answering)) if self.shares else self.limit

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block others leave this lane its share."""
        with _cores.lock:
            _cores.answering += self.shares
        try:
            yield
        finally:
            with _cores.lock:
                _cores.answering -= self.shares

    def run(self, work: Callable[[int], T]) -> T:
        """Compute when it is this lane's turn, and wait for the result.

        Args:
            work: what to do; it is told how many threads it may use.
        """
        return self._own.submit(self._in_turn, work).result()

    def _in_turn(self, work: Callable[[int], T]) -> T:
        count = self.threads
        _cores.take(count, self.limit)
        try:
            return work(count)
        finally:
            _cores.give(count)

    def close(self) -> None:
        """End the lane's thread."""
        if self.shares:
            self._own.shutdown()


def thread_count(wanted: int) -> int:
    """Threads to compute with: as asked for, else OMP_NUM_THREADS, else the cores (not hyperthreads)."""
    if wanted > 0:
        return wanted
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(given) > 0:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    logical = affinity(0) if affinity else range(os.cpu_count() or 1)
    cores = set()
    for cpu in logical:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
