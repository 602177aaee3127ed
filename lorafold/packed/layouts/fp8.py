"""FP8 with scales: one for the tensor, one for each row, or one for each block (DeepSeek's 128 × 128).

`NAME` is E4M3 or E5M2, and `weight = NAME * scale`, with the scale in `NAME_scale_inv` (DeepSeek, and what
transformers writes) or in `NAME_scale` (compressed-tensors, FBGEMM). The name "inverse" says how the scale
was made; it is multiplied by all the same. Blocks at the right and lower edge may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.packed.numbers import FP8_TABLES, multiply_groups
from lorafold.packed.stored import SCALES, PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

_ENDS = ("_scale_inv", "_scale")


@dataclass(frozen=True, slots=True)
class Fp8:
    """A tensor in FP8.

    Attributes:
        info: what it is in the model.
        parts: the numbers, the scales, and scales of activations that are not needed.
        grid: rows and columns of scales that each matrix has.
        block: rows and columns of weights that share a scale.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    grid: tuple[int, int]
    block: tuple[int, int]

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        name, scale = self.parts[:2]
        values = np.take(FP8_TABLES[stored.tensors[name].dtype], stored.rows(name, start, stop))
        high = self.info.shape[-2] if len(self.info.shape) > 1 else 1
        rows = np.arange(start, stop)
        lines = rows // high * self.grid[0] + rows % high // self.block[0]
        multiply_groups(values, stored.scales(scale, lines, self.grid[1]), self.block[1])
        return values


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: scales are missing or do not fit, or config.json says other blocks.
    """
    size = settings.get("weight_block_size")
    block = (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None
    for name, info in stored.tensors.items():
        if info.dtype in FP8_TABLES and not name.endswith(_ENDS):
            yield tensor(stored, name, block)


def tensor(stored: Stored, name: str, block: tuple[int, int] | None) -> Fp8:
    """One tensor; `block` is what the configuration says, or None."""
    info = stored.tensors[name]
    scale = next((name + end for end in _ENDS if stored.has(name + end)), name + _ENDS[0])
    scales = stored.find(scale, name, (*SCALES, "U8"))
    module = name.rpartition(".")[0]
    others = (f"{module}.input_scale", f"{module}.activation_scale", f"{name}.input_scale")
    parts = (name, scale, *(other for other in others if stored.has(other)))
    grid, size = _grid(info, scales, block)
    return Fp8(stored.logical(name, name, info.shape), parts, grid, size)


def _grid(
    info: TensorInfo, scales: TensorInfo, block: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many scales a matrix has, and how many weights share one."""
    *lead, rows, cols = (1, *info.shape) if len(info.shape) == 1 else info.shape
    matrices = math.prod(lead)
    count = math.prod(scales.shape)
    if count == matrices and (matrices > 1 or block is None or count == 1):
        return (1, 1), (rows, cols)
    if count == matrices * rows and scales.shape[-1] in (1, rows):
        return (rows, 1), (1, cols)
    high, wide = scales.shape[-2:] if len(scales.shape) > 1 else (1, count)
    if count == matrices * high * wide and list(scales.shape[:-2]) == lead:
        if block is not None and (high, wide) == (-(-rows // block[0]), -(-cols // block[1])):
            return (high, wide), block
        if block is None and rows % high == 0 and cols % wide == 0:
            return (high, wide), (rows // high, cols // wide)
    said = "" if block is None else f" in blocks of {block[0]} × {block[1]}, as config.json says"
    raise wrong(scales, f"has shape {list(scales.shape)}, which does not fit {list(info.shape)}{said}")
