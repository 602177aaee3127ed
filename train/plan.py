"""`lorafold train --plan`: what a run would be, whether it fits, and how long it takes, without training.

The model is loaded and a few steps are taken for their time and memory; nothing is kept.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lorafold.errors import SystemFault, UsageError
from lorafold.models import require, resolve_base
from lorafold.progress import Lines, Progress, silent, unheard
from lorafold.train.config import TrainConfig
from lorafold.train.estimate import Estimate, memory_line
from lorafold.train.fast.speed import restored_modules
from lorafold.train.loop import loss_of, peak_memory, train_step
from lorafold.train.material import read_material
from lorafold.train.model.base import memory_faults
from lorafold.train.model.room import least_memory
from lorafold.train.run import Order, Run, begin, facts_of
from lorafold.train.signals import StopRequest
from lorafold.train.workers import place

_TIMED = 3  # steps after the first, which is slower
_ENOUGH = 5.0  # seconds after which no further step is timed
_SMALLER = "choose --method qlora, or lower --per-device-train-batch-size or --max-length"


def plan_training(config: TrainConfig, progress: Progress = silent) -> Lines:
    """Say what a run would be.

    Args:
        config: of the run; `out` may be left out.
        progress: told about every step.

    Returns:
        Label and text of each line.

    Raises:
        LorafoldError: as `train` raises it; that memory is short is no error here but a line.
    """
    config = replace(config, plan=True)  # which does without `out`
    config.check()
    require("torch", "transformers", "peft", extra="train")
    if place().count > 1:
        raise UsageError("a plan is made by one process", at="--plan", fix="start it without torchrun")
    base = resolve_base(config.base, offline=config.offline, trust_remote_code=config.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="lorafold-plan-") as work:
        order = Order(config, base, Path(work) / "out", Path(work), place(), progress, unheard)
        with memory_faults():
            material = read_material(config, base.folder, order.folder, progress)
        tokens = material.tokens
        lines: Lines = [("data", tokens.summary()), *(("note", note) for note in material.notes[1:])]
        least, room, where = least_memory(config, base)
        if room and least > room:
            says = memory_line(least, room, where)
            return [*lines, ("memory", f"{says} (the base's weights alone)"), ("fix", _SMALLER)]
        try:
            with memory_faults(), restored_modules():
                run = begin(order, material, facts_of(order, material), None, [])
                seconds, taken = _measure(run, progress)
        except SystemFault as error:
            if error.problem != "out of memory":
                raise
            return [
                *lines,
                ("memory", f"more than the {room / 2**30:.1f} GiB on {where}: does not fit"),
                ("fix", _SMALLER),
            ]
        return [*lines, *_told(run.size, run.notes[-1], seconds, taken)]


def _told(size: Estimate, computed: str, seconds: float, taken: int) -> Lines:
    hours, minutes = divmod(round(seconds / 60), 60)
    long = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return [
        ("run", size.course()),
        ("trained", size.model()),
        ("memory", memory_line(peak_memory(), size.room, size.place, measured=True)),
        ("time", f"about {long} for all steps, estimated from {taken} timed step{'s' * (taken > 1)}"),
        ("how", computed),
    ]


def _measure(run: Run, progress: Progress) -> tuple[float, int]:
    """Take a few steps; seconds that the whole run will take, and how many steps were timed.

    The first one is not counted, unless there is no other, or it was long on a CPU, where the preparations in
    it are a second.
    """
    trainer, state, plan = run.trainer, run.state, run.trainer.plan
    total = min(1 + _TIMED, plan.total_steps)
    seconds, tokens = list[float](), list[int]()
    trainer.model.train()
    for done in range(total):
        progress("time a few steps", done, total)
        began, before = time.monotonic(), state.tokens
        train_step(trainer, state, StopRequest())
        seconds.append(time.monotonic() - began)
        tokens.append(state.tokens - before)
        long = sum(seconds[done > 0 :]) > _ENOUGH
        if long and (done or trainer.forward.device.type == "cpu"):
            break
    progress("time a few steps", total, total)
    counted = slice(1 if len(seconds) > 1 else 0, None)
    each = sum(seconds[counted]) / max(sum(tokens[counted]), 1)
    whole = plan.total_steps * sum(map(len, (one.ids for one in plan.sequences))) / plan.steps_per_epoch
    return each * whole + _evaluations(run), len(seconds[counted])


def _evaluations(run: Run) -> float:
    """Seconds that all evaluations of a run will take, by one batch and one answer that are timed."""
    plan = run.trainer.plan
    if not plan.evaluation:
        return 0.0
    batches, questions = list(plan.evaluation_step().batches), run.questions
    began = time.monotonic()
    loss_of(run.trainer, [batches[len(batches) // 2]])
    evaluated = time.monotonic()
    run.questions = questions[:1]
    run.answers()
    answered = time.monotonic()
    count = math.ceil(plan.total_steps / (plan.config.eval_steps or plan.steps_per_epoch))
    return count * (len(batches) * (evaluated - began) + len(questions) * (answered - evaluated))
