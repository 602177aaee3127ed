"""Blocks of work on a few threads, with progress and the time by kind of work.

Which thread takes which block is left to chance, so what a block writes must depend on the block alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lorafold.progress import Progress
from lorafold.stopwatch import Spent, Stopwatch

Task = TypeVar("Task")

IDLE = "idle"
"""What a thread does that has nothing left to take while another is still at work."""


@dataclass(frozen=True, slots=True)
class Written:
    """What writing an output gave besides its files.

    Attributes:
        checksums: sha256 by file name, of the files whose bytes need not be read again for it.
        work: what the wall time went into, by kind of work: seconds of one thread at work alone; if
            several are, each counts for its part, so that the sum is the wall time.
    """

    checksums: dict[str, str] = field(default_factory=dict)
    work: dict[str, Spent] = field(default_factory=dict)


def work_off(
    blocks: Iterable[Task],
    carry_out: Callable[[Task], int],
    *,
    threads: int,
    total: int,
    progress: Progress,
) -> dict[str, Spent]:
    """Carry out every block; the first failure stops all threads and is raised.

    Args:
        blocks: what is to be done, in the order in which it is begun.
        carry_out: does one, on any thread, and returns the bytes it wrote.
        threads: how many threads.
        total: bytes that all blocks write together.
        progress: told the bytes written.

    Returns:
        What the wall time went into, by kind; the processor's time is that of all threads together.
    """
    queue, counter, watch = _Queue(iter(blocks)), _Counter(total, progress), Stopwatch()

    def work() -> None:
        with watch.measured():
            for block in queue:
                counter.add(carry_out(block))

    began = time.perf_counter()
    with ThreadPoolExecutor(threads, thread_name_prefix="lorafold-export") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            queue.close()
    passed = time.perf_counter() - began
    spent = {kind: Spent(each.wall / threads, each.processor) for kind, each in watch.spent.items()}
    spent[IDLE] = Spent(max(passed - sum(each.wall for each in spent.values()), 0.0))
    return spent


def pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at a byte offset, however little the system takes at once."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


class _Queue(Generic[Task]):
    """Blocks, handed to whichever thread asks next."""

    def __init__(self, blocks: Iterator[Task]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[Task]:
        while True:
            with self._lock:
                if self._closed:
                    return
                try:
                    block = next(self._blocks)
                except StopIteration:
                    return
            yield block

    def close(self) -> None:
        """Hand out no more: a thread has failed."""
        self._closed = True


class _Counter:
    """Bytes written so far, told to `progress` five hundred times at most."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._done, self._said = total, 0, 0
        self._step = max(total // 500, 1)
        self._progress, self._lock = progress, threading.Lock()
        progress("write", 0, total)

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._done - self._said >= self._step or self._done == self._total:
                self._said = self._done
                self._progress("write", self._done, self._total)
