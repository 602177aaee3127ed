"""Memory of a file that a library maps: what is not read at the moment is given back.

llama.cpp maps a model as a whole and fetches every page at once, so all of it counts as memory of the process
until it is freed, though the system may take such pages back at any time. Pages that are given back stay in
the system's cache of files and are fetched again from there, which takes some 70 ms a gigabyte.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_LOOKS = 0.001  # seconds between two looks: a mapped file grows by about 10 MB in that time
_IN_VAIN = 20  # looks after which pages that stay are another's; until then they may be coming in
_SHARED = 2  # the number of "shared" in /proc/self/statm: pages that belong to files


@contextlib.contextmanager
def held_small(files: Sequence[Path], most: int) -> Iterator[None]:
    """Hold at most so many bytes of mapped files in memory, about, while a library reads them.

    The first four fifths of that stay, what lies behind them is given back as often as it has become the last
    fifth. A library may unmap a file's ends meanwhile, not its inside. Without /proc (Linux) nothing is done.

    Args:
        files: what is mapped.
        most: bytes; 0: no limit.
    """
    size = sum(file.stat().st_size for file in files if file.exists())
    if not most or size <= most or not hasattr(mmap, "MADV_DONTNEED") or not Path("/proc/self/maps").exists():
        yield
        return
    ended = threading.Event()
    others = _file_pages()  # here: by the time that the thread looks, the file may be mapped
    keeper = threading.Thread(target=_give_back, args=(files, most, others, ended), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _give_back(files: Sequence[Path], most: int, others: int, ended: threading.Event) -> None:
    """Look again and again, until it has ended.

    Args:
        files: what is mapped.
        most: bytes of them in memory.
        others: pages of other files in memory.
        ended: set when nothing is to be given back any more.
    """
    names = {os.path.realpath(file) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    limit, staying = most // mmap.PAGESIZE, most // mmap.PAGESIZE * 4 // 5  # pages
    kept = staying // len(names) * mmap.PAGESIZE
    in_vain = 0
    while not ended.wait(_LOOKS):
        if _file_pages() - others < limit:
            in_vain = 0
            continue
        for start, stop in _mapped(names):
            if stop - start > kept:
                libc.madvise(start + kept, stop - start - kept, mmap.MADV_DONTNEED)
        held = _file_pages() - others
        in_vain = in_vain + 1 if held >= limit else 0
        if in_vain == _IN_VAIN:  # so it is not these: libraries have been loaded since
            others += held - staying


def _file_pages() -> int:
    """Pages of files that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[_SHARED])


def _mapped(names: set[str]) -> Iterator[tuple[int, int]]:
    """Where files are mapped: first address, and one past the last.

    A line of /proc/self/maps: "55d0-55e0 r--p offset device inode path", addresses in hexadecimal (proc(5)).
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, rest = line.partition(" ")
        parts = rest.split(maxsplit=4)
        if len(parts) == 5 and parts[4] in names:
            first, _, last = addresses.partition("-")
            yield int(first, 16), int(last, 16)
