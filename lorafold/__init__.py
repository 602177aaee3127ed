"""lorafold: train an adapter, merge it into its base, export it to llama.cpp and Ollama, see what changed.

`lorafold.train(base="demo", data="d.jsonl", out="ad")` and `lorafold.export("ad", out="gg", quant="Q8_0")`
are the command line's stages, with its flags as arguments; a config of `lorafold.train` or `lorafold.export`
will do as well, and `lorafold.compare` takes a `CompareConfig`. `lorafold.load("gg").ask("…")` asks a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorafold.version import __version__

if TYPE_CHECKING:
    from lorafold import export, train
    from lorafold.serve import compare, load

__all__ = ["__version__", "compare", "export", "load", "train"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("train", "export", "serve"):
        return import_module(f"lorafold.{name}")
    if name in ("compare", "load"):
        return getattr(import_module("lorafold.serve"), name)
    raise AttributeError(f"module 'lorafold' has no attribute {name!r}")
