"""What this machine has: cores, memory, accelerators."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def idle_cores() -> int:
    """Cores that nothing else is using at the moment, at least one.

    llama.cpp's threads wait for each other by spinning: one thread too many on a busy machine is not a little
    but twenty times slower (docs/log.md).
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(cores() - load))


def memory_available() -> int:
    """Bytes of memory that can be taken without swapping; 0 where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" in names:  # macOS has no figure of what is free: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 0


def return_free_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc).

    Worth it once a large temporary is gone: what a parsed vocabulary leaves behind is 35 MB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def processor() -> str:
    """The processor's name as its maker writes it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def has_matrix_units() -> bool:
    """Whether the processor multiplies matrices in tiles (Intel's AMX, Sapphire Rapids and later)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return "amx_tile" in flags.split()
