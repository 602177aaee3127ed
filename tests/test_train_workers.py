"""Several workers on this machine, started as a user would start them: one worker's adapter, the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_base import tiny_base

from lorafold.cli import main
from lorafold.train.curve import read_metrics

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(24)]
STEPS = 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# With `--cpu` it would start one process; this way is taken on a machine without a GPU too.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]

# Runs one command after the other on the same workers, which have imported everything by then.
SEVERAL = """
import json, sys
from lorafold.cli import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    tiny_base(folder / "base")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "several.py").write_text(SEVERAL)
    return folder


def command(place: Path, out: str, *flags: str, workers: int = 2) -> list[str]:
    """A run in which all workers together see 4 examples a step."""
    train = [
        "train",
        "--base",
        str(place / "base"),
        "--data",
        str(place / "d.jsonl"),
        "--out",
        str(place / out),
    ]
    train += ["--learning-rate", "5e-3", "--max-steps", str(STEPS), "--eval-split", "0.2"]
    train += ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", str(4 // workers)]
    return [*train, *flags]


def start(launcher: list[str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(launcher: list[str], *arguments: str) -> tuple[int, str, str]:
    process = start(launcher, *arguments)
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.terminate()  # torchrun ends its workers; without effect where it has ended
    return process.returncode, out, err


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    assert main(command(place, "alone", workers=1)) == 0
    return place / "alone"


def same(one: Path, other: Path) -> None:
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-5)
    for left, right in zip(*(read_metrics(f / "metrics.jsonl") for f in (one, other)), strict=True):
        for key in {"loss", "eval_loss"} & set(left):
            assert left[key] == pytest.approx(right[key], rel=1e-4)


def test_packed_and_sharded(place: Path, alone: Path) -> None:
    ways = {"packed": ("--packing", "--packing-length", "1100"), "fsdp": ("--fsdp",)}
    commands = [command(place, name, *flags) for name, flags in ways.items()]
    code, out, err = run(TORCHRUN, str(place / "several.py"), json.dumps(commands))
    assert code == 0, err[-2000:]
    assert out.count("computed on 2 × cpu") == 2 and out.count(f"{STEPS} steps") == 2
    for name in ways:
        same(place / name, alone)
        assert not (place / f"{name}.run").exists()


def test_killed_and_resumed(place: Path, alone: Path) -> None:
    """SIGKILL to the launcher and its workers, as soon as there is a checkpoint."""
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list a process's children")
    train = command(place, "resumed", "--save-steps", "1")
    process = start(TORCHRUN, "-m", "lorafold", *train)
    while process.poll() is None and not list((place / "resumed.run").glob("checkpoint-*/lorafold.json")):
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (place / "resumed").exists()
    code, out, err = run(TORCHRUN, "-m", "lorafold", *train, "--resume")
    assert code == 0, err[-2000:]
    assert out.count("resumed at step") == 1 and out.count(f"{STEPS} steps") == 1
    same(place / "resumed", alone)


def test_accelerate_launch(place: Path, alone: Path) -> None:
    code, out, err = run(ACCELERATE, "-m", "lorafold", *command(place, "accelerated"))
    assert code == 0, err[-2000:]
    assert out.count("computed on 2 × cpu") == 1
    same(place / "accelerated", alone)


def test_an_error_is_said_once(place: Path) -> None:
    train = command(place, "wrong", "--target-modules", "no_such_module")
    code, _, err = run(TORCHRUN, "-m", "lorafold", *train)
    assert code != 0
    assert err.count("peft refuses this adapter") == 1, err[-2000:]
    assert not (place / "wrong").exists()
