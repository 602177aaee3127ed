"""one or more models → chat in the terminal, comparison, report: the serving stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafold.api.stages import make_stage
from lorafold.serve.config import ChatConfig, CompareConfig

if TYPE_CHECKING:
    from lorafold.serve.comparison.compare import compare
    from lorafold.serve.comparison.result import CompareResult
    from lorafold.serve.loaded import Model, load
    from lorafold.serve.terminal.chat import chat

__all__ = ["ChatConfig", "CompareConfig", "CompareResult", "Model", "chat", "compare", "load"]

make_stage(
    __name__,
    {
        "chat": "terminal.chat",
        "compare": "comparison.compare",
        "CompareResult": "comparison.result",
        "Model": "loaded",
        "load": "loaded",
    },
    ChatConfig,
)
