"""Between rows in memory and one super-block per lane: transposing in, and small stores out.

Specification: a super-block is 256 consecutive values of a row (`QK_K` of ggml-common.h).
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

from numba import njit

from lorafold.export.quant.kernels.lanes import LANES, Array
from lorafold.export.quant.kernels.memory import transpose

SUPER = 256


@njit
def gather_values(x: Array, group: int, total: int, size: int, rest: Array, values: Array) -> Any:
    """Bring super-blocks `group`, `group + 1`, ... into the lanes.

    Args:
        x: (total, size) float32, flat.
        group: the super-block of lane 0.
        total: super-blocks in `x`.
        size: values in a super-block, a multiple of LANES.
        rest: room for LANES super-blocks: the last group is copied there when it does not fill all lanes.
        values: to be filled: (size, LANES) float32, flat.

    Returns:
        The array and element where the super-blocks lie one after the other, and how many lanes are used.
    """
    used = min(LANES, total - group)
    source, at = x, group * size
    if used < LANES:
        for i in range(used * size):
            rest[i] = x[at + i]
        for i in range(used * size, LANES * size):
            rest[i] = 0.0
        source, at = rest, 0
    for i in range(0, size, LANES):
        transpose(source, at + i, size, values[i * LANES :])
    return source, at, used


@njit
def gather_importance(importance: Array, group: int, size: int, spread: Array, columns: Array) -> None:
    """Bring each lane the importance of its own columns.

    Args:
        importance: (cols,) float32; super-block b of the matrix has columns from `b * size % cols` on.
        group: the super-block of lane 0.
        size: values in a super-block, a multiple of LANES.
        spread: scratch for LANES super-blocks.
        columns: to be filled: (size, LANES) float32, flat.
    """
    for lane in range(LANES):
        first = (group + lane) * size % importance.size
        for i in range(size):
            spread[lane * size + i] = importance[first + i]
    for i in range(0, size, LANES):
        transpose(spread, i, size, columns[i * LANES :])


@njit
def store_half(out: Array, to: int, half: int) -> None:
    """Two bytes, little-endian."""
    out[to] = half & 255
    out[to + 1] = half >> 8
