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


def in_memory(path: Path) -> int:
    """Bytes of a mapped file that this process holds, as the kernel's list of mappings has it."""
    held, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:  # "55d0-55e0 r--p …": a mapping begins
            mine = line.endswith(f" {path}")
        elif mine and line.startswith("Rss:"):
            held += int(line.split()[1]) * 1024
    return held


def numbers(path: Path) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 1 << 32, SIZE // 4, np.uint32)
    path.write_bytes(values.tobytes())
    return values


def mapped(path: Path) -> mmap.mmap:
    """As llama.cpp maps a model: with every page at once."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)


def settled(path: Path, most: int) -> int:
    """What is held of a file as soon as it is little enough, or what it is after two seconds."""
    ends = time.monotonic() + 2
    while (held := in_memory(path)) > most and time.monotonic() < ends:
        time.sleep(0.005)
    return held


def test_a_mapped_file_is_given_back_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    wanted = numbers(file)
    with held_small([file], MOST):
        pages = mapped(file)
        assert settled(file, MOST) <= MOST
        for _ in range(3):  # all of it may still be read, again and again
            assert np.array_equal(np.frombuffer(pages, np.uint32), wanted)
            assert settled(file, MOST) <= MOST
        assert in_memory(file) > MOST // 2, "the beginning stays"
        pages.close()


@pytest.mark.parametrize("most", [0, 2 * SIZE])
def test_no_limit_and_a_small_file_are_left_alone(most: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    numbers(file)
    with held_small([file], most):
        pages = mapped(file)
        time.sleep(0.05)
        assert in_memory(file) == SIZE
        pages.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only what was named, through whatever link."""
    file, other = tmp_path / "file", tmp_path / "other"
    numbers(other)
    numbers(file)
    os.symlink("file", tmp_path / "link")
    with held_small([tmp_path / "link"], MOST):
        pages, others = mapped(tmp_path / "link"), mapped(other)
        assert settled(file, MOST) <= MOST
        time.sleep(0.05)
        assert in_memory(other) == SIZE
        pages.close()
        others.close()
