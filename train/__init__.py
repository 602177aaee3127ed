"""examples → adapter: the training stage.

`train(TrainConfig(...))` is the entry; `describe_data` is what `lorafold inspect` shows of a data file.
Neither torch nor transformers is imported before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorafold.train.config import TrainConfig

if TYPE_CHECKING:
    from lorafold.train.run import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]

_HOMES = {"train": "run", "TrainResult": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
