"""The training loop; a resumed run takes the same steps to the last bit.

Why not transformers' Trainer: its checkpoints are not written as a whole and are read back as pickles, a
missing or damaged part of one resumes silently with other results, and NaN weights train "successfully". Here
a step is a function of the model, the optimizer and the step's number, and those three are what a checkpoint
holds: what is drawn at random is seeded by the number of the step, the pass and the worker (`seed_pass`).

The loss of a step is the mean over all trained tokens of its batches, whatever batches they lie in and
whichever worker computes them:
L = 1/N · sum over batches and trained positions i of -log p(token[i+1] | tokens[..i]).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.artifacts import system_faults
from lorafold.errors import NumericError
from lorafold.progress import Progress, silent
from lorafold.train.config import TrainConfig
from lorafold.train.fast.forward import Forward, seed_pass
from lorafold.train.model.adapter import trainable
from lorafold.train.model.answers import SampleAnswer
from lorafold.train.saved.checkpoints import Learner, RunState
from lorafold.train.saved.curve import rise_note, risen
from lorafold.train.signals import StopRequest
from lorafold.train.tokens.batches import StepPlan
from lorafold.train.tokens.collate import Batch

_WINDOW = 20  # steps that the speed is taken over
_SMALLEST_SCALE = 2.0**-10  # of the loss in float16; below it the gradient itself is infinite


@dataclass(slots=True)
class Trainer:
    """What one run works with.

    Attributes:
        forward: the model, and how it is called.
        plan: which examples each step sees, and how they are laid.
        optimizer: over the trained parameters.
        schedule: of the learning rate.
        scaler: of the loss in float16; switched off in other types.
        metrics: file that gets a line of JSON per logged step.
        on_metrics: gets the same records.
    """

    forward: Forward
    plan: StepPlan
    optimizer: Any
    schedule: Any
    scaler: Any
    metrics: Path
    on_metrics: Callable[[dict[str, Any]], None] = lambda record: None

    @property
    def model(self) -> Any:
        """The model with the adapter in place."""
        return self.forward.model

    @property
    def learner(self) -> Learner:
        """What a checkpoint holds of it."""
        return Learner(self.model, self.optimizer, self.schedule)


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the loop calls on its way.

    Attributes:
        progress: told about every step.
        say: told what the user should know at once, in one line.
        save: writes a checkpoint of the current state; of the last one too, since writing the result may
            fail (a full disk) when all steps are done.
        save_best: keeps the current parameters as the best so far.
        answers: sample answers of the model as it is; asked at each evaluation.
    """

    progress: Progress = silent
    say: Callable[[str], None] = _nothing
    save: Callable[[], None] = _nothing
    save_best: Callable[[], None] = _nothing
    answers: Callable[[], list[SampleAnswer]] = list


def run_steps(trainer: Trainer, state: RunState, stop: StopRequest, hooks: Hooks) -> str:
    """Train from `state` to the end, to a stop request, or to an early stop.

    Returns:
        Why it ended: "done", "stopped" or "early".

    Raises:
        NumericError: a loss, a gradient or a parameter is NaN or infinite; nothing of that step is kept.
    """
    plan, config = trainer.plan, trainer.plan.config
    total = plan.total_steps
    evaluate_every = config.eval_steps or plan.steps_per_epoch
    trainer.model.train()
    early = _patience_is_out(config, state)  # this run was resumed from one that had stopped early
    if early or (state.step and state.step == total):
        prove(trainer, state.step)
        return "early" if early else "done"
    losses: list[float] = []
    warned = False
    recent = deque([(time.monotonic(), state.tokens)], maxlen=_WINDOW + 1)
    while state.step < total:
        figures = train_step(trainer, state, stop)
        recent.append((time.monotonic(), state.tokens))
        (then, tokens), (now, _) = recent[0], recent[-1]
        seconds = max(now - then, 1e-9)
        record = {
            "step": state.step,
            "epoch": round(state.step / plan.steps_per_epoch, 4),
            "loss": figures.loss,
            "learning_rate": figures.learning_rate,
            "grad_norm": figures.norm,
            "tokens": state.tokens,
            "tokens_per_second": round((state.tokens - tokens) / seconds, 1),
            "memory_gib": round(peak_memory() / 2**30, 3),
        }
        hooks.progress("train", state.step, total, note=_note(record))
        losses.append(figures.loss)
        if not warned and (rise := risen(losses)) is not None:
            warned = True
            hooks.say(f"note: {rise_note(rise)}")
        due = state.step % evaluate_every == 0 or state.step == total
        evaluated = _evaluate(trainer, state, hooks) if plan.evaluation and due else None
        early = _patience_is_out(config, state)
        ended = early or state.step == total
        alone = plan.workers.count == 1  # several agree to stop at the end of the next step
        stopped = not ended and (figures.stop or (alone and stop.signal is not None))
        if ended or stopped or state.step % config.logging_steps == 0:
            log(trainer, record)
        if evaluated is not None:
            log(trainer, {"step": state.step, **evaluated})
        saves = stopped or (config.save_steps and (ended or state.step % config.save_steps == 0))
        if saves or ended:
            prove(trainer, state.step)
        if saves:
            hooks.save()
        if stopped or early:
            return "stopped" if stopped else "early"
    return "done"


def _patience_is_out(config: TrainConfig, state: RunState) -> bool:
    return bool(config.early_stopping_patience) and state.worse >= config.early_stopping_patience


@dataclass(frozen=True, slots=True)
class StepFigures:
    """The figures of a step, over all workers.

    Attributes:
        loss: mean per trained token.
        norm: of the gradient, before clipping.
        learning_rate: of this step.
        stop: a worker was asked to stop.
    """

    loss: float
    norm: float
    learning_rate: float
    stop: bool


def train_step(trainer: Trainer, state: RunState, stop: StopRequest) -> StepFigures:
    """One optimizer step over the batches that accumulate into it.

    Raises:
        NumericError: loss or gradient is NaN or infinite.
    """
    import torch

    config, workers, scaler = trainer.plan.config, trainer.plan.workers, trainer.scaler
    step = trainer.plan.step(state.step)
    # Loss and stop request, summed over the workers in one message; read once, when the step is done.
    sums = torch.zeros(2, dtype=torch.float64, device=trainer.forward.device)
    sums[1] = float(stop.signal is not None)
    # A graph adds its gradients to the memory that is there, which must stay the same (`build._graphs`).
    trainer.optimizer.zero_grad(set_to_none=trainer.forward.graphs is None)
    for number, batch in enumerate(step.batches):
        seed_pass(config.seed, state.step, number, workers.rank)
        loss = trainer.forward.loss(batch) / step.trained
        scaler.scale(loss).backward()
        sums[0] += loss.detach()
        del loss  # a graph cannot be captured while nodes of another pass are alive
    workers.total(sums)
    parameters = list(trainable(trainer.model).values())
    workers.sum_gradients(parameters)
    scaler.unscale_(trainer.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
    summed, stops = (float(figure) for figure in sums.tolist())
    length = float(norm)
    at = f"step {state.step + 1}"
    if not math.isfinite(summed):
        raise _not_finite("loss", summed, at)
    # float16 overflows now and then: the scaler skips such a step and scales less, down to a limit.
    if not math.isfinite(length) and not (scaler.is_enabled() and scaler.get_scale() > _SMALLEST_SCALE):
        raise _not_finite("gradient", length, at)
    rate = float(trainer.schedule.get_last_lr()[0])
    scaler.step(trainer.optimizer)
    scaler.update()
    trainer.schedule.step()
    state.step += 1
    state.tokens += step.tokens
    state.loss = summed
    state.scaler = scaler.state_dict()
    return StepFigures(summed, length, rate, stops > 0)


def prove(trainer: Trainer, step: int) -> None:
    """Refuse weights that are not finite, or with which the loss is not finite any more.

    A step's own loss comes from the weights before it: a single step can ruin them and leave no trace but in
    the next loss. So before weights are written they answer for the first batch of the step that made them,
    which fits in memory, since it did a moment ago.

    Raises:
        NumericError: a trained parameter, or the loss, is NaN or infinite.
    """
    import torch

    parameters = trainable(trainer.model)
    bad = [name for name, value in parameters.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise _not_finite("parameter", "NaN or infinite", f"step {step}: {bad[0]}")
    loss = loss_of(trainer, [next(iter(trainer.plan.step(step - 1).batches))])
    if not math.isfinite(loss):
        raise _not_finite("loss with the new weights", loss, f"step {step}")


def evaluate(trainer: Trainer) -> float:
    """Mean loss per trained token over the evaluation set, without dropout."""
    step = trainer.plan.evaluation_step()
    return loss_of(trainer, step.batches) / step.trained


def loss_of(trainer: Trainer, batches: Iterable[Batch]) -> float:
    """The loss of batches, summed over their tokens and over all workers, without dropout."""
    import torch

    summed = torch.zeros(1, dtype=torch.float64, device=trainer.forward.device)
    trainer.model.eval()
    with torch.no_grad():
        for batch in batches:
            summed += trainer.forward.loss(batch)
    trainer.model.train()
    return float(trainer.plan.workers.total(summed))


def _evaluate(trainer: Trainer, state: RunState, hooks: Hooks) -> dict[str, Any]:
    """Evaluate, count it, keep the best, ask the sample questions; the record of it."""
    loss = evaluate(trainer)
    if not math.isfinite(loss):
        raise _not_finite("evaluation loss", loss, f"step {state.step}")
    hooks.progress("train", state.step, trainer.plan.total_steps, note=f"evaluation loss {loss:.4f}")
    if state.best_loss is None or loss < state.best_loss:
        state.best_loss, state.best_step, state.worse = loss, state.step, 0
        hooks.save_best()
    else:
        state.worse += 1
    record: dict[str, Any] = {"eval_loss": loss}
    if answers := hooks.answers():
        record["samples"] = [dataclasses.asdict(answer) for answer in answers]
        hooks.say(f"step {state.step}, evaluation loss {loss:.4f}: {answers[0].line()}")
    return record


def log(trainer: Trainer, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl, which the first worker keeps."""
    if not trainer.plan.workers.first:
        return
    with system_faults(trainer.metrics), open(trainer.metrics, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    trainer.on_metrics(record)


def _not_finite(what: str, value: float | str, at: str) -> NumericError:
    return NumericError(
        f"the {what} became {value}; nothing of this step was saved",
        at=at,
        fix="lower --learning-rate, or check the base's weights; the last checkpoint is kept",
    )


def peak_memory() -> int:
    """Most memory this process has held, in bytes: of the GPU if there is one, else resident."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _note(record: dict[str, Any]) -> str:
    speed, memory = record["tokens_per_second"], record["memory_gib"]
    return f"loss {record['loss']:.3f}, lr {record['learning_rate']:.1e}, {speed:.0f} tok/s, {memory:.1f} GiB"
