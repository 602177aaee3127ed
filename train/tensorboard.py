"""The figures of a run for TensorBoard, through tensorboardX (which needs no TensorFlow)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorafold.models import require


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
            if name != "step":
                writer.add_scalar(f"train/{name}", value, record["step"])

    try:
        yield write
    finally:
        writer.close()
