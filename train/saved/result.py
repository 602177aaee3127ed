"""What a training run made, and how the command line tells it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.train.saved.curve import curves, text_curve


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: the adapter's folder; the run's folder where it was stopped.
        steps: optimizer steps done.
        loss: mean loss per trained token of the last step; NaN where an older version did not keep it.
        eval_loss: of the last (or best, if that was kept) evaluation, None without one.
        tokens: tokens seen.
        seconds: wall time of this session.
        stopped_by: the signal that stopped it, None if it finished; the exit code is 128 + signal.
        notes: what the user should know: examples lost, fallbacks, limits of the method.
        records: the lines of metrics.jsonl.
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

    def lines(self) -> list[tuple[str, str]]:
        """What the command line prints: label and text; the loss curve has no label."""
        verdict = f"loss {self.loss:.4f}"
        if self.eval_loss is not None:
            verdict += f", evaluation loss {self.eval_loss:.4f}"
        minutes, seconds = divmod(round(self.seconds), 60)
        rows = [("note", note) for note in self.notes]
        rows += [("", line) for line in text_curve(curves(self.records).get("loss", ())).splitlines()]
        spent = f"{minutes}:{seconds:02}"
        rows.append(("trained", f"{self.steps} steps, {self.tokens} tokens, {spent}; {verdict}"))
        if self.stopped_by is None:
            rows.append(("adapter", str(self.folder)))
        else:
            text = f"by {self.stopped_by.name}, saved in {self.folder}; go on with --resume"
            rows.append(("stopped", text))
        return rows


def last_value(records: Sequence[dict[str, Any]], key: str) -> float | None:
    """The newest value of a figure, None where there is none."""
    return next((row[key] for row in reversed(records) if key in row), None)
