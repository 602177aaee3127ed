"""May a run go on from a checkpoint? Only with the data, the base and the configuration it began with."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorafold import __version__
from lorafold.artifacts import read_manifest
from lorafold.errors import InputError, LorafoldError, UsageError
from lorafold.train.checkpoints import newest_whole
from lorafold.train.config import TrainConfig
from lorafold.train.data import DataSet

# Fields that may differ between a run and its resumption: they do not touch what is computed.
_FREE = {"base", "out", "resume", "force", "offline", "data", "eval_data", "allow_pickle"}
_FREE |= {"trust_remote_code", "logging_steps", "save_steps", "save_total_limit", "report_to"}

# Fields that change only how fast it is computed, and its last bits.
_SPEED = {"packing", "packing_length", "attn_implementation", "use_liger_kernel", "fused_kernels"}
_SPEED |= {"cuda_graphs", "gradient_checkpointing", "torch_compile", "fsdp"}

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def agreed_facts(
    config: TrainConfig,
    data: DataSet,
    held_out: DataSet | None,
    identity: dict[str, Any],
    workers: int = 1,
) -> dict[str, Any]:
    """What a checkpoint and its resumption must have in common, as JSON values.

    Args:
        config: of the run.
        data: to train on.
        held_out: to evaluate on, or None.
        identity: of the base, with its chat template.
        workers: number of processes, which decides how many examples a step sees.
    """
    import torch

    about = {"sha256": data.sha256, "examples": len(data.examples), "layouts": data.layouts}
    if held_out is not None:
        about["eval_sha256"] = held_out.sha256
    versions = {"lorafold": __version__, **{name: version(name) for name in _PACKAGES}}
    versions["threads"] = str(torch.get_num_threads())
    # A tuple comes back from JSON as a list.
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in config.resolved().items()
        if key not in _FREE
    }
    values["workers"] = workers
    return {"config": values, "data": about, "base": identity, "versions": versions}


def finished_run(out: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The manifest of a result that this very configuration has made already, if it is asked to resume."""
    manifest = read_manifest(out) if config.resume and not config.force else None
    if manifest is None or "training" not in manifest:
        return None
    then, now = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for values in (manifest["config"], config.resolved())
    )
    same = all(then.get(key) == value for key, value in now.items() if key not in _FREE)
    return manifest if same else None


def find_checkpoint(run: Path, facts: dict[str, Any], config: TrainConfig) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, None to start at step 0, and what the user should know about it.

    Raises:
        InputError: the data or the base changed since, and there is no `force` to start over with.
        UsageError: the configuration did.
    """
    if not config.resume:
        return None, []
    path, notes = newest_whole(run)
    if path is None:
        return None, [*notes, "nothing to resume: starting at step 0"]
    try:
        notes += _compare(path, facts)
    except LorafoldError as error:
        if not config.force:
            raise
        return None, [*notes, f"{error.problem}: starting over"]
    return path, notes


def _compare(path: Path, facts: dict[str, Any]) -> list[str]:
    """Refuse a checkpoint of another run; other versions are only noted."""
    saved = read_manifest(path)
    assert saved is not None, "newest_whole read it"
    for key, what in (("data", "the data set"), ("base", "the base model")):
        if saved[key] != facts[key]:
            fix = "give the same one, or start over with --force"
            raise InputError(f"{what} changed since this checkpoint", at=path, fix=fix)
    then, now = saved["config"], facts["config"]
    differ = [name for name in now if then.get(name) != now[name]]
    changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in differ if name not in _SPEED]
    if changed:
        raise UsageError(
            f"the configuration changed since this checkpoint: {'; '.join(changed)}",
            at=path,
            fix="resume with the same flags, or start over with --force",
        )
    before = saved["versions"]
    odd = [
        f"{name} {before.get(name)} → {number}"
        for name, number in facts["versions"].items()
        if before.get(name) != number
    ]
    odd += [f"{name} {then.get(name)} → {now[name]}" for name in differ]
    return [f"other than at the checkpoint, so not bitwise the same: {', '.join(odd)}"] if odd else []
