"""Several workers on this machine, started by torchrun as a user would: one worker's adapter, the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_base import tiny_base

from lorafold.train.curve import read_metrics

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(24)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    tiny_base(folder / "base")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def run(place: Path, out: str, workers: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """`lorafold train` on so many workers that together see 4 examples a step."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command = [sys.executable, *(start if workers > 1 else []), "-m", "lorafold", "train"]
    command += ["--base", str(place / "base"), "--data", str(place / "d.jsonl"), "--out", str(place / out)]
    command += ["--learning-rate", "5e-3", "--max-steps", "6", "--eval-split", "0.2", "--save-steps", "3"]
    command += ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", str(4 // workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [*command, *flags], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    done = run(place, "alone", 1)
    assert done.returncode == 0, done.stderr
    return place / "alone"


def same(one: Path, other: Path) -> None:
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)
    for left, right in zip(*(read_metrics(f / "metrics.jsonl") for f in (one, other)), strict=True):
        for key in {"loss", "eval_loss"} & set(left):
            assert left[key] == pytest.approx(right[key], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [(), ("--packing", "--packing-length", "1100"), ("--fsdp",)], ids=["ddp", "packed", "fsdp"]
)
def test_two_workers_train_what_one_does(
    flags: tuple[str, ...], place: Path, alone: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    done = run(place, name, 2, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 × cpu" in done.stdout and done.stdout.count("computed on") == 1
    same(place / name, alone)
    assert not (place / f"{name}.run").exists()


@pytest.mark.slow
def test_two_workers_go_on_from_a_checkpoint(place: Path, alone: Path) -> None:
    first = run(place, "resumed", 2, "--report-to", "none")
    assert first.returncode == 0
    again = run(place, "resumed", 2, "--resume")
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr[-2000:]
    same(place / "resumed", alone)


@pytest.mark.slow
def test_an_error_is_said_once(place: Path) -> None:
    done = run(place, "wrong", 2, "--target-modules", "no_such_module")
    assert done.returncode != 0
    assert done.stderr.count("peft refuses this adapter") == 1, done.stderr[-2000:]
    assert not (place / "wrong").exists()
