"""One training run from config to adapter folder: where it is kept, how it is resumed, what is written.

While it runs everything lies in `OUT.run` beside the target: checkpoints, metrics.jsonl. The finished adapter
is staged, synced and renamed to OUT, so OUT is the complete old state or the complete new one; then the
checkpoints move into it and `OUT.run` goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafold.artifacts import check_output, lock, new_folder, system_faults, write_manifest
from lorafold.chat import ChatTokenizer
from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.models import Base, require, resolve_base
from lorafold.progress import Progress, silent
from lorafold.train import checkpoints
from lorafold.train.adapter import copy_tokenizer, initial_adapter, save_adapter
from lorafold.train.base_model import base_dtype, load_model, memory_faults, pick_device, quiet_transformers
from lorafold.train.card import model_card
from lorafold.train.checkpoints import RunState
from lorafold.train.config import TrainConfig
from lorafold.train.curve import draw_png, keep_until, read_metrics
from lorafold.train.data import DataSet, load_splits
from lorafold.train.loop import Trainer, run_steps
from lorafold.train.methods import METHODS, linear_names
from lorafold.train.new_tokens import extend_tokenizer, make_room
from lorafold.train.optimizers import build_optimizer, build_schedule, resolve_optimizer
from lorafold.train.result import TrainResult, last_value
from lorafold.train.resume import agreed_facts, find_checkpoint, finished_run
from lorafold.train.signals import stop_requests
from lorafold.train.tensorboard import event_writer
from lorafold.train.tokenize import Tokenized, tokenize


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
    if (manifest := finished_run(out, config)) is not None:
        with lock(run_folder(out)):
            tidy(run_folder(out), out)
        return _already_done(out, manifest)
    base = resolve_base(config.base, offline=config.offline, trust_remote_code=config.trust_remote_code)
    sources = [Path(source).expanduser() for source in (*config.data, *config.eval_data)]
    check_output(out, inputs=[base.folder, *sources], force=config.force)
    run = run_folder(out)
    with system_faults(run):
        run.parent.mkdir(parents=True, exist_ok=True)
    with lock(run):
        _prepare_run_folder(run, config)
        return _Session(config, base, run, progress).train()


def tidy(run: Path, out: Path) -> None:
    """Move the checkpoints of a finished run into its result and remove the run's folder."""
    with system_faults(run):
        for path in checkpoints.list_checkpoints(run):
            if not (out / path.name).exists():
                path.rename(out / path.name)
        if run.exists():
            shutil.rmtree(run)


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


class _Session:
    """The parts of a run, built one after the other."""

    def __init__(self, config: TrainConfig, base: Base, run: Path, progress: Progress) -> None:
        self.config, self.base, self.run, self.progress = config, base, run, progress
        self.method = METHODS[config.method]
        self.notes: list[str] = [self.method.warning] if self.method.warning else []
        self.state = RunState()

    def train(self) -> TrainResult:
        began = time.monotonic()
        self.read_data()
        identity = self.base.identity() | {"chat_template": self.tokenizer.template.source}
        self.facts = agreed_facts(self.config, self.data, self.eval_data, identity)
        resumed, notes = find_checkpoint(self.run, self.facts, self.config)
        self.notes += notes
        if resumed is None:
            self.clear()
        with memory_faults():
            self.build(began)
            if resumed is not None:
                self.go_on(resumed)
            with stop_requests() as stop:
                with self.events():
                    ended = run_steps(
                        self.trainer, self.state, stop, self.save, self.save_best, self.progress
                    )
                if ended != "stopped":
                    return self.result(self.finish(), None, began)
        return self.result(self.run, stop.signal, began)

    def clear(self) -> None:
        """Forget a run that cannot be gone on with: its metrics would mix with the new ones."""
        with system_faults(self.run):
            for path in (self.run / "metrics.jsonl", *checkpoints.list_checkpoints(self.run)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def read_data(self) -> None:
        """Read, check and tokenize the data."""
        self.progress("read the data", 0, 1)
        self.data, held_out = load_splits(self.config)
        self.tokenizer_folder, self.rows = self.base.folder, 0
        if self.config.new_tokens:
            self.tokenizer_folder = self.run / "tokenizer"
            self.rows = extend_tokenizer(self.base.folder, self.tokenizer_folder, self.config.new_tokens)
        self.tokenizer = self.chat_tokenizer()
        self.tokens = tokenize(self.data.examples, self.tokenizer, self.config.max_length)
        self.held_out: Tokenized | None = None
        if held_out is not None:
            self.held_out = tokenize(held_out.examples, self.tokenizer, self.config.max_length)
            self.notes.append(f"evaluation: {self.held_out.summary()}")
        self.eval_data: DataSet | None = held_out
        found = ", ".join(f"{count} {name}" for name, count in self.data.layouts.items())
        self.notes.insert(0, f"data: {found}; {self.tokens.summary()}")
        self.progress("read the data", 1, 1, note=self.tokens.summary())

    def chat_tokenizer(self) -> ChatTokenizer:
        """The base's tokenizer; plain texts need no chat template, so a base without one will do."""
        chosen = self.config.chat_template
        if chosen is None and set(self.data.layouts) == {"text"}:
            with contextlib.suppress(InputError):
                return ChatTokenizer.from_folder(self.tokenizer_folder)
            chosen = "chatml"
        return ChatTokenizer.from_folder(self.tokenizer_folder, chosen)

    def build(self, began: float) -> None:
        """Load the base, put the adapter on it, and set up the optimizer."""
        import torch

        config, device = self.config, pick_device()
        self.progress("load the base", 0, 1)
        torch.manual_seed(config.seed)
        model = load_model(self.base, config, self.method, device)
        self.initial: dict[str, Any] = {}
        adapted = make_room(model, self.rows, config) if self.rows else config
        if self.method.peft is not None:
            model = self.add_adapter(model, adapted)
        if config.load_in_4bit or config.load_in_8bit or self.method.quantized:
            self.notes.append("the base is quantized for training; export folds into the unquantized base")
        _, note = resolve_optimizer(config.optim, device)
        self.notes += [note] if note else []
        if config.device_map:
            device = next(model.parameters()).device
        optimizer = build_optimizer(model, config, device)
        self.trainer = Trainer(
            config=config,
            model=model,
            optimizer=optimizer,
            schedule=None,
            sequences=self.tokens.sequences,
            evaluation=self.held_out.sequences if self.held_out else (),
            device=device,
            pad_id=self.tokenizer.pad_id or 0,
            prompt=self.method.prompt,
            metrics=self.run / "metrics.jsonl",
        )
        self.trainer.schedule = build_schedule(optimizer, config, self.trainer.total_steps)
        count = sum(value.numel() for value in checkpoints.trainable(model).values())
        self.check_disk(count)
        torch.manual_seed(config.seed)
        self.progress("load the base", 1, 1, note=f"{count:,} trained weights, {device.type}")

    def add_adapter(self, model: Any, config: TrainConfig) -> Any:
        from peft import get_peft_model

        assert self.method.peft is not None
        if config.layers_to_transform and config.target_modules == ("all-linear",):
            config = dataclasses.replace(config, target_modules=linear_names(model))
        try:
            with quiet_transformers():
                wrapped = get_peft_model(model, self.method.peft(config))
        except ValueError as error:
            reason = str(error).strip().splitlines()[0][:300]
            problem = f"peft refuses this adapter ({reason})"
            raise UsageError(problem, at="--target-modules", fix="name modules that the base has") from error
        if self.method.mutates_base:
            self.initial = initial_adapter(wrapped)
        return wrapped

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
        keep_until(trainer.metrics, self.state.step)
        for later in checkpoints.list_checkpoints(self.run):
            if int(later.name.rpartition("-")[2]) > self.state.step:
                shutil.rmtree(later)  # not whole: a kept one would be chosen over its successor
        self.notes.append(f"resumed at step {self.state.step}")

    def check_start(self, path: Path) -> None:
        """PiSSA and OLoRA take their start out of the base: it must come out as it did then."""
        from lorafold.train.tensorfiles import load_tensors

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
            from lorafold.train.tensorfiles import save_tensors

            save_tensors(folder / "initial.safetensors", self.initial)

    def save(self) -> None:
        """Write a checkpoint."""
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
        if not self.config.load_best_model_at_end:
            return
        from lorafold.train.tensorfiles import save_tensors

        with new_folder(self.run / "best", force=True) as staging:
            save_tensors(staging / "trainable.safetensors", checkpoints.trainable(self.trainer.model))

    @contextlib.contextmanager
    def events(self) -> Iterator[None]:
        """Send the figures to TensorBoard as well, where that is asked for."""
        if self.config.report_to == "none":
            yield
            return
        with event_writer(self.run / "runs") as write:
            self.trainer.on_metrics = write
            yield

    def finish(self) -> Path:
        """Write the result and put it in its place."""
        config, out, trainer = self.config, self.config.output, self.trainer
        self.progress("write the adapter", 0, 1)
        if config.load_best_model_at_end and self.state.best_step not in (0, self.state.step):
            checkpoints.restore_parameters(trainer.model, self.run / "best" / "trainable.safetensors")
            self.notes.append(f"kept the best evaluation, of step {self.state.best_step}")
        records = read_metrics(trainer.metrics)
        with new_folder(out, force=config.force) as staging:
            dtype = base_dtype(self.base) if self.method.peft is None else None
            save_adapter(trainer.model, staging, self.base, self.method, self.initial, dtype)
            copy_tokenizer(self.tokenizer_folder, staging)
            if config.chat_template:  # it was trained with, so it goes with the adapter
                template = self.tokenizer.template.source
                (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
            shutil.copyfile(trainer.metrics, staging / "metrics.jsonl")
            if (self.run / "runs").is_dir():
                shutil.copytree(self.run / "runs", staging / "runs")
            curve = draw_png(records, staging / "loss.png", out.name)
            facts = self.result_facts(records)
            (staging / "README.md").write_text(model_card(config, facts, curve=curve), encoding="utf-8")
            kind = "base" if self.method.peft is None else "adapter"
            write_manifest(staging, kind, facts)
        tidy(self.run, out)
        self.progress("write the adapter", 1, 1)
        return out

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
                "loss": last_value(records, "loss"),
                "eval_loss": self.eval_loss(records),
                "cut": self.tokens.cut,
                "dropped": len(self.tokens.dropped),
            },
            "notes": list(self.notes),
        }

    def eval_loss(self, records: list[dict[str, Any]]) -> float | None:
        return (
            self.state.best_loss if self.config.load_best_model_at_end else last_value(records, "eval_loss")
        )

    def result(self, folder: Path, stopped_by: signal.Signals | None, began: float) -> TrainResult:
        records = read_metrics(folder / "metrics.jsonl")
        return TrainResult(
            folder=folder,
            steps=self.state.step,
            loss=last_value(records, "loss") or 0.0,
            eval_loss=self.eval_loss(records),
            tokens=self.state.tokens,
            seconds=time.monotonic() - began,
            stopped_by=stopped_by,
            notes=tuple(self.notes),
            records=tuple(records),
        )
