"""Blocks on threads: each is done once, failures end it all, the times sum up; checksums in any order."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.export.gguf.checksum import WAITING_BYTES, RunningChecksum
from lorafold.export.workers import IDLE, pwrite_all, work_off
from lorafold.progress import silent
from lorafold.stopwatch import OTHER, doing


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_block_is_carried_out_once(threads: int) -> None:
    done: list[int] = []
    said: list[float] = []
    work_off(
        range(1000),
        lambda block: done.append(block) or 2,  # type: ignore[func-returns-value]
        threads=threads,
        total=2000,
        progress=lambda step, now, total, note="": said.append(now),
    )
    assert sorted(done) == list(range(1000))
    assert said[0] == 0 and said[-1] == 2000 and said == sorted(said) and len(said) <= 502


def test_the_times_of_all_kinds_are_the_wall_time() -> None:
    def carry_out(block: int) -> int:
        with doing("odd" if block % 2 else "even"):
            time.sleep(0.02)
        return 0

    began = time.perf_counter()
    spent = work_off(range(5), carry_out, threads=2, total=0, progress=silent)
    passed = time.perf_counter() - began
    assert spent.keys() == {"odd", "even", OTHER, IDLE}
    assert sum(each.wall for each in spent.values()) == pytest.approx(passed, rel=0.1)
    # Three even blocks and two odd ones on two threads: one thread has nothing to do during the last.
    assert spent["even"].wall >= 0.03 and spent["odd"].wall >= 0.02 and spent[IDLE].wall >= 0.005


def test_a_failure_stops_all_threads_and_is_raised() -> None:
    begun = itertools.count()

    def blocks() -> Iterator[int]:
        return iter(range(10_000))

    def carry_out(block: int) -> int:
        next(begun)
        if block == 5:
            raise KeyError("five")
        time.sleep(0.001)
        return 1

    before = threading.active_count()
    with pytest.raises(KeyError, match="five"):
        work_off(blocks(), carry_out, threads=3, total=10_000, progress=silent)
    assert next(begun) < 5000 and threading.active_count() == before


def test_a_failing_list_of_blocks_is_raised_too() -> None:
    def blocks() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        work_off(blocks(), lambda block: 1, threads=2, total=1, progress=silent)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_checksum_depends_on_no_order(lengths: list[int], random: object) -> None:
    data = os.urandom(sum(lengths))
    starts = [0, *itertools.accumulate(lengths)]
    parts = list(itertools.pairwise(starts))
    random.shuffle(parts)  # type: ignore[attr-defined]
    with tempfile.TemporaryFile(buffering=0) as file:
        checksum = RunningChecksum(file.fileno())
        for start, stop in parts:
            pwrite_all(file.fileno(), memoryview(data)[start:stop], start)
            checksum.add(memoryview(data)[start:stop], start)
        assert checksum.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


def test_parts_beyond_the_memory_are_read_back(tmp_path: Path) -> None:
    """The first part comes last, after more than may wait in memory."""
    size = WAITING_BYTES // 2 + 100
    data = os.urandom(4 * size)
    path = tmp_path / "file"
    path.write_bytes(data)
    with open(path, "rb") as file:
        checksum = RunningChecksum(file.fileno())
        for start in (size, 2 * size, 3 * size, 0):
            checksum.add(data[start : start + size], start)
            assert checksum._kept <= WAITING_BYTES
        assert checksum.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()


def test_threads_share_a_checksum(tmp_path: Path) -> None:
    size, count = 5000, 400
    data = os.urandom(size * count)
    path = tmp_path / "file"
    path.write_bytes(bytes(len(data)))
    with open(path, "r+b", buffering=0) as file:
        checksum = RunningChecksum(file.fileno())

        def carry_out(start: int) -> int:
            part = memoryview(data)[start : start + size]
            pwrite_all(file.fileno(), part, start)
            checksum.add(part, start)
            return size

        work_off(range(0, len(data), size), carry_out, threads=7, total=len(data), progress=silent)
        assert checksum.hexdigest(len(data)) == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data
