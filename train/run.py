"""One training run carried out: data, model, steps, checkpoints, and the files of the result.

The finished adapter is staged, synced and renamed to OUT, so OUT is the complete old state or the complete
new one; then the checkpoints move into it and the run's folder goes.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.artifacts import new_folder, write_manifest
from lorafold.chat.sources import JINJA_FILE, MORE_TEMPLATES, TOOL_USE
from lorafold.errors import InputError, SystemFault
from lorafold.files.renames import remove_folder
from lorafold.models import Base
from lorafold.progress import Progress
from lorafold.train.build import Built, Lessons, build
from lorafold.train.config import TrainConfig
from lorafold.train.data.held_out import write_held_out
from lorafold.train.estimate import Estimate, estimate
from lorafold.train.fast.attention import with_cache
from lorafold.train.fast.forward import causal_model
from lorafold.train.fast.speed import restored_modules
from lorafold.train.loop import Hooks, Trainer, run_steps
from lorafold.train.material import Material, read_material
from lorafold.train.methods import METHODS, Method
from lorafold.train.model.adapter import copy_tokenizer, save_adapter, trainable
from lorafold.train.model.answers import Question, SampleAnswer, answer_all, choose_questions
from lorafold.train.model.base import base_dtype, memory_faults
from lorafold.train.model.packing import packing_note, trained_weights
from lorafold.train.model.tensorfiles import load_tensors, save_tensors
from lorafold.train.saved import checkpoints
from lorafold.train.saved.card import model_card
from lorafold.train.saved.checkpoints import RunState
from lorafold.train.saved.curve import (
    curves,
    draw_png,
    event_writer,
    keep_until,
    read_metrics,
    rise_note,
    risen,
)
from lorafold.train.saved.page import loss_page
from lorafold.train.saved.result import (
    CURVE,
    LOSS_PAGE,
    TrainResult,
    last_value,
    next_commands,
    what_it_holds,
)
from lorafold.train.saved.resume import agreed_facts, find_checkpoint
from lorafold.train.saved.unfinished import forget, tidy
from lorafold.train.signals import StopRequest, stop_requests
from lorafold.train.workers import Workers


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, and who is to be told.

    Attributes:
        config: checked.
        base: the model to train.
        out: where the result goes, absolute and without symlinks.
        folder: where the run keeps its files until it is done.
        workers: the place of this one.
        progress: told about every step.
        say: told, in one line, what the user should know at once.
    """

    config: TrainConfig
    base: Base
    out: Path
    folder: Path
    workers: Workers
    progress: Progress
    say: Callable[[str], None]

    @property
    def method(self) -> Method:
        """The row of the method."""
        return METHODS[self.config.method]

    @property
    def work_folder(self) -> Path:
        """For files that each worker makes for itself."""
        return self.folder / f"worker-{self.workers.rank}" if self.workers.rank else self.folder


def carry_out(order: Order) -> TrainResult:
    """Train from the beginning, or from the newest checkpoint, to the end or to a stop request.

    Raises:
        LorafoldError: as `stage.train` says.
    """
    began = time.monotonic()
    with memory_faults():
        material = read_material(order.config, order.base.folder, order.work_folder, order.progress)
    facts = facts_of(order, material)
    checkpoint, notes = find_checkpoint(order.folder, facts, order.config)
    order.workers.wait()  # all have looked before anything is cleared
    if checkpoint is None and order.workers.first:
        forget(order.folder)
    with memory_faults(), restored_modules():
        run = begin(order, material, facts, checkpoint, notes)
        with stop_requests(order.say) as stop:
            folder = run.train(stop)
    order.workers.wait()
    if folder != order.folder and folder.exists() and not folder.samefile(order.out):
        run.notes.append("the working folder itself was replaced: `cd .` shows the new one")
        folder = order.out
    stopped_by = (stop.signal or signal.SIGTERM) if folder == order.folder else None
    return run.result(folder, stopped_by, time.monotonic() - began)


def begin(
    order: Order, material: Material, facts: dict[str, Any], checkpoint: Path | None, notes: list[str]
) -> Run:
    """Build a run, ready for its next step.

    Args:
        order: what is to be done.
        material: the examples and their tokens.
        facts: what a checkpoint and its resumption must have in common.
        checkpoint: to go on from; None for step 0.
        notes: what the user should know of it.
    """
    config, method = order.config, order.method
    held_out = material.held_out_tokens
    order.progress("load the base", 0, 1)
    built = build(
        config,
        order.base,
        Lessons(
            material.tokens.sequences,
            held_out.sequences if held_out else (),
            material.tokenizer.pad_id or 0,
            material.rows,
        ),
        order.folder / "metrics.jsonl",
        order.workers,
    )
    found = estimate(built.trainer, material.tokens, built.speed, order.workers)
    check_disk(order, found.trained)
    order.progress("load the base", 1, 1, note=f"{found.trained:,} trained weights, {found.place}")
    for line in found.begin():
        order.say(line)
    notes = [
        *material.notes,
        *([method.warning] if method.warning else []),
        *notes,
        *([packed] if (packed := packing_note(order.base, config, method)) else []),
        *built.notes,
        f"computed on {found.place}: {built.speed.line()}",
    ]
    state = RunState()
    if checkpoint is not None:
        state = restore(order, built, checkpoint)
        notes.append(f"resumed at step {state.step}")
    questions: tuple[Question, ...] = ()
    if held_out and held_out.sequences and material.held_out is not None:
        questions = choose_questions(
            material.held_out.examples, material.tokenizer, config.sample_answers, config.max_length
        )
    return Run(order, material, facts, built.trainer, built.initial, state, found, questions, notes)


def facts_of(order: Order, material: Material) -> dict[str, Any]:
    """What a checkpoint of this run and its resumption must have in common."""
    identity = order.base.identity() | {"chat_template": material.tokenizer.template.source}
    tokens = [part for part in (material.tokens, material.held_out_tokens) if part is not None]
    return agreed_facts(order.config, material.data, material.held_out, identity, order.workers.count, tokens)


def check_disk(order: Order, trained: int) -> None:
    """Refuse to start if the checkpoints cannot fit.

    Raises:
        SystemFault: the disk is too small.
    """
    # A checkpoint holds the parameters twice, and two moments, in float32; one more is being written.
    needed = trained * 4 * 4 * (order.config.save_total_limit + 1)
    free = shutil.disk_usage(order.folder).free
    if free < needed:
        raise SystemFault(
            f"checkpoints need {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
            at=order.folder,
            fix="free space, lower --save-total-limit, or choose an --out on another disk",
        )


def restore(order: Order, built: Built, path: Path) -> RunState:
    """Put a freshly built run back to where a checkpoint was.

    Raises:
        InputError: the checkpoint is of another run or machine.
    """
    trainer = built.trainer
    if built.initial:
        _check_start(order.config, built.initial, path)
    state = checkpoints.load_checkpoint(path, trainer.learner)
    if state.scaler:
        trainer.scaler.load_state_dict(state.scaler)
    order.workers.wait()  # all have read it
    if order.workers.first:
        keep_until(trainer.metrics, state.step)
        for later in checkpoints.list_checkpoints(order.folder):
            if int(later.name.rpartition("-")[2]) > state.step:
                remove_folder(later)  # not whole: a kept one would be chosen over its successor
    return state


def _check_start(config: TrainConfig, initial: dict[str, Any], path: Path) -> None:
    """PiSSA and OLoRA start from a part of the base: it must come out as it did then."""
    saved = load_tensors(path / "initial.safetensors")
    if any(not saved[name].equal(value) for name, value in initial.items()):
        raise InputError(
            f"{config.method} starts from other numbers on this machine than those of the checkpoint",
            at=path,
            fix="resume on the machine and with the versions it was made with",
        )


@dataclass(slots=True)
class Run:
    """A run that is ready for its next step.

    Attributes:
        order: what is to be done.
        material: the examples and their tokens.
        facts: what a checkpoint and its resumption must have in common.
        trainer: model, optimizer and plan.
        initial: the adapter before the first step, for methods that start from a part of the base.
        state: the counters.
        size: what the run is and takes.
        questions: asked at each evaluation.
        notes: what the user should know; more are added on the way.
    """

    order: Order
    material: Material
    facts: dict[str, Any]
    trainer: Trainer
    initial: dict[str, Any]
    state: RunState
    size: Estimate
    questions: tuple[Question, ...] = ()
    notes: list[str] = field(default_factory=list)

    def train(self, stop: StopRequest) -> Path:
        """Take the steps, and write the result if they came to an end.

        Returns:
            The folder of the result, or the run's folder if it was stopped.
        """
        order = self.order
        hooks = Hooks(order.progress, order.say, self.save, self.save_best, self.answers)
        with self.events():
            ended = run_steps(self.trainer, self.state, stop, hooks)
        graphs = self.trainer.forward.graphs
        if graphs is not None and graphs.fault:
            self.notes.append(f"went on without CUDA graphs, since a capture failed: {graphs.fault}")
        if ended == "stopped":
            return order.folder
        if order.workers.first:
            self.finish()
        return order.config.output

    def save_peft(self, folder: Path) -> None:
        """Write PEFT's files; a checkpoint of full fine-tuning holds the weights already."""
        if self.order.method.peft is not None:
            save_adapter(self.trainer.model, folder, self.order.base, self.order.method, self.initial)
        if self.initial:
            save_tensors(folder / "initial.safetensors", self.initial)

    def save(self) -> None:
        """Write a checkpoint; the parameters are the same on all workers."""
        if self.order.workers.first:
            checkpoints.save_checkpoint(
                self.order.folder,
                self.state,
                self.trainer.learner,
                self.facts,
                keep=self.order.config.save_total_limit,
                save_adapter=self.save_peft,
            )

    def save_best(self) -> None:
        """Keep the parameters of the best evaluation so far."""
        if self.order.config.load_best_model_at_end and self.order.workers.first:
            with new_folder(self.order.folder / "best", force=True) as staging:
                save_tensors(staging / "trainable.safetensors", trainable(self.trainer.model))

    def answers(self) -> list[SampleAnswer]:
        """The model's answers to the sample questions; none once it could not answer."""
        together = bool(self.trainer.plan.config.fsdp)
        if not self.questions or not (self.order.workers.first or together):
            return []
        try:
            with with_cache(causal_model(self.trainer.model)):
                return answer_all(
                    self.trainer.model, self.material.tokenizer, self.questions, together=together
                )
        except _CANNOT_ANSWER as error:
            if together:  # the others are still in the middle of it
                raise
            self.questions = ()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            self.notes.append(f"no sample answers: the model cannot generate here ({reason})")
            return []

    @contextlib.contextmanager
    def events(self) -> Iterator[None]:
        """Send the figures to TensorBoard as well, if that is asked for."""
        if self.order.config.report_to == "none" or not self.order.workers.first:
            yield
            return
        with event_writer(self.order.folder / "runs") as write:
            self.trainer.on_metrics = write
            yield

    def finish(self) -> None:
        """Write the result and put it in its place."""
        order, trainer, material = self.order, self.trainer, self.material
        config, out, method = order.config, order.out, order.method
        order.progress("write the adapter", 0, 1)
        if config.load_best_model_at_end and self.state.best_step not in (0, self.state.step):
            checkpoints.restore_parameters(trainer.model, order.folder / "best" / "trainable.safetensors")
            self.notes.append(f"kept the best evaluation, of step {self.state.best_step}")
        records = read_metrics(trainer.metrics)
        if (rise := risen([loss for _, loss in curves(records).get("loss", ())])) is not None:
            self.notes.append(rise_note(rise))
        with new_folder(out, force=config.force) as staging:
            dtype = base_dtype(order.base) if method.peft is None else None
            save_adapter(trainer.model, staging, order.base, method, self.initial, dtype)
            copy_tokenizer(material.folder, staging)
            if material.own_template:  # it was trained with, so it goes with the adapter
                template = material.tokenizer.template
                (staging / JINJA_FILE).write_text(template.source, encoding="utf-8")
                if template.tool_use:
                    (staging / MORE_TEMPLATES).mkdir(exist_ok=True)
                    (staging / MORE_TEMPLATES / f"{TOOL_USE}.jinja").write_text(template.tool_use, "utf-8")
            write_held_out(staging, material.held_out.examples if material.held_out else ())
            shutil.copyfile(trainer.metrics, staging / "metrics.jsonl")
            if (order.folder / "runs").is_dir():
                shutil.copytree(order.folder / "runs", staging / "runs")
            curve = draw_png(records, staging / CURVE, out.name)
            facts = self.result_facts(records)
            card = model_card(config, facts, out.name, curve=curve, samples=last_value(records, "samples"))
            (staging / "README.md").write_text(card, encoding="utf-8")
            if page := loss_page(records, out.name, facts):
                (staging / LOSS_PAGE).write_text(page, encoding="utf-8")
            kind = "base" if method.peft is None else "adapter"
            write_manifest(staging, kind, facts)
        tidy(order.folder, out)
        order.progress("write the adapter", 1, 1)

    def result_facts(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """What `lorafold.json` says about the run."""
        identity = dict(self.facts["base"])
        template = identity.pop("chat_template")
        return {
            "method": self.order.config.method,
            "config": self.order.config.resolved(),
            "base": identity
            | {"weights": trained_weights(self.order.base, self.order.config, self.order.method)},
            "data": self.facts["data"],
            "chat_template": template,
            "versions": self.facts["versions"],
            "training": {
                "steps": self.state.step,
                "tokens": self.state.tokens,
                "loss": self.loss(records),
                "eval_loss": self.eval_loss(records),
                "cut": self.material.tokens.cut,
                "dropped": len(self.material.tokens.dropped),
            },
            "notes": list(self.notes),
        }

    def loss(self, records: list[dict[str, Any]]) -> float | None:
        """The loss of the last step; a checkpoint of an older version leaves it to what was logged."""
        return last_value(records, "loss") if self.state.loss is None else self.state.loss

    def eval_loss(self, records: list[dict[str, Any]]) -> float | None:
        """The loss of the best evaluation if its weights are kept, else of the last one."""
        keeps_best = self.order.config.load_best_model_at_end
        return self.state.best_loss if keeps_best else last_value(records, "eval_loss")

    def result(self, folder: Path, stopped_by: signal.Signals | None, seconds: float) -> TrainResult:
        """What the run came to."""
        records = read_metrics(folder / "metrics.jsonl")
        return TrainResult(
            folder=folder,
            steps=self.state.step,
            loss=math.nan if (loss := self.loss(records)) is None else loss,
            eval_loss=self.eval_loss(records),
            tokens=self.state.tokens,
            seconds=seconds,
            stopped_by=stopped_by,
            notes=tuple(self.notes),
            records=tuple(records),
            holds=what_it_holds(folder) if stopped_by is None else "",
            next=next_commands(self.order.config, folder) if stopped_by is None else (),
        )


# What generating raises for a model whose own code is older than transformers' way of calling it.
_CANNOT_ANSWER = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)
