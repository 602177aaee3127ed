"""A file that is mapped as a whole does not stay in memory as a whole."""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lorafold.libraries.mapping import held_small

SIZE, MOST = 64 << 20, 16 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def file_memory() -> int:
    """Bytes of files that this process holds, as the kernel's own summary has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def numbers(path: Path) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 1 << 32, SIZE // 4, np.uint32)
    path.write_bytes(values.tobytes())
    return values


def mapped(path: Path) -> mmap.mmap:
    """As llama.cpp maps a model: with every page at once."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)


def settled(most: int) -> int:
    """File memory as soon as it is small enough, or what it is after two seconds."""
    ends = time.monotonic() + 2
    while (held := file_memory()) > most and time.monotonic() < ends:
        time.sleep(0.005)
    return held


def test_a_mapped_file_is_given_back_while_it_is_read(tmp_path: Path) -> None:
    wanted = numbers(tmp_path / "file")
    before = file_memory()
    with held_small([tmp_path / "file"], MOST):
        pages = mapped(tmp_path / "file")
        assert settled(before + MOST) <= before + MOST
        for _ in range(3):  # all of it may still be read, again and again
            assert np.array_equal(np.frombuffer(pages, np.uint32), wanted)
            assert settled(before + MOST) <= before + MOST
        assert file_memory() > before + MOST // 2, "the beginning stays"
        pages.close()
    assert file_memory() < before + MOST // 2


@pytest.mark.parametrize("most", [0, 2 * SIZE])
def test_no_limit_and_a_small_file_are_left_alone(most: int, tmp_path: Path) -> None:
    numbers(tmp_path / "file")
    before = file_memory()
    with held_small([tmp_path / "file"], most):
        pages = mapped(tmp_path / "file")
        time.sleep(0.05)
        assert file_memory() >= before + SIZE - mmap.PAGESIZE
        pages.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only what was named, through whatever link."""
    numbers(tmp_path / "other")
    numbers(tmp_path / "file")
    os.symlink("file", tmp_path / "link")
    before = file_memory()
    with held_small([tmp_path / "link"], MOST):
        pages, others = mapped(tmp_path / "link"), mapped(tmp_path / "other")
        assert settled(before + SIZE + MOST) <= before + SIZE + MOST
        time.sleep(0.05)
        assert file_memory() >= before + SIZE
        pages.close()
        others.close()
