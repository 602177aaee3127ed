"""one or more models → chat in the terminal, comparison, report: the serving stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafold.serve.config import ChatConfig, CompareConfig
from lorafold.stages import make_stage

if TYPE_CHECKING:
    from lorafold.serve.comparison import CompareResult, compare
    from lorafold.serve.repl import chat

__all__ = ["ChatConfig", "CompareConfig", "CompareResult", "chat", "compare"]

make_stage(__name__, {"chat": "repl", "compare": "comparison", "CompareResult": "comparison"})
