"""From a Hugging Face model to llama.cpp's: the GGUF tensors, what each is made of, the header."""

from __future__ import annotations

from lorafold.export.arch.header import caveats, metadata, quantize_order
from lorafold.export.arch.rules import Architecture
from lorafold.export.arch.table import ARCHITECTURES, find, view_of
from lorafold.export.arch.tensors import BUFFER_REASONS, map_tensors, skipped_tensors

__all__ = [
    "ARCHITECTURES",
    "BUFFER_REASONS",
    "Architecture",
    "caveats",
    "find",
    "map_tensors",
    "metadata",
    "quantize_order",
    "skipped_tensors",
    "view_of",
]
