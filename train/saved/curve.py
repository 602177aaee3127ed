"""The loss of a run over its steps: read from metrics.jsonl, drawn as a PNG and as text for a terminal."""

from __future__ import annotations

import contextlib
import json
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorafold.artifacts import write_atomic
from lorafold.models import require

Points = Sequence[tuple[float, float]]

# Eighths of a character cell, from empty to full.
_BLOCKS = " ▁▂▃▄▅▆▇█"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that a kill cut off is passed over."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def keep_until(path: Path, step: int) -> None:
    """Drop the records after a step, which a resumed run writes again."""
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
    write_atomic(path, "".join(kept))


def curves(records: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(step, loss) of training, and of evaluation if there was one."""
    found = {
        "loss": [(float(row["step"]), float(row["loss"])) for row in records if "loss" in row],
        "eval_loss": [(float(row["step"]), float(row["eval_loss"])) for row in records if "eval_loss" in row],
    }
    return {name: points for name, points in found.items() if points}


def risen(losses: Sequence[float]) -> tuple[float, float] | None:
    """The first loss and the latest, if the run is diverging; else None.

    The first loss is that of the untouched model. Single steps jump, so the latest is the median of the last
    quarter, of ten steps at most. It counts as a rise if it is half as much again, and a nat more.
    """
    if len(losses) < 4:
        return None
    latest = statistics.median(losses[-min(10, len(losses) // 4 + 1) :])
    return (losses[0], latest) if latest > max(1.5 * losses[0], losses[0] + 1) else None


def rise_note(rise: tuple[float, float]) -> str:
    """What the user should know of a rise."""
    return f"the loss rose from {rise[0]:.2f} to {rise[1]:.2f}: lower --learning-rate"


def smooth(points: Points, weight: float = 0.9) -> list[tuple[float, float]]:
    """Exponential moving average, corrected for its start: m_t / (1 - w^t)."""
    mean, result = 0.0, []
    for count, (step, value) in enumerate(points, 1):
        mean = weight * mean + (1 - weight) * value
        result.append((step, mean / (1 - weight**count)))
    return result


def text_curve(points: Points, *, width: int = 60, height: int = 8) -> str:
    """Draw a curve with block characters.

    Args:
        points: (step, loss), in order of the steps.
        width: columns of the drawing, the axis not counted.
        height: rows.

    Returns:
        Lines without a trailing newline; empty for fewer than three points, which make no curve.
    """
    if len(points) < 3:
        return ""
    columns = min(width, len(points))
    means = []
    for column in range(columns):
        start, stop = column * len(points) // columns, (column + 1) * len(points) // columns
        means.append(sum(value for _, value in points[start:stop]) / (stop - start))
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [1 + round((value - low) / span * (8 * height - 1)) for value in means]
    lines = []
    for row in reversed(range(height)):
        label = f"{high:.3f}" if row == height - 1 else f"{low:.3f}" if row == 0 else ""
        cells = "".join(_BLOCKS[max(0, min(8, level - 8 * row))] for level in levels)
        lines.append(f"{label:>8} ┤{cells}".rstrip())
    first, last = f"{points[0][0]:.0f}", f"{points[-1][0]:.0f}"
    lines.append(f"{'step':>8}  {first}{last:>{max(columns - len(first), len(last) + 1)}}")
    return "\n".join(lines)


def draw_png(records: Sequence[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw the loss curve into a PNG file.

    Returns:
        False if there is nothing to draw or matplotlib is not installed: a run does not fail for its picture.
    """
    found = curves(records)
    if not found:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no step 3.2
    if "loss" in found:
        alone = "o" if len(found["loss"]) == 1 else ""  # one point makes no line
        axes.plot(*zip(*found["loss"], strict=True), alone, color="#9db7d5", linewidth=0.8, label="loss")
        axes.plot(*zip(*smooth(found["loss"]), strict=True), color="#1f4e8c", linewidth=1.6, label="smoothed")
    if "eval_loss" in found:
        axes.plot(*zip(*found["eval_loss"], strict=True), "o-", color="#c0392b", label="evaluation")
    axes.set(xlabel="step", ylabel="loss per trained token")
    axes.set_title(title, parse_math=False)  # it is a folder's name, and may hold a $
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that the font lacks
            figure.savefig(path, metadata={"Software": None})
    except OSError:  # a full disk is the caller's to tell
        raise
    except Exception:  # whatever a font or a backend finds wrong, it costs the picture and not the run
        path.unlink(missing_ok=True)
        return False
    return True


@contextlib.contextmanager
def event_writer(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes a record of metrics.jsonl as scalars `train/NAME`.

    Raises:
        SystemFault: tensorboardX is not installed.
    """
    require("tensorboardX", extra="tensorboard")
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name not in ("step", "samples"):
                writer.add_scalar(f"train/{name}", value, record["step"])

    try:
        yield write
    finally:
        writer.close()
