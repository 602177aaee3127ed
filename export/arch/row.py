"""The row of the table of architectures that a model belongs to, and its config as that row reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafold.errors import InputError
from lorafold.export.arch.hyperparameters import Config
from lorafold.export.arch.rules import TIED, Architecture
from lorafold.export.arch.table import ARCHITECTURES

FOLDER_WORKS = "`--format folder` merges any architecture"


def find(config: Mapping[str, Any]) -> Architecture:
    """The row of the table for a model.

    Args:
        config: the parsed config.json.

    Raises:
        InputError: no row is for this class.
    """
    classes = config.get("architectures") or []
    name = classes[0] if isinstance(classes, list) and classes else None
    for row in ARCHITECTURES:
        if name in row.classes or (name is None and config.get("model_type") in row.model_types):
            return row
    known = ", ".join(sorted(row.classes[0] for row in ARCHITECTURES))
    got = (
        f"architecture {name!r}" if name else f"model_type {config.get('model_type')!r} without architectures"
    )
    raise InputError(
        f"{got} is not in the table of architectures that become GGUF ({known})",
        at="config.json: architectures",
        fix=FOLDER_WORKS,
    )


def view_of(config: Mapping[str, Any]) -> tuple[Architecture, Config]:
    """A model's row, and its config seen through it: a multimodal model's text part, but the whole's tie."""
    row = find(config)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        outer = {TIED: config[TIED]} if TIED in config else {}
        config = {**config, **text, **outer}
    return row, Config(config, row.defaults, row.aliases)
