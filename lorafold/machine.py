"""What this machine has: cores, memory, accelerators."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from lorafold.errors import SystemFault


def cores() -> int:
    """Cores this process may use: those that it may run on, or fewer if a container's quota says so."""
    return min(cores_seen(), quota() or cores_seen())


def cores_seen() -> int:
    """Cores this process may run on, whatever share of their time it gets."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> int | None:
    """Whole cores' worth of time that the control groups of this process give it, at least 1; None: no limit.

    A container with `--cpus 2` sees every core of its host and is stopped when it has used two cores' time:
    more threads than that wait for each other while none of them runs. The limits of all groups above count.

    cpu.max (version 2): "200000 100000" or "max 100000": microseconds in each period.
    cpu.cfs_quota_us, cpu.cfs_period_us (version 1): the same in two files, -1 for no limit.

    Args:
        root: where proc and sys are.
    """
    shares = []
    for folder in _control_groups(root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").is_file():
                limit, period = (folder / "cpu.max").read_text().split()
            else:
                limit, period = (
                    (folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
                )
            if limit != "max" and int(limit) > 0:
                shares.append(int(limit) / int(period))
    return max(1, round(min(shares))) if shares else None


def _control_groups(root: Path, kind: str = "cpu") -> Iterator[Path]:
    """The folders of the groups that limit this process's time or memory, from its own up to the outermost.

    A line of /proc/self/cgroup is "number:controllers:path"; version 2 names no controllers. In a container
    the path may be the host's, and its folder is not there: then the outermost folder is the container's.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and kind not in controllers.split(","):
            continue
        tops = [mounted / controllers, mounted / kind] if controllers else [mounted, mounted / "unified"]
        for top in dict.fromkeys(tops):
            inner = top / path.lstrip("/")
            for folder in (inner, *inner.parents):
                yield folder
                if folder == top:
                    break


def idle_cores(seconds: float = 0.2) -> int:
    """Cores that nothing is using at the moment, at least one; it looks for a fifth of a second.

    llama.cpp's threads wait for each other by spinning: one thread too many on a busy machine is not a little
    but twenty times slower (docs/log.md). The load average would still count what this process itself did
    before.
    """
    before = idle_time()
    if before is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return max(1, round(cores() - load))
    time.sleep(seconds)
    after = idle_time()
    return max(1, min(cores(), round(((after or before) - before) / seconds)))


def idle_time(root: Path = Path("/")) -> float | None:
    """Seconds that all cores together have been idle since the start; None if the system does not say.

    The first line of /proc/stat: "cpu user nice system idle iowait …", in ticks (proc_stat(5)).

    Args:
        root: where proc is.
    """
    try:
        line = (root / "proc/stat").read_text().partition("\n")[0].split()
        return (int(line[4]) + int(line[5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def memory_available(root: Path = Path("/")) -> int:
    """Bytes of memory that can be taken without swapping or meeting a limit; 0 if the system does not say.

    Limits are those of the control groups (a container's) and of the address space (`ulimit -v`).

    Args:
        root: where proc and sys are.
    """
    limits = [left for left in (_group_memory(root), address_space_left()) if left is not None]
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min([int(line.split()[1]) * 1024, *limits])
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    if "SC_PHYS_PAGES" in names:  # macOS has no figure of what is free: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 0


def _group_memory(root: Path) -> int | None:
    """Bytes that the control groups of this process still allow it; None: no limit.

    memory.max, memory.current (version 2): bytes or "max". memory.limit_in_bytes, memory.usage_in_bytes
    (version 1). What files occupy in memory (`inactive_file` in memory.stat) is given back when it is needed.

    Args:
        root: where proc and sys are.
    """
    left = []
    for folder in _control_groups(root, "memory"):
        for most, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / f"memory.{most}").read_text())
                taken = int((folder / f"memory.{used}").read_text())
                rows = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                left.append(max(0, limit - taken + int(rows.get("inactive_file", 0))))
    return min(left) if left else None


def address_space_left() -> int | None:
    """Bytes that this process may still map, shared libraries included; None: no limit (`ulimit -v`)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, IndexError):
        return None
    return max(0, limit - pages * resource.getpagesize())


def require_address_space(bytes_needed: int, what: str) -> None:
    """Refuse work whose libraries would end the process where they cannot map memory.

    Args:
        bytes_needed: address space, not memory: libraries and stacks of threads count whole.
        what: takes it, for the error's line.

    Raises:
        SystemFault: the limit of the address space leaves less.
    """
    left = address_space_left()
    if left is not None and left < bytes_needed:
        needed = f"{what} takes {bytes_needed / 1e6:,.0f} MB"
        raise SystemFault(
            f"the limit of address space leaves {left / 1e6:,.0f} MB, {needed}",
            at="ulimit -v",
            fix="raise it with `ulimit -v unlimited`, or set a limit of memory instead",
        )


def memory_held() -> int:
    """Bytes of memory that this process holds; 0 if the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def return_free_memory() -> None:
    """Give freed memory back to the system, if the C library would keep it (glibc).

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
