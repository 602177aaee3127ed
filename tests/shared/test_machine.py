"""What the machine has to spare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafold.machine import cores, idle_cores, idle_time


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
