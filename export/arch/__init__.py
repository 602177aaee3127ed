"""From a Hugging Face model to llama.cpp's: the GGUF tensors, what each is made of, the header."""

from __future__ import annotations

from lorafold.export.arch.header import metadata
from lorafold.export.arch.omissions import caveats, describe_omissions
from lorafold.export.arch.rules import Architecture
from lorafold.export.arch.table import ARCHITECTURES, find
from lorafold.export.arch.tensors import map_tensors, quantize_order, skipped_tensors

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "caveats",
    "describe_omissions",
    "find",
    "map_tensors",
    "metadata",
    "quantize_order",
    "skipped_tensors",
]
