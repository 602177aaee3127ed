"""Who computes when, on how many threads: models that answer side by side share the cores.

GGUF models that answer at once compute at once, each on its share of the threads: two models with a thread
each need no barriers, but one with two threads waits at hundreds per token, spinning.
When one has ended, the other takes all threads; llama.cpp's results do not depend on their number.
What cannot be shared (more models than threads, or torch, whose results do depend on it) takes turns, token
by token, first come first served.

A model has a thread of its own only while it computes. OpenMP keeps helpers for each thread that has
computed, counts those of idle ones too, and lets barriers sleep instead of spin once these are more than the
cores: a second model that had answered once made the first one take three times as long for a token.
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

from lorafold.machine import quota

_T = TypeVar("_T")


class _Cores:
    """Threads in use by all models of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used = 0
        self.waiting: deque[tuple[int, int, threading.Event]] = deque()  # wanted, limit, its turn has come
        self.answering = 0  # models that share

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
    """The one thread of all models that do not share, kept: torch has an OpenMP of its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="compute")


class ModelThread:
    """The thread on which one model computes.

    Args:
        threads: that it may use when it computes alone; 0: see `thread_count`.
        shares: it computes beside others, on fewer threads; otherwise it takes turns with them.
    """

    def __init__(self, threads: int = 0, *, shares: bool = True) -> None:
        self.limit = thread_count(threads)
        self.shares = shares
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._holders = 0
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads a computation may use now."""
        return max(1, self.limit // max(1, _cores.answering)) if self.shares else self.limit

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block other models leave this one its share."""
        with _cores.lock:
            _cores.answering += self.shares
        try:
            with self.held():
                yield
        finally:
            with _cores.lock:
                _cores.answering -= self.shares

    @contextlib.contextmanager
    def held(self) -> Iterator[ThreadPoolExecutor]:
        """Within the block, and others inside it, the thread is kept."""
        if not self.shares:
            yield _common()
            return
        with self._lock:
            self._holders += 1
            self._thread = thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="compute")
        try:
            yield thread
        finally:
            with self._lock:
                self._holders -= 1
                last = not self._holders
                if last:
                    self._thread = None
            if last:
                thread.shutdown()

    def run(self, work: Callable[[int], _T]) -> _T:
        """Compute when it is this model's turn, and wait for the result.

        Args:
            work: what to do; it is told how many threads it may use.
        """
        with self.held() as thread:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the model is closed")
                result = thread.submit(self._in_turn, work)
            return result.result()

    def close(self, work: Callable[[], None]) -> None:
        """Compute for the last time: after what is in flight, and never beside or before it.

        Args:
            work: frees what was computed with. Whoever still wants to compute, such as an answer that was
                left in its middle, gets a RuntimeError.
        """
        with self.held() as thread:
            with self._lock:
                self._closed = True
            thread.submit(work).result()

    def _in_turn(self, work: Callable[[int], _T]) -> _T:
        count = self.threads
        _cores.take(count, self.limit)
        try:
            return work(count)
        finally:
            _cores.give(count)


def thread_count(wanted: int) -> int:
    """Threads to compute with: as asked for, else OMP_NUM_THREADS, else the cores (not hyperthreads).

    A container's quota counts as that many cores.
    """
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
    return max(1, min(len(cores), quota() or len(cores)))
