"""What the machine has to spare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tool_modules import tool

from lorafold.machine import cores, idle_cores, idle_time, memory_available

bench_load = tool("bench_load.py")


def test_idle_time_is_read_from_the_kernel(tmp_path: Path) -> None:
    """By hand: 400 ticks idle and 100 waiting for a disk, of a hundredth of a second each."""
    (tmp_path / "proc").mkdir()
    assert idle_time(tmp_path) is None
    (tmp_path / "proc/stat").write_text("cpu  7 1 2 400 100 0 3 0 0 0\ncpu0 1 2 3 4 5 0 0 0 0 0\n")
    assert idle_time(tmp_path) == pytest.approx(5.0)


@pytest.mark.skipif(
    cores() < (os.cpu_count() or 1), reason="the machine has processors that this may not load"
)
def test_a_busy_machine_has_one_core_to_spare() -> None:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
    try:
        assert idle_cores(0.3) == 1
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_is_what_is_available(version: int, tmp_path: Path) -> None:
    """By hand: 3 of 4 GB used, of which 0.5 are files that are given back; the group above allows more."""
    names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    inner = top / "docker/own"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(
        "9:memory:/docker/own\n" if version == 1 else "0::/docker/own\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9\nMemAvailable: 20000000 kB\n")
    assert memory_available(tmp_path) == 20_480_000_000
    for folder, limit in ((inner, 4_000_000_000), (inner.parent, 9_000_000_000)):
        for name, value in zip(names, (limit, 3_000_000_000), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        (folder / "memory.stat").write_text("anon 2500000000\ninactive_file 500000000\n")
    assert memory_available(tmp_path) == 1_500_000_000
    for folder in (inner, inner.parent):
        (folder / f"memory.{names[0]}").write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert memory_available(tmp_path) == 20_480_000_000


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A real control group with the time of one core, as the benchmark of load makes it."""
    with ExitStack() as held:
        try:
            group = held.enter_context(bench_load.control_group(1.0))
        except OSError as error:
            pytest.skip(f"no control group can be made that limits processors: {error}")
        yield group


@pytest.mark.skipif(cores() < 2, reason="one core is no limit here")
def test_a_quota_of_one_core_is_one_thread_everywhere(one_core: Path) -> None:
    asks = (
        "from lorafold.libraries.threads import share_processor as s; from lorafold.machine import cores; "
        "from lorafold.serve.engines.threads import thread_count; import os; "
        "print(cores(), thread_count(0), s(), os.environ['OMP_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = bench_load.joining(one_core, [sys.executable, "-c", asks])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "None", "1"]
