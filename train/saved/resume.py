"""Decides if a run may go on from a checkpoint: only with the data, base and configuration it began with."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorafold.artifacts import read_manifest
from lorafold.errors import InputError, LorafoldError, UsageError
from lorafold.models import Base
from lorafold.train.config import TrainConfig
from lorafold.train.data.load import DataSet
from lorafold.train.saved.checkpoints import AGREED, newest_whole
from lorafold.train.tokens.tokenize import Tokenized
from lorafold.version import __version__

# Fields that may differ between a run and its resumption: they do not change what is computed.
_FREE = {"base", "out", "resume", "force", "offline", "data", "eval_data", "allow_pickle"}
_FREE |= {
    "plan",
    "sample_answers",
    "trust_remote_code",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
}

# Fields that change only how fast it is computed, and its last bits.
_SPEED = {"packing", "packing_length", "attn_implementation", "use_liger_kernel", "fused_kernels"}
_SPEED |= {"cuda_graphs", "gradient_checkpointing", "torch_compile", "fsdp"}

# What makes a base the same. The fingerprint alone tells shapes apart, not a model from its fine-tune.
_IDENTITY = ("id", "revision", "fingerprint")

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def agreed_facts(
    config: TrainConfig,
    data: DataSet,
    held_out: DataSet | None,
    identity: dict[str, Any],
    workers: int = 1,
    tokens: Sequence[Tokenized] = (),
) -> dict[str, Any]:
    """What a checkpoint and its resumption must have in common, as JSON values.

    Args:
        config: of the run.
        data: to train on.
        held_out: to evaluate on, or None.
        identity: of the base, with its chat template.
        workers: number of processes, which decides how many examples a step sees.
        tokens: of both sets; a template that prints the date makes other ones on another day.
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
    return {
        "config": values,
        "data": about,
        "base": identity,
        "versions": versions,
        "tokens": {"sequences": [len(part.sequences) for part in tokens], "sha256": _ids_sha256(tokens)},
        "drawn": "by pass",  # as `forward.seed_pass` does it; once from one stream, kept in the checkpoint
    }


def _ids_sha256(tokens: Sequence[Tokenized]) -> str:
    digest = hashlib.sha256()
    for part in tokens:
        for sequence in part.sequences:
            digest.update(array("q", sequence.ids).tobytes() + bytes(sequence.mask) + b"\n")
    return digest.hexdigest()


def finished_run(out: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The manifest of a result that this configuration has made already, if it is asked to resume."""
    manifest = read_manifest(out) if config.resume and not config.force else None
    if manifest is None or not all(manifest.get(part) for part in ("training", *AGREED)):
        return None
    if not {"steps", "loss", "eval_loss", "tokens"} <= manifest["training"].keys():
        return None
    then, now = (
        {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for values in (manifest["config"], config.resolved())
    )
    same = all(then.get(key) == value for key, value in now.items() if key not in _FREE | _SPEED)
    return manifest if same else None


def require_same(
    out: Path, manifest: Mapping[str, Any], base: Base, data: DataSet, held_out: DataSet | None
) -> None:
    """Refuse a result as the one asked for if it was made from something else.

    Raises:
        InputError: it was made on another base or from other data.
    """
    facts = {"sha256": data.sha256, "eval_sha256": held_out.sha256 if held_out else None}
    changed = {
        "the data set": any(manifest["data"].get(name) != value for name, value in facts.items()),
        "the base model": _is_other(manifest["base"], base.identity(), *_IDENTITY),
    }
    for what, other in changed.items():
        if other:
            fix = "choose another --out, or replace it with --force"
            raise InputError(f"{what} changed since this result", at=out, fix=fix)


def _is_other(one: Mapping[str, Any], other: Mapping[str, Any], *names: str) -> bool:
    return any(one.get(name) != other.get(name) for name in names)


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
    tokens = saved.get("tokens", facts["tokens"])  # an older version did not note them
    for what, changed in (
        ("the data set", saved["data"] != facts["data"]),
        ("the base model", _is_other(saved["base"], facts["base"], *_IDENTITY, "chat_template")),
        ("the number of sequences", tokens["sequences"] != facts["tokens"]["sequences"]),
    ):
        if changed:
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
    if tokens["sha256"] != facts["tokens"]["sha256"]:
        odd.append("the examples' tokens (does the chat template write today's date?)")
    if saved.get("drawn") != facts["drawn"]:
        odd.append("the random numbers, which an older version drew in another way")
    odd += [f"{name} {then.get(name)} → {now[name]}" for name in differ]
    told = "these differ from the checkpoint, so the result will not be bitwise the same"
    return [f"{told}: {', '.join(odd)}"] if odd else []
