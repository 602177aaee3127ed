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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafold.artifacts import new_folder, write_manifest
from lorafold.errors import InputError, SystemFault
from lorafold.models import Base
from lorafold.progress import Progress
from lorafold.renames import remove_folder
from lorafold.train.build import build
from lorafold.train.config import TrainConfig
from lorafold.train.data.held_out import write_held_out
from lorafold.train.fast.speed import restored_modules
from lorafold.train.loop import run_steps
from lorafold.train.material import read_material
from lorafold.train.methods import METHODS
from lorafold.train.model.adapter import copy_tokenizer, save_adapter, trainable
from lorafold.train.model.base import base_dtype, memory_faults
from lorafold.train.saved import checkpoints
from lorafold.train.saved.card import model_card
from lorafold.train.saved.checkpoints import RunState
from lorafold.train.saved.curve import draw_png, event_writer, keep_until, read_metrics
from lorafold.train.saved.result import TrainResult, last_value
from lorafold.train.saved.resume import agreed_facts, find_checkpoint
from lorafold.train.saved.unfinished import forget, tidy
from lorafold.train.signals import stop_requests
from lorafold.train.workers import Workers


class Session:
    """The parts of a run, built one after the other."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        base: Base,
        run: Path,
        progress: Progress,
        workers: Workers,
    ) -> None:
        self.config, self.base, self.progress = config, base, progress
        self.out, self.run = out, run  # without symlinks, and absolute
        self.workers = workers
        self.method = METHODS[config.method]
        self.notes: list[str] = [self.method.warning] if self.method.warning else []
        self.state = RunState()

    def train(self) -> TrainResult:
        began = time.monotonic()
        with memory_faults():
            self.material = read_material(self.config, self.base.folder, self.work_folder, self.progress)
        material = self.material
        self.notes = [*material.notes, *self.notes]
        identity = self.base.identity() | {"chat_template": material.tokenizer.template.source}
        tokens = [part for part in (material.tokens, material.held_out_tokens) if part is not None]
        self.facts = agreed_facts(
            self.config, material.data, material.held_out, identity, self.workers.count, tokens
        )
        resumed, notes = find_checkpoint(self.run, self.facts, self.config)
        self.notes += notes
        self.workers.wait()  # all have looked before anything is cleared
        if resumed is None and self.workers.first:
            forget(self.run)
        with memory_faults(), restored_modules():
            self.build()
            if resumed is not None:
                self.go_on(resumed)
            with stop_requests() as stop:
                with self.events():
                    ended = run_steps(
                        self.trainer, self.state, stop, self.save, self.save_best, self.progress
                    )
                graphs = self.trainer.forward.graphs
                if graphs is not None and graphs.fault:
                    self.notes.append(f"went on without CUDA graphs, since a capture failed: {graphs.fault}")
                folder = self.run if ended == "stopped" else self.config.output
                if ended != "stopped" and self.workers.first:
                    self.finish()
        self.workers.wait()
        if ended != "stopped" and folder.exists() and not folder.samefile(self.out):
            self.notes.append("the working folder itself was replaced: `cd .` shows the new one")
            folder = self.out
        stopped_by = (stop.signal or signal.SIGTERM) if ended == "stopped" else None
        return self.result(folder, stopped_by, began)

    @property
    def work_folder(self) -> Path:
        """For files that each worker makes for itself."""
        return self.run / f"worker-{self.workers.rank}" if self.workers.rank else self.run

    def build(self) -> None:
        """Load the base, put the adapter on it, and set up the optimizer."""
        config, material = self.config, self.material
        held_out = material.held_out_tokens
        self.progress("load the base", 0, 1)
        built = build(
            config,
            self.base,
            material.tokens.sequences,
            held_out.sequences if held_out else (),
            pad_id=material.tokenizer.pad_id or 0,
            rows=material.rows,
            metrics=self.run / "metrics.jsonl",
            workers=self.workers,
        )
        self.trainer, self.initial = built.trainer, built.initial
        if config.load_in_4bit or config.load_in_8bit or self.method.quantized:
            self.notes.append("the base is quantized for training; export folds into the unquantized base")
        self.notes += built.notes
        count = sum(value.numel() for value in trainable(self.trainer.model).values())
        self.check_disk(count)
        device = self.trainer.forward.device.type
        where = device if self.workers.count == 1 else f"{self.workers.count} × {device}"
        self.notes.append(f"computed on {where}: {built.speed.line()}")
        self.progress("load the base", 1, 1, note=f"{count:,} trained weights, {where}")

    def check_disk(self, trained: int) -> None:
        """Refuse to start where the checkpoints cannot fit."""
        # A checkpoint holds the parameters twice, and two moments, in float32; one more is being written.
        needed = trained * 4 * 4 * (self.config.save_total_limit + 1)
        free = shutil.disk_usage(self.run).free
        if free < needed:
            raise SystemFault(
                f"checkpoints need {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
                at=self.run,
                fix="free space, lower --save-total-limit, or choose an --out on another disk",
            )

    def go_on(self, path: Path) -> None:
        """Restore a checkpoint."""
        trainer = self.trainer
        if self.initial:
            self.check_start(path)
        self.state = checkpoints.load_checkpoint(path, trainer.model, trainer.optimizer, trainer.schedule)
        if self.state.scaler:
            trainer.scaler.load_state_dict(self.state.scaler)
        self.workers.wait()  # all have read it
        if self.workers.first:
            keep_until(trainer.metrics, self.state.step)
            for later in checkpoints.list_checkpoints(self.run):
                if int(later.name.rpartition("-")[2]) > self.state.step:
                    remove_folder(later)  # not whole: a kept one would be chosen over its successor
        self.notes.append(f"resumed at step {self.state.step}")

    def check_start(self, path: Path) -> None:
        """PiSSA and OLoRA take their start out of the base: it must come out as it did then."""
        from lorafold.train.model.tensorfiles import load_tensors

        saved = load_tensors(path / "initial.safetensors")
        if any(not saved[name].equal(value) for name, value in self.initial.items()):
            raise InputError(
                f"{self.config.method} starts from other numbers on this machine than at the checkpoint",
                at=path,
                fix="resume on the machine and with the versions it was made with",
            )

    def save_peft(self, folder: Path) -> None:
        """Write PEFT's files; a checkpoint of full fine-tuning holds the weights already."""
        if self.method.peft is not None:
            save_adapter(self.trainer.model, folder, self.base, self.method, self.initial)
        if self.initial:
            from lorafold.train.model.tensorfiles import save_tensors

            save_tensors(folder / "initial.safetensors", self.initial)

    def save(self) -> None:
        """Write a checkpoint; the parameters are the same on all workers."""
        if not self.workers.first:
            return
        trainer = self.trainer
        checkpoints.save_checkpoint(
            self.run,
            self.state,
            trainer.model,
            trainer.optimizer,
            trainer.schedule,
            self.facts,
            keep=self.config.save_total_limit,
            save_adapter=self.save_peft,
        )

    def save_best(self) -> None:
        """Keep the parameters of the best evaluation so far."""
        if not (self.config.load_best_model_at_end and self.workers.first):
            return
        from lorafold.train.model.tensorfiles import save_tensors

        with new_folder(self.run / "best", force=True) as staging:
            save_tensors(staging / "trainable.safetensors", trainable(self.trainer.model))

    @contextlib.contextmanager
    def events(self) -> Iterator[None]:
        """Send the figures to TensorBoard as well, where that is asked for."""
        if self.config.report_to == "none" or not self.workers.first:
            yield
            return
        with event_writer(self.run / "runs") as write:
            self.trainer.on_metrics = write
            yield

    def finish(self) -> None:
        """Write the result and put it in its place."""
        config, out, trainer, material = self.config, self.out, self.trainer, self.material
        self.progress("write the adapter", 0, 1)
        if config.load_best_model_at_end and self.state.best_step not in (0, self.state.step):
            checkpoints.restore_parameters(trainer.model, self.run / "best" / "trainable.safetensors")
            self.notes.append(f"kept the best evaluation, of step {self.state.best_step}")
        records = read_metrics(trainer.metrics)
        with new_folder(out, force=config.force) as staging:
            dtype = base_dtype(self.base) if self.method.peft is None else None
            save_adapter(trainer.model, staging, self.base, self.method, self.initial, dtype)
            copy_tokenizer(material.folder, staging)
            if material.own_template:  # it was trained with, so it goes with the adapter
                template = material.tokenizer.template.source
                (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
            write_held_out(staging, material.held_out.examples if material.held_out else ())
            shutil.copyfile(trainer.metrics, staging / "metrics.jsonl")
            if (self.run / "runs").is_dir():
                shutil.copytree(self.run / "runs", staging / "runs")
            curve = draw_png(records, staging / "loss.png", out.name)
            facts = self.result_facts(records)
            (staging / "README.md").write_text(
                model_card(config, facts, out.name, curve=curve), encoding="utf-8"
            )
            kind = "base" if self.method.peft is None else "adapter"
            write_manifest(staging, kind, facts)
        tidy(self.run, out)
        self.progress("write the adapter", 1, 1)

    def result_facts(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        """What `lorafold.json` says about the run."""
        identity = dict(self.facts["base"])
        template = identity.pop("chat_template")
        return {
            "method": self.config.method,
            "config": self.config.resolved(),
            "base": identity,
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
        """Of the last step; a checkpoint of an older version leaves it to what was logged."""
        return last_value(records, "loss") if self.state.loss is None else self.state.loss

    def eval_loss(self, records: list[dict[str, Any]]) -> float | None:
        return (
            self.state.best_loss if self.config.load_best_model_at_end else last_value(records, "eval_loss")
        )

    def result(self, folder: Path, stopped_by: signal.Signals | None, began: float) -> TrainResult:
        records = read_metrics(folder / "metrics.jsonl")
        return TrainResult(
            folder=folder,
            steps=self.state.step,
            loss=math.nan if (loss := self.loss(records)) is None else loss,
            eval_loss=self.eval_loss(records),
            tokens=self.state.tokens,
            seconds=time.monotonic() - began,
            stopped_by=stopped_by,
            notes=tuple(self.notes),
            records=tuple(records),
        )
