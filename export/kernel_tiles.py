"""Between rows in memory and one super-block per lane: transposing in, and small stores out.

Specification: a super-block is 256 consecutive values of a row (`QK_K` of ggml-common.h).
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

from numba import njit

from lorafold.export.kernel_lanes import LANES, Array, transpose

SUPER = 256


@njit
def gather_values(x: Array, group: int, total: int, rest: Array, values: Array) -> Any:
    """Bring super-blocks `group`, `group + 1`, ... into the lanes.

    Args:
        x: (total, SUPER) float32, flat.
        group: the super-block of lane 0.
        total: super-blocks in `x`.
        rest: room for LANES super-blocks: the last group is copied there when it does not fill all lanes.
        values: to be filled: (SUPER, LANES) float32, flat.

    Returns:
        The array and element where the super-blocks lie one after the other, and how many lanes are used.
    """
    used = min(LANES, total - group)
    source, at = x, group * SUPER
    if used < LANES:
        for i in range(used * SUPER):
            rest[i] = x[at + i]
        for i in range(used * SUPER, LANES * SUPER):
            rest[i] = 0.0
        source, at = rest, 0
    for i in range(0, SUPER, LANES):
        transpose(source, at + i, SUPER, values[i * LANES :])
    return source, at, used


@njit
def gather_importance(importance: Array, group: int, spread: Array, columns: Array) -> None:
    """Bring each lane the importance of its own columns.

    Args:
        importance: (cols,) float32; super-block b of the matrix has columns from `b * SUPER % cols` on.
        group: the super-block of lane 0.
        spread: scratch for LANES super-blocks.
        columns: to be filled: (SUPER, LANES) float32, flat.
    """
    for lane in range(LANES):
        first = (group + lane) * SUPER % importance.size
        for i in range(SUPER):
            spread[lane * SUPER + i] = importance[first + i]
    for i in range(0, SUPER, LANES):
        transpose(spread, i, SUPER, columns[i * LANES :])


@njit
def store_half(out: Array, to: int, half: int) -> None:
    """Two bytes, little-endian."""
    out[to] = half & 255
    out[to + 1] = half >> 8
