"""one or more models → chat in the terminal, comparison, report: the serving stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorafold.serve.config import ChatConfig, CompareConfig

if TYPE_CHECKING:
    from lorafold.serve.comparison import CompareResult, compare

    from lorafold.serve.repl import chat

__all__ = ["ChatConfig", "CompareConfig", "CompareResult", "chat", "compare"]

_PLACES = {"chat": "repl", "compare": "comparison", "CompareResult": "comparison"}


def __getattr__(name: str) -> Any:
    """Import a stage when it is used: `lorafold --help` loads no engine."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"lorafold.serve.{_PLACES[name]}"), name)
