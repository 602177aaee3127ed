"""The training stage: may a run begin, and where is it kept?

While it runs everything lies in `OUT.run` beside the target: checkpoints, metrics.jsonl. `run.py` carries it
out and puts the finished adapter in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafold.artifacts import check_output, lock, system_faults
from lorafold.errors import UsageError
from lorafold.files.home import expanded
from lorafold.files.renames import restore_folder
from lorafold.machine import require_address_space
from lorafold.models import Base, require, resolve_base
from lorafold.progress import Progress, silent, unheard
from lorafold.sources.recognize import run_folder
from lorafold.train.config import TrainConfig
from lorafold.train.data.load import load_splits
from lorafold.train.run import Order, carry_out
from lorafold.train.saved.curve import read_metrics
from lorafold.train.saved.result import TrainResult, next_commands, what_it_holds
from lorafold.train.saved.resume import finished_run, require_same
from lorafold.train.saved.unfinished import discard_unless_begun, prepare, tidy
from lorafold.train.workers import join

_ADDRESS_SPACE = 1_500_000_000  # bytes: torch's libraries, and stacks of threads


def train(
    config: TrainConfig, progress: Progress = silent, say: Callable[[str], None] = unheard
) -> TrainResult:
    """Train an adapter (or all weights) and write it to `config.out`.

    Args:
        config: what to train, on what, how, and where the result goes.
        progress: told about every step.
        say: told, in one line each, what the user should know while the run lasts.

    Raises:
        UsageError: the config contradicts itself, or the output is taken.
        InputError: base or data are wrong, or changed since the checkpoint.
        NumericError: loss or gradient is NaN or infinite; the last checkpoint is kept.
        BusyError: another run has this output.
        SystemFault: disk, memory, network or a package.
    """
    config.check()
    if config.plan:
        problem = "the config asks for a plan, but train() trains"
        raise UsageError(problem, at="plan", fix="call lorafold.train.plan_training(config)")
    require("torch", "transformers", "peft", extra="train")
    require_address_space(_ADDRESS_SPACE, "training")
    with system_faults(config.output):
        out = config.output.resolve()  # once: the working folder and symlinks may be replaced on the way
    run = run_folder(out)
    with join() as workers:
        if not workers.first:
            workers.wait()  # the first one downloads the base and prepares the folder
            if (manifest := finished_run(out, config)) is not None:
                return _already_done(config, out, manifest)
            return carry_out(Order(config, _base(config), out, run, workers, silent, unheard))
        if out.parent.is_dir():
            with lock(out), system_faults(out):
                restore_folder(out)
        base = _base(config)
        if (manifest := finished_run(out, config)) is not None:
            require_same(out, manifest, base, *load_splits(config))
            with lock(run):
                tidy(run, out)
            workers.wait()
            return _already_done(config, out, manifest)
        sources = [expanded(source) for source in (*config.data, *config.eval_data)]
        made = ("adapter", "base")
        check_output(config.output, inputs=[base.folder, *sources], force=config.force, replaces=made)
        with system_faults(run):
            run.parent.mkdir(parents=True, exist_ok=True)
        with lock(run):
            prepare(run, config)
            try:
                workers.wait()
                return carry_out(Order(config, base, out, run, workers, progress, say))
            except BaseException:
                discard_unless_begun(run)
                raise


def _base(config: TrainConfig) -> Base:
    return resolve_base(config.base, offline=config.offline, trust_remote_code=config.trust_remote_code)


def _already_done(config: TrainConfig, out: Path, manifest: dict[str, Any]) -> TrainResult:
    done = manifest["training"]
    return TrainResult(
        folder=out,
        steps=done["steps"],
        loss=math.nan if done["loss"] is None else done["loss"],
        eval_loss=done["eval_loss"],
        tokens=done["tokens"],
        seconds=0.0,
        stopped_by=None,
        notes=("this run had finished already: nothing was done",),
        records=tuple(read_metrics(out / "metrics.jsonl")),
        holds=what_it_holds(out),
        next=next_commands(config, out),
    )
