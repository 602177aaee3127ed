"""Is a resumed run bitwise the run that was never stopped? Kills one at several places and compares.

    python tools/faults/resume_train.py

Compared are the loss, gradient norm and learning rate of every step, the adapter's file, and the last
checkpoint's optimizer state. Prints one line per cut; exits 1 if any differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

from tiny_base import tiny_base  # noqa: E402

from lorafold.train import TrainConfig, train  # noqa: E402
from lorafold.train.saved.curve import read_metrics  # noqa: E402

STEPS, EPOCH = 20, 7  # steps of the run, steps of an epoch: 27 examples, 2 a batch, 2 batches a step


def make_config(folder: Path) -> TrainConfig:
    """A run on a tiny model with everything that has state: dropout, warm-up, schedule, accumulation."""
    data = folder / "data.jsonl"
    rows = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 5) + str(i)} for i in range(27)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        base=str(tiny_base(folder / "base")),
        data=(str(data),),
        out=folder / "whole",
        learning_rate=5e-3,
        warmup_steps=3,
        lora_dropout=0.1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        save_steps=3,
        resume=True,
    )


def fingerprint(out: Path) -> dict[str, str]:
    """What has to be equal, as hashes."""
    clock = ("tokens_per_second", "memory_gib")
    rows = [
        {key: value for key, value in row.items() if key not in clock}
        for row in read_metrics(out / "metrics.jsonl")
    ]
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    parts = {
        "steps": json.dumps(rows).encode(),
        "adapter": (out / "adapter_model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def in_child(work: Callable[[], Any]) -> int:
    """Run in a forked process; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def killed_at(config: TrainConfig, step: int, forward: int) -> int:
    """Train until forward pass `forward` (from 0) of step `step` (from 1) begins, then die by SIGKILL."""
    import torch

    def work() -> None:
        reached, passes = 0, 0

        def progress(name: str, done: float, total: float | None, note: str = "") -> None:
            nonlocal reached, passes
            if name == "train" and done > reached:
                reached, passes = int(done), 0

        def before(module: Any, inputs: Any) -> None:
            nonlocal passes
            if isinstance(module, torch.nn.Embedding):
                if reached == step - 1 and passes == forward:
                    os.kill(os.getpid(), signal.SIGKILL)
                passes += 1

        torch.nn.modules.module.register_module_forward_pre_hook(before)
        train(config, progress)

    return in_child(work)


def main() -> int:
    import torch

    torch.set_num_threads(1)
    equal = True
    with tempfile.TemporaryDirectory() as name:
        config = make_config(Path(name))
        assert in_child(lambda: train(config)) == 0
        expected = fingerprint(config.output)
        for what, step, forward in (
            ("between two steps", 5, 0),
            ("in mid-accumulation", 12, 1),
            ("at an epoch's border", 2 * EPOCH + 1, 0),
        ):
            parted = dataclasses.replace(config, out=Path(name) / f"cut-{step}")
            assert os.WTERMSIG(killed_at(parted, step, forward)) == signal.SIGKILL
            assert not parted.output.exists()
            assert in_child(lambda parted=parted: train(parted)) == 0
            found = fingerprint(parted.output)
            odd = [key for key in expected if found[key] != expected[key]]
            equal = equal and not odd
            verdict = "differs: " + ", ".join(odd) if odd else "equal: " + ", ".join(expected)
            print(f"killed {what} (step {step} of {STEPS}): {verdict}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
