"""The commands that are struck, on tiny models, and the folder of inputs that they run in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_chat
from campaign import Scenario
from faults import EXPORT, TRAIN
from tiny_base import tiny_base

_EXPORT = ("export", "adapter", "--base", "base", "--out", "out", "--pre-tokenizer", "gpt-2", "--no-verify")
_TRAIN = ("train", "--base", "small", "--data", "data.jsonl", "--out", "out", "--r", "2")
_STEPS = ("--max-steps", "4", "--save-steps", "2", "--per-device-train-batch-size", "1")

SCENARIOS = (
    Scenario("export", (*_EXPORT, "--quant", "Q8_0"), EXPORT),
    Scenario("export, replacing", (*_EXPORT, "--quant", "Q8_0", "--force"), EXPORT, before=True),
    Scenario(
        "export, two types in parts", (*_EXPORT, "--quant", "F16,Q8_0", "--split-max-size", "100000"), EXPORT
    ),
    Scenario("export, merged folder", (*_EXPORT, "--format", "folder"), EXPORT),
    Scenario("export, adapter", (*_EXPORT, "--format", "adapter"), EXPORT),
    Scenario("modelfile", ("modelfile", "base", "--out", "out"), EXPORT),
    Scenario(
        "train",
        (*_TRAIN, *_STEPS),
        TRAIN,
        kept=("out.run",),
        resume=("--resume",),
        hidden=("lorafold.json", "metrics.jsonl", "loss.png", "README.md", "checkpoint-*"),
        shares=3,
    ),
)


def inputs(folder: Path) -> Path:
    """Write what all scenarios read: a base, an adapter, another base with its tokenizer, and records."""
    shutil.copytree(tiny_chat.folder(), folder / "base")
    shutil.copytree(tiny_chat.adapter(), folder / "adapter")
    tiny_base(folder / "small")
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(8)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
