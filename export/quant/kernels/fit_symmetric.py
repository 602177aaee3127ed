"""The searches behind ggml's K-quants with a scale only, one sub-block or super-block per lane.

They take values and weights, position by position, and give scales and how the levels were found. Each lane
performs the operations of the C function named in the docstring, in its order.

Specification: ggml-quants.c.
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lorafold.export.quant.kernels.fit_affine import TINY
from lorafold.export.quant.kernels.lanes import (
    LANES,
    Array,
    FloatLanes,
    Mask,
    absolute,
    any_lane,
    compiled,
    flip,
    floats,
    ints,
    round_even,
    select,
    to_float,
)
from lorafold.export.quant.kernels.memory import load, store
from lorafold.export.quant.kernels.rounding import clamp, clamp_ints, nearest


@njit
def largest_of(values: Array, count: int) -> FloatLanes:
    """The value of the largest magnitude in each lane, with its sign; the first of equals."""
    magnitude, largest = floats(0.0), floats(0.0)
    for i in range(count):
        x = load(values, i * LANES)
        greater = absolute(x) > magnitude
        magnitude = select(greater, absolute(x), magnitude)
        largest = select(greater, x, largest)
    return largest


def symmetric_fit(count: int, top: int) -> Any:
    """Compile the fit `x ~ scale * level`, level in -top..top-1.

    Follows `make_qx_quants` with `rmse_type` 1. In the caller's hands x / largest is at most 1, so that no
    rounding leaves the range of `round_even`.

    Args:
        count: values in a group.
        top: one more than the highest level.
    """
    f32 = np.float32
    tries = np.array([-(f32(top) + f32(0.1) * f32(i)) for i in (*range(-9, 0), *range(1, 10))], f32)
    steps = len(tries)

    @compiled(count, top)
    def fit(values: Array, weights: Array, products: Array) -> Any:
        """Fit one group in each lane.

        Args:
            values: (count, LANES) float32, flat.
            weights: the same for their weights.
            products: scratch of the same size.

        Returns:
            scale; the inverse that gives the levels as `nearest(inverse * x)`; the mask of lanes that count
            as all zero (their scale and inverse are 0).
        """
        largest = largest_of(values, count)
        inverse = -float(top) / largest
        sum_xl, sum_l2 = floats(0.0), floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            w = load(weights, i * LANES)
            wx = w * x
            store(products, i * LANES, wx)
            level = clamp(round_even(inverse * x), -top, top - 1)
            sum_xl = sum_xl + wx * level
            sum_l2 = sum_l2 + w * level * level
        scale = select(sum_l2 != 0.0, sum_xl / sum_l2, 0.0)
        best, best_inverse = scale * sum_xl, inverse
        for step in range(steps):
            inverse = tries[step] / largest
            sum_xl, sum_l2 = floats(0.0), floats(0.0)
            for i in range(count):
                level = clamp(round_even(inverse * load(values, i * LANES)), -top, top - 1)
                sum_xl = sum_xl + load(products, i * LANES) * level
                sum_l2 = sum_l2 + load(weights, i * LANES) * level * level
            better = (sum_l2 > 0.0) & (sum_xl * sum_xl > best * sum_l2)
            step_scale = sum_xl / sum_l2
            scale = select(better, step_scale, scale)
            best = select(better, step_scale * sum_xl, best)
            best_inverse = select(better, inverse, best_inverse)
        zero = absolute(largest) < TINY
        return select(zero, 0.0, scale), select(zero, 0.0, best_inverse), zero

    return fit


def descent_fit(count: int, top: int) -> Any:
    """Compile the fit `x ~ scale * level`, level in -top..top-1, by moving one level at a time.

    Follows `make_q3_quants` with `do_rmse`.

    Args:
        count: values in a sub-block.
        top: one more than the highest level.
    """

    @compiled(count, top)
    def begin(values: Array, levels: Array) -> Any:
        largest = largest_of(values, count)
        inverse = -float(top) / largest
        sum_xl, sum_l2 = floats(0.0), floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            w = x * x
            level = clamp_ints(nearest(inverse * x), -top, top - 1)
            number = to_float(level)
            store(levels, i * LANES, level)
            sum_xl = sum_xl + w * x * number
            sum_l2 = sum_l2 + w * number * number
        return sum_xl, sum_l2, absolute(largest) < TINY

    @compiled(count, top)
    def move(values: Array, levels: Array, at: int, sum_xl: FloatLanes, sum_l2: FloatLanes) -> Any:
        x, level = load(values, at), load(levels, at)
        w = x * x
        wx = w * x
        number = to_float(level)
        rest_xl = sum_xl - wx * number
        rest_l2 = sum_l2 - w * number * number
        new = clamp_ints(nearest(x * rest_l2 / rest_xl), -top, top - 1)
        better = (rest_xl > 0.0) & (new != level)
        number = to_float(new)
        rest_xl = rest_xl + wx * number
        rest_l2 = rest_l2 + w * number * number
        better = better & (rest_l2 > 0.0) & (rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2)
        store(levels, at, select(better, new, level))
        return select(better, rest_xl, sum_xl), select(better, rest_l2, sum_l2), better

    @compiled(count, top)
    def end(levels: Array, sum_xl: FloatLanes, sum_l2: FloatLanes, zero: Mask) -> FloatLanes:
        if any_lane(zero):
            for i in range(count):
                store(levels, i * LANES, select(zero, ints(-top), load(levels, i * LANES)))
        return select(zero | flip(sum_l2 > 0.0), 0.0, sum_xl / sum_l2)

    @compiled(count, top)
    def fit(values: Array, levels: Array) -> Any:
        """Fit two sub-blocks in each lane, position by position in turn.

        A move waits for a division, and for the sums of the move before: a second chain fills the wait.

        Args:
            values: (2 * count, LANES) float32, flat.
            levels: (2 * count, LANES) int32, flat, to be filled; -top in lanes that count as all zero.

        Returns:
            scale of the first, scale of the second; 0 in lanes that count as all zero.
        """
        values2, levels2 = values[count * LANES :], levels[count * LANES :]
        sum_xl, sum_l2, zero = begin(values, levels)
        sum_xl2, sum_l22, zero2 = begin(values2, levels2)
        for _ in range(5):
            changed = ints(0) != 0
            for i in range(0, count * LANES, LANES):
                sum_xl, sum_l2, moved = move(values, levels, i, sum_xl, sum_l2)
                sum_xl2, sum_l22, moved2 = move(values2, levels2, i, sum_xl2, sum_l22)
                changed = changed | moved | moved2
            if not any_lane(changed):
                break
        return end(levels, sum_xl, sum_l2, zero), end(levels2, sum_xl2, sum_l22, zero2)

    return fit
