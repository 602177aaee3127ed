"""lorafold: train an adapter, fold it into its base, ship it to llama.cpp and Ollama, see what changed.

`lorafold.train(TrainConfig(…))`, `lorafold.export(ExportConfig(…))`, `lorafold.compare(CompareConfig(…))`
are the command line's stages; their configs are in `lorafold.train`, `lorafold.export`, `lorafold.serve`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorafold.version import __version__

if TYPE_CHECKING:
    from lorafold import export, train
    from lorafold.serve import compare

__all__ = ["__version__", "compare", "export", "train"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("train", "export", "serve"):
        return import_module(f"lorafold.{name}")
    if name == "compare":
        return import_module("lorafold.serve").compare
    raise AttributeError(f"module 'lorafold' has no attribute {name!r}")
