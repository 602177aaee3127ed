"""The benchmark of the export runs, and what it measures keeps what the plan promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import REPOSITORY, shared

from lorafold.export import ExportConfig, plan_export

pytestmark = pytest.mark.slow


def test_ours_is_measured_and_profiled(tmp_path: Path) -> None:
    shared("tokenizers/qwen2")
    command = [sys.executable, str(REPOSITORY / "tools/bench_export.py"), "--shape", "tiny", "--only", "ours"]
    run = subprocess.run(
        [*command, "--profile", "--threads", "2", "--work", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in run.stdout.splitlines()}
    assert {"quantize", "read", "fold", "write", "sync"} <= rows.keys()
    shares = [float(share) for share in re.findall(r"\| ([\d.]+)% \|", run.stdout)]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert rows["Q4_K"][0] == rows["Q6_K"][0] == "numba"
    peak = float(rows["lorafold export --no-verify"][1].replace(",", ""))
    assert "lorafold export" in rows and "passed: logits" in run.stderr
    settings = ExportConfig(
        str(tmp_path / "tiny/adapter"), base=str(tmp_path / "tiny/base"), out=tmp_path / "out", threads=2
    )
    promised = re.search(r"about ([\d,]+) MB", dict(plan_export(settings))["memory"])
    assert promised is not None
    assert float(promised[1]) * 0.7 < peak < min(250, float(promised[1]) * 1.3)
