"""The recipes of the repository as configs."""

from __future__ import annotations

from typing import Any

import yaml
from oracles import REPOSITORY

from lorafold.train import TrainConfig

RECIPES = REPOSITORY / "recipes"


def recipe(name: str, **changes: Any) -> TrainConfig:
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return TrainConfig(**{**values, **changes})
