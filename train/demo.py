"""The demo's training: the embedded persona on the embedded base, in about two minutes on two CPU cores."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

from lorafold.train.config import TrainConfig


def persona_file() -> Path:
    """The embedded data set: an old lighthouse keeper, 250 records."""
    return _resource("persona.jsonl")


def held_out_questions() -> list[str]:
    """Questions that the data set does not hold."""
    lines = _resource("persona_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [str(json.loads(line)["prompt"]) for line in lines]


def demo_config(out: Path) -> TrainConfig:
    """The demo's settings, chosen by the answers to the held-out questions within two minutes."""
    return TrainConfig(
        base="demo",
        data=(str(persona_file()),),
        out=out,
        r=16,
        lora_alpha=32,
        learning_rate=1.5e-3,
        warmup_steps=5,
        per_device_train_batch_size=4,
        num_train_epochs=1.5,
        max_length=256,
        save_steps=50,
        save_total_limit=1,
        force=True,
        resume=True,
    )


def _resource(name: str) -> Path:
    # The package is always a folder on disk (a wheel is unpacked), so the path outlives the context.
    with as_file(files("lorafold.train") / name) as path:
        return path
