"""One training run from config to adapter folder: may it begin, and where is it kept?

While it runs everything lies in `OUT.run` beside the target: checkpoints, metrics.jsonl. `session.py` carries
it out and puts the finished adapter in its place.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lorafold.artifacts import check_output, lock, system_faults
from lorafold.errors import UsageError
from lorafold.models import Base, require, resolve_base
from lorafold.progress import Progress, silent
from lorafold.train import checkpoints
from lorafold.train.config import TrainConfig
from lorafold.train.curve import read_metrics
from lorafold.train.result import TrainResult
from lorafold.train.resume import finished_run
from lorafold.train.session import Session, tidy
from lorafold.train.workers import join


def run_folder(out: Path) -> Path:
    """Where an unfinished run into `out` is kept."""
    return out.with_name(f"{out.name}.run")


def train(config: TrainConfig, progress: Progress = silent) -> TrainResult:
    """Train an adapter (or all weights) and write it to `config.out`.

    Args:
        config: what to train, on what, how, and where the result goes.
        progress: told about every step.

    Raises:
        UsageError: the config cannot be meant, or the output is taken.
        InputError: base or data are wrong, or changed since the checkpoint.
        NumericError: loss or gradient is NaN or infinite; the last checkpoint is kept.
        BusyError: another run has this output.
        SystemFault: disk, memory, network or a package.
    """
    config.check()
    require("torch", "transformers", "peft", extra="train")
    out = config.output
    with join() as workers:
        if not workers.first:
            workers.wait()  # the first one fetches the base and prepares the folder
            if (manifest := finished_run(out, config)) is not None:
                return _already_done(out, manifest)
            return Session(config, _base(config), run_folder(out), silent, workers).train()
        if (manifest := finished_run(out, config)) is not None:
            with lock(run_folder(out)):
                tidy(run_folder(out), out)
            workers.wait()
            return _already_done(out, manifest)
        base = _base(config)
        sources = [Path(source).expanduser() for source in (*config.data, *config.eval_data)]
        check_output(out, inputs=[base.folder, *sources], force=config.force)
        run = run_folder(out)
        with system_faults(run):
            run.parent.mkdir(parents=True, exist_ok=True)
        with lock(run):
            _prepare_run_folder(run, config)
            workers.wait()
            return Session(config, base, run, progress, workers).train()


def _base(config: TrainConfig) -> Base:
    return resolve_base(config.base, offline=config.offline, trust_remote_code=config.trust_remote_code)


def _already_done(out: Path, manifest: dict[str, Any]) -> TrainResult:
    done = manifest["training"]
    return TrainResult(
        folder=out,
        steps=done["steps"],
        loss=done["loss"],
        eval_loss=done["eval_loss"],
        tokens=done["tokens"],
        seconds=0.0,
        stopped_by=None,
        notes=("this run had finished already: nothing was done",),
        records=tuple(read_metrics(out / "metrics.jsonl")),
    )


def _prepare_run_folder(run: Path, config: TrainConfig) -> None:
    unfinished = bool(checkpoints.list_checkpoints(run))
    if unfinished and not (config.resume or config.force):
        raise UsageError(
            "an unfinished run with checkpoints lies there",
            at=run,
            fix="pass --resume to go on with it, or --force to discard it",
        )
    with system_faults(run):
        if run.exists() and not config.resume:
            shutil.rmtree(run)
        run.mkdir(exist_ok=True)
