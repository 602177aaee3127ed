"""A short run on a tiny model, and what two runs of it must have in common."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tiny_base import tiny_base

from lorafold.train import TrainConfig
from lorafold.train.saved.curve import read_metrics

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(14)]
VOLATILE = ("tokens_per_second", "memory_gib")


@cache
def home() -> Path:
    """The base and the data of this test run."""
    folder = Path(mkdtemp(prefix="lorafold-tiny-run-"))
    tiny_base(folder / "base")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def tiny_run(out: Path) -> TrainConfig:
    """14 examples, 2 a batch, 2 batches a step: 4 steps an epoch, the last of them of one batch; 8 steps."""
    return TrainConfig(
        base=str(home() / "base"),
        data=(str(home() / "d.jsonl"),),
        out=out,
        learning_rate=5e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        lora_dropout=0.1,
        max_steps=8,
        save_steps=2,
    )


def packed_run(out: Path, base: Path) -> TrainConfig:
    """Two steps on another base, packed if it can be; without dropout, which a pack draws otherwise."""
    return replace(tiny_run(out), base=str(base), lora_dropout=0.0, max_steps=2, packing=True)


def steady(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key not in VOLATILE}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def same_files(one: Path, other: Path, names: tuple[str, ...]) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class Kill(BaseException):
    """Stands for SIGKILL inside this process: nothing of ours catches it."""


def die_at(step: int, phase: str = "train") -> Any:
    """A progress that dies when a step is reported, which is before the step's checkpoint."""

    def progress(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == phase and done == step:
            raise Kill

    return progress
