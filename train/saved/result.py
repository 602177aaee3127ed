"""What a training run made, and how the command line tells it."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.api.notebook import lines_as_html, lines_as_text
from lorafold.files.home import expanded
from lorafold.progress import in_one_line
from lorafold.train.config import TrainConfig
from lorafold.train.methods import METHODS
from lorafold.train.model.answers import EMPTY
from lorafold.train.saved.curve import curves, text_curve

CURVE = "loss.png"
LOSS_PAGE = "loss.html"  # the same, with the sample answers
_SHOWN = 200  # characters of a question or an answer


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: the adapter's folder; the run's folder if it was stopped.
        steps: optimizer steps done.
        loss: mean loss per trained token of the last step; NaN if an older version did not keep it.
        eval_loss: of the last (or best, if that was kept) evaluation, None without one.
        tokens: tokens seen.
        seconds: wall time of this session.
        stopped_by: the signal that stopped it, None if it finished; the exit code is 128 + signal.
        notes: what the user should know: examples lost, fallbacks, limits of the method.
        records: the lines of metrics.jsonl.
        holds: what is in the folder, with sizes.
        next: commands that go on from here.
    """

    folder: Path
    steps: int
    loss: float
    eval_loss: float | None
    tokens: int
    seconds: float
    stopped_by: signal.Signals | None
    notes: tuple[str, ...]
    records: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    holds: str = ""
    next: tuple[str, ...] = ()

    def __str__(self) -> str:
        return lines_as_text(self.lines())

    def _repr_html_(self) -> str:
        return lines_as_html(self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """What the command line prints: label and text; the loss curve has no label."""
        verdict = f"loss {self.loss:.4f}"
        if self.eval_loss is not None:
            verdict += f", evaluation loss {self.eval_loss:.4f}"
        minutes, seconds = divmod(round(self.seconds), 60)
        rows = [("note", note) for note in self.notes]
        for sample in last_value(self.records, "samples") or ():
            rows.append(("asked", in_one_line(sample["question"], _SHOWN)))
            rows.append(("answered", in_one_line(sample["answer"], _SHOWN) or EMPTY))
        rows += [("", line) for line in text_curve(curves(self.records).get("loss", ())).splitlines()]
        spent = f"{minutes}:{seconds:02}"
        rows.append(("trained", f"{self.steps} steps, {self.tokens} tokens, {spent}; {verdict}"))
        if self.stopped_by is None:
            rows.append(("adapter", f"{self.folder}: {self.holds}" if self.holds else str(self.folder)))
            for name in (CURVE, LOSS_PAGE):
                if (self.folder / name).is_file():
                    rows.append(("loss curve" if name == CURVE else "", str(self.folder / name)))
            for number, command in enumerate(self.next):
                rows.append(("next" if number == 0 else "", command))
        else:
            text = f"by {self.stopped_by.name}, saved in {self.folder}; go on with --resume"
            rows.append(("stopped", text))
        return rows


def what_it_holds(folder: Path) -> str:
    """The adapter's or model's size, and the checkpoints with theirs, in one line."""
    weights = [path for path in folder.glob("*.safetensors") if path.is_file()]
    parts = [f"{len(weights)} files, {_size(weights)}" if len(weights) > 1 else _size(weights)]
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if kept:
        size = _size([path for one in kept for path in one.rglob("*") if path.is_file()])
        parts.append(f"{', '.join(path.name for path in kept)} ({size}) may be deleted")
    return "; ".join(parts)


def _size(paths: Sequence[Path]) -> str:
    count = sum(path.stat().st_size for path in paths)
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def next_commands(config: TrainConfig, folder: Path) -> tuple[str, ...]:
    """What can be done with a result, as commands for the shell."""
    method, named = METHODS[config.method], shlex.quote(str(folder))
    # What was trained under a system message is asked under it.
    system = f" --system {shlex.quote(config.system)}" if config.system else ""
    export = f"lorafold export {named} --out {shlex.quote(f'{folder}-gguf')}{system}"
    base = expanded(config.base)
    spec = str(base) if base.is_dir() else config.base
    # An adapter's folder alone names its base too; a + in a path would be taken for the sign between two.
    alone = method.peft is None or "+" in f"{spec}{folder}"
    chat = f"lorafold chat {named if alone else shlex.quote(f'{spec}+{folder}')}{system}"
    return (chat,) if method.prompt else (export, chat)


def last_value(records: Sequence[dict[str, Any]], key: str) -> Any:
    """The newest value of a field, None if there is none."""
    return next((row[key] for row in reversed(records) if key in row), None)
