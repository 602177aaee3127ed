"""The one thread on which local models compute, and how many threads a computation may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@cache
def _computer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")


def compute(work: Callable[[], T]) -> T:
    """Run `work` on the one thread that computes, and wait for it.

    Two models that computed at once would each start threads on all cores, and OpenMP's spinning threads
    would slow both down many times over. On one thread, first come first served, two streams alternate token
    by token and each token has all cores.
    """
    return _computer().submit(work).result()


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
