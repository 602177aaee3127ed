"""`lorafold train` through its real entry point: exit codes, one-line errors, signals, recipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tiny_base import tiny_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command")
    tiny_base(path / "base")
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(40)]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lorafold", "train", "--base", "base", "--data", "data.jsonl", *flags]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(folder: Path, *flags: str) -> tuple[int, str, str]:
    process = start(folder, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_a_recipe_a_flag_over_it_and_the_output(folder: Path) -> None:
    (folder / "r.yaml").write_text("r: 4\nmax_steps: 9\nlearning_rate: 1.0e-3\nseed: 7\n")
    code, out, err = run(folder, "--recipe", "r.yaml", "--max-steps", "3", "--out", "a")
    assert code == 0, err
    assert "3 steps" in out and "step" in out
    config = json.loads((folder / "a" / "lorafold.json").read_text())["config"]
    assert (config["r"], config["max_steps"], config["learning_rate"], config["seed"]) == (4, 3, 1e-3, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--learning-rate", "nan", "--out", "x"), 2, "--learning-rate: expected a number above 0, got nan"),
        (("--out", "x", "--chat-template", "nonsense"), 3, "nonsense"),
        (("--out", "base"), 2, "overlaps the input"),
    ],
)
def test_errors_are_one_line(folder: Path, flags: tuple[str, ...], code: int, says: str) -> None:
    found, _, err = run(folder, *flags)
    assert found == code
    *progress, last = err.strip().splitlines()
    assert last.startswith("error: ") and says in last and "fix: " in last
    assert "Traceback" not in err and not any(line.startswith("error") for line in progress)


# A line of progress (`console._LineProgress`), or one that the run says.
OURS = re.compile(
    r"[a-z ]+ …|[a-z ]+( \d+%|: [\d.]+ s).*|data: .*|model: .*|note: .*|step \d+, evaluation loss .*"
)


@pytest.mark.slow
def test_nothing_but_our_own_lines_on_standard_error(folder: Path) -> None:
    code, _, err = run(folder, "--max-steps", "2", "--eval-split", "0.1", "--out", "quiet")
    assert code == 0, err
    assert len(err.splitlines()) > 5
    assert not [line for line in err.splitlines() if not OURS.fullmatch(line)]


@pytest.mark.slow
def test_a_plan_by_the_command(folder: Path) -> None:
    code, out, err = run(folder, "--plan")
    assert code == 0, err
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "data",
        "run",
        "trained",
        "memory",
        "time",
        "how",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit(folder: Path, number: signal.Signals, code: int) -> None:
    name = f"stopped-{code}"
    process = start(folder, "--max-steps", "100000", "--save-steps", "0", "--out", name)
    metrics = folder / f"{name}.run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and metrics.stat().st_size:
            break
        time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "go on with --resume" in out and "Traceback" not in err
    assert "\nstopping after this step; Ctrl-C again stops now\n" in err
    (checkpoint,) = (folder / f"{name}.run").glob("checkpoint-*")
    assert (checkpoint / "lorafold.json").is_file() and not (folder / name).exists()
