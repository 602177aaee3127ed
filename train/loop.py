"""The training loop: examples in, a trained model and its figures out, the same to the last bit when resumed.

Why not transformers' Trainer: its checkpoints are not written as a whole and are read back as pickles, a
missing or damaged part of one resumes silently with other results, and NaN weights train "successfully". Here
a step is a function of the model, the optimizer, torch's generators and the step's number, and those four are
what a checkpoint holds.

The loss of a step is the mean over all trained tokens of its batches, whatever batches they lie in:
L = 1/N · sum over batches and trained positions i of -log p(token[i+1] | tokens[..i]).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat import Encoded
from lorafold.errors import NumericError
from lorafold.progress import Progress
from lorafold.train.base_model import takes_positions
from lorafold.train.checkpoints import RunState, trainable
from lorafold.train.collate import IGNORED, Batch, make_batch, plain_batches, plan_epoch, trained_tokens
from lorafold.train.config import TrainConfig
from lorafold.train.signals import StopRequest

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class Trainer:
    """What one run works with.

    Attributes:
        config: resolved.
        model: with the adapter in place.
        optimizer: over the trained parameters.
        schedule: of the learning rate.
        sequences: to train on.
        evaluation: held out, may be empty.
        device: where batches go.
        pad_id: any id.
        prompt: the method trains a prompt, so logits begin with columns of its own.
        metrics: file that gets a line of JSON per logged step.
    """

    config: TrainConfig
    model: Any
    optimizer: Any
    schedule: Any
    sequences: Sequence[Encoded]
    evaluation: Sequence[Encoded]
    device: torch.device
    pad_id: int
    prompt: bool
    metrics: Path
    on_metrics: Callable[[dict[str, Any]], None] = lambda record: None
    positions: bool = field(init=False)

    def __post_init__(self) -> None:
        self.positions = takes_positions(self.model) and not self.prompt

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the data; the last one of a pass may be smaller."""
        batches = math.ceil(len(self.sequences) / self.config.per_device_train_batch_size)
        return math.ceil(batches / self.config.gradient_accumulation_steps)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.max_steps or math.ceil(self.config.num_train_epochs * self.steps_per_epoch)

    def step_batches(self, step: int) -> list[list[int]]:
        """Indices of the examples in each batch of a step (from 0)."""
        config = self.config
        epoch, index = divmod(step, self.steps_per_epoch)
        lengths = [len(sequence.ids) for sequence in self.sequences]
        plan = plan_epoch(
            lengths,
            config.per_device_train_batch_size,
            seed=config.seed,
            epoch=epoch,
            group=config.group_by_length,
        )
        start = index * config.gradient_accumulation_steps
        return plan[start : start + config.gradient_accumulation_steps]


def run_steps(
    trainer: Trainer,
    state: RunState,
    stop: StopRequest,
    save: Callable[[], None],
    save_best: Callable[[], None],
    progress: Progress,
) -> str:
    """Train from `state` to the end, to a stop request, or to an early stop.

    Args:
        save: writes a checkpoint of the current state.
        save_best: keeps the current parameters as the best so far.

    Returns:
        Why it ended: "done", "stopped" or "early".

    Raises:
        NumericError: loss or gradient is NaN or infinite; nothing of that step is kept.
    """
    config, total = trainer.config, trainer.total_steps
    evaluate_every = config.eval_steps or trainer.steps_per_epoch
    clock, began_tokens, began_step = time.monotonic(), state.tokens, state.step
    trainer.model.train()
    while state.step < total:
        loss, norm, rate = train_step(trainer, state)
        seconds = max(time.monotonic() - clock, 1e-9)
        record = {
            "step": state.step,
            "epoch": round(state.step / trainer.steps_per_epoch, 4),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": state.tokens,
            "tokens_per_second": round((state.tokens - began_tokens) / seconds, 1),
            "memory_gib": round(peak_memory() / 2**30, 3),
        }
        left = seconds / (state.step - began_step) * (total - state.step)
        progress("train", state.step, total, note=_note(record, left))
        if state.step % config.logging_steps == 0 or state.step == total:
            log(trainer, record)
        due = state.step % evaluate_every == 0 or state.step == total
        if trainer.evaluation and due and not _evaluate(trainer, state, save_best, progress):
            return "early"
        if stop.signal is not None and state.step < total:
            save()
            return "stopped"
        if config.save_steps and state.step % config.save_steps == 0 and state.step < total:
            save()
    return "done"


def train_step(trainer: Trainer, state: RunState) -> tuple[float, float, float]:
    """One optimizer step over the batches that accumulate into it.

    Returns:
        Mean loss per trained token, norm of the gradient before clipping, learning rate.

    Raises:
        NumericError: loss or gradient is NaN or infinite.
    """
    import torch

    config = trainer.config
    groups = [[trainer.sequences[i] for i in batch] for batch in trainer.step_batches(state.step)]
    total = sum(trained_tokens(group) for group in groups)
    at = f"step {state.step + 1}"
    summed = 0.0
    trainer.optimizer.zero_grad(set_to_none=True)
    for group in groups:
        batch = make_batch(group, trainer.pad_id)
        loss = summed_loss(trainer, batch) / total
        loss.backward()
        summed += loss.item()
        state.tokens += batch.tokens
        if not math.isfinite(summed):
            raise _not_finite("loss", summed, at)
    parameters = list(trainable(trainer.model).values())
    limit = config.max_grad_norm or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if not math.isfinite(norm):
        raise _not_finite("gradient", norm, at)
    rate = float(trainer.schedule.get_last_lr()[0])
    trainer.optimizer.step()
    trainer.schedule.step()
    state.step += 1
    return summed, norm, rate


def summed_loss(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """Sum of the cross entropy over a batch's targets, in float32.

    Logits are computed at the positions that some row trains, where the model can do that: of a large
    vocabulary they are most of the memory.
    """
    import torch

    targets = batch.targets.to(trainer.device)
    options: dict[str, Any] = {}
    if trainer.positions:
        kept = (targets != IGNORED).any(dim=0).nonzero().flatten()  # (kept,)
        targets = targets[:, kept]
        options["logits_to_keep"] = kept
    with _mixed_precision(trainer):
        output = trainer.model(
            input_ids=batch.input_ids.to(trainer.device),
            attention_mask=batch.attention_mask.to(trainer.device),
            **options,
        )
    logits = output.logits[:, -targets.shape[1] :].float()  # (rows, cols, vocabulary)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _mixed_precision(trainer: Trainer) -> Any:
    """bfloat16 arithmetic on float32 weights: full fine-tuning on a GPU."""
    import torch

    from lorafold.train.base_model import pick_dtype

    wanted = pick_dtype(trainer.config.dtype, trainer.device)
    if trainer.config.method == "full" and trainer.device.type == "cuda" and wanted != torch.float32:
        return torch.autocast("cuda", dtype=wanted)
    return contextlib.nullcontext()


def evaluate(trainer: Trainer) -> float:
    """Mean loss per trained token over the evaluation set, without dropout."""
    import torch

    sequences = trainer.evaluation
    lengths = [len(sequence.ids) for sequence in sequences]
    summed = 0.0
    trainer.model.eval()
    with torch.no_grad():
        for indices in plain_batches(lengths, trainer.config.per_device_train_batch_size):
            batch = make_batch([sequences[i] for i in indices], trainer.pad_id)
            summed += summed_loss(trainer, batch).item()
    trainer.model.train()
    return summed / trained_tokens(sequences)


def _evaluate(trainer: Trainer, state: RunState, save_best: Callable[[], None], progress: Progress) -> bool:
    """Evaluate, note it, keep the best; False when patience has run out."""
    loss = evaluate(trainer)
    if not math.isfinite(loss):
        raise _not_finite("evaluation loss", loss, f"step {state.step}")
    log(trainer, {"step": state.step, "eval_loss": loss})
    progress("train", state.step, trainer.total_steps, note=f"evaluation loss {loss:.4f}")
    if state.best_loss is None or loss < state.best_loss:
        state.best_loss, state.best_step, state.worse = loss, state.step, 0
        save_best()
    else:
        state.worse += 1
    patience = trainer.config.early_stopping_patience
    return not patience or state.worse < patience


def log(trainer: Trainer, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl."""
    with open(trainer.metrics, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    trainer.on_metrics(record)


def _not_finite(what: str, value: float, at: str) -> NumericError:
    return NumericError(
        f"the {what} became {value}; nothing of this step was saved",
        at=at,
        fix="lower --learning-rate, or check the base's weights; the last checkpoint is kept",
    )


def peak_memory() -> int:
    """Most memory this process has held, in bytes: of the GPU where there is one, else resident."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _note(record: dict[str, Any], left: float) -> str:
    minutes, seconds = divmod(round(left), 60)
    speed, memory = record["tokens_per_second"], record["memory_gib"]
    return (
        f"loss {record['loss']:.3f}, lr {record['learning_rate']:.1e}, {speed:.0f} tok/s, "
        f"{memory:.1f} GiB, {minutes}:{seconds:02} left"
    )
