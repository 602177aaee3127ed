"""The training stage: from examples to an adapter.

`lorafold.train(TrainConfig(...))` is the entry; `describe_data` is what `lorafold inspect` shows of a data
file. Neither torch nor transformers is imported before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafold.api.stages import make_stage
from lorafold.train.config import TrainConfig

if TYPE_CHECKING:
    from lorafold.train.describe import DataReport, describe_data
    from lorafold.train.plan import plan_training
    from lorafold.train.saved.result import TrainResult
    from lorafold.train.stage import train

__all__ = ["DataReport", "TrainConfig", "TrainResult", "describe_data", "plan_training", "train"]

make_stage(
    __name__,
    {
        "train": "stage",
        "plan_training": "plan",
        "TrainResult": "saved.result",
        "describe_data": "describe",
        "DataReport": "describe",
    },
    TrainConfig,
)
