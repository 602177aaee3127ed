"""Checkpoints: everything that decides how a run goes on, complete or not at all.

    checkpoint-100/
        adapter_model.safetensors, adapter_config.json   PEFT's own files: the adapter as it was
        trainable.safetensors                            trained parameters by name, exact
        optimizer.safetensors                            the optimizer's tensors
        state.json                                       step, counters, the optimizer's other state
        lorafold.json                                    the manifest, written last: sizes and sha256

The folder is staged beside its name, synced and renamed. What is read back is checked against the manifest
first; no pickle is written or read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.artifacts import damaged_files, new_folder, read_manifest, system_faults, write_manifest
from lorafold.errors import InputError
from lorafold.files.renames import remove_folder
from lorafold.train.model.adapter import trainable
from lorafold.train.model.tensorfiles import flatten_state, load_tensors, restore_state, save_tensors

AGREED = ("config", "data", "base", "versions")  # parts of the manifest that decide if a run may go on
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(slots=True)
class RunState:
    """The counters of a run.

    Attributes:
        step: optimizer steps done.
        loss: mean per trained token of the last one; None if an older version did not keep it.
        tokens: tokens seen, padding not counted.
        best_loss: lowest evaluation loss, None before the first evaluation.
        best_step: the step of it.
        worse: number of evaluations since `best_step`.
        scaler: state of the loss scaling of float16; empty in other types.
    """

    step: int = 0
    loss: float | None = None
    tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Learner:
    """What a step changes, beside the counters.

    Attributes:
        model: with the adapter in place.
        optimizer: over the trained parameters.
        schedule: of the learning rate.
    """

    model: Any
    optimizer: Any
    schedule: Any


def save_checkpoint(
    run: Path,
    state: RunState,
    learner: Learner,
    facts: dict[str, Any],
    *,
    keep: int,
    save_adapter: Callable[[Path], None],
) -> Path:
    """Write the checkpoint of a step and remove the oldest beyond `keep`.

    Args:
        run: folder of the run.
        state: the counters at this step.
        learner: as it is after this step.
        facts: what a resumed run must agree with (config, data, base, versions), as JSON values.
        keep: checkpoints that stay.
        save_adapter: writes PEFT's files into a folder.

    Raises:
        SystemFault: the disk is full or cannot be written; the older checkpoints are untouched.
    """
    import torch

    skeleton, tensors = flatten_state({"optimizer": learner.optimizer.state_dict()})
    counters = {name: getattr(state, name) for name in RunState.__slots__}
    target = run / f"checkpoint-{state.step}"
    with new_folder(target, force=True) as staging:
        save_adapter(staging)
        save_tensors(staging / "trainable.safetensors", trainable(learner.model))
        save_tensors(staging / "optimizer.safetensors", tensors)
        record = {"counters": counters, "schedule": learner.schedule.state_dict(), "state": skeleton}
        (staging / "state.json").write_text(json.dumps(record), encoding="utf-8")
        write_manifest(staging, "checkpoint", {"torch": torch.__version__, **facts})
    with system_faults(run):
        for old in list_checkpoints(run)[keep:]:
            remove_folder(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest first, whole or not."""
    found = [
        (int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files all match its manifest, and a note for each newer one."""
    notes: list[str] = []
    for path in list_checkpoints(run):
        try:
            manifest = read_manifest(path)
        except InputError:
            manifest = None
        told = manifest is not None and all(manifest.get(part) for part in AGREED)
        damaged = damaged_files(path, manifest) if manifest is not None and told else ["lorafold.json"]
        if not damaged:
            return path, notes
        notes.append(f"{path.name} is not whole ({', '.join(damaged)}): falling back to an older one")
    return None, notes


def load_checkpoint(path: Path, learner: Learner) -> RunState:
    """Put a run back to where it was; the caller has checked that the checkpoint is whole and its own.

    Raises:
        InputError: the checkpoint holds other parameters than the model.
    """
    restore_parameters(learner.model, path / "trainable.safetensors")
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    whole = restore_state(record["state"], load_tensors(path / "optimizer.safetensors"))
    learner.optimizer.load_state_dict(whole["optimizer"])
    learner.schedule.load_state_dict(record["schedule"])
    return RunState(**record["counters"])


def restore_parameters(model: Any, path: Path) -> None:
    """Copy saved parameters into the model.

    Raises:
        InputError: names or shapes differ.
    """
    import torch

    saved, live = load_tensors(path), trainable(model)
    odd = sorted(set(saved) ^ set(live)) or [name for name in live if saved[name].shape != live[name].shape]
    if odd:
        problem = f"it holds other parameters than this model ({odd[0]})"
        raise InputError(problem, at=path, fix="pass the same flags, and install the versions that made it")
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(saved[name])
