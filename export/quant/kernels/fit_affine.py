"""The searches behind ggml's K-quants with a scale and a minimum, one sub-block or super-block per lane.

They take values and weights, position by position, and give scales, minimums, and how the levels were found.
Each lane performs the operations of the C function named in the docstring, in its order. What differs is
bookkeeping: the C code copies the levels at every improvement, here the two numbers that produce them are
kept, and the levels are computed once by whoever needs them.

Specification: ggml-quants.c.
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np

from lorafold.export.quant.kernels.lanes import (
    LANES,
    Array,
    FloatLanes,
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
from lorafold.export.quant.kernels.rounding import clamp, nearest

# `round_even` equals ggml's `nearest_int` below 2^22 = 4194304. A lane whose search leaves this range is
# odd, and its row is left to ggml; it takes subnormal or nearly overflowing values to get there.
REACH = 4.0e6

# Below this largest magnitude a group counts as all zero (GROUP_MAX_EPS).
TINY = np.float32(1e-15)


def numerators(first: float, step: float, steps: int, top: int) -> Array:
    """What a search divides by the spread of the values: `first + step * i + top` for i = 0..steps."""
    f32 = np.float32
    return np.array([f32(f32(first) + f32(step) * f32(i)) + f32(top) for i in range(steps + 1)], f32)


def affine_fit(count: int, top: int, linear: bool, tries: Array) -> Any:
    """Compile the fit `x ~ scale * level + minimum`, level in 0..top, minimum <= 0.

    Follows `make_qkx2_quants` and `make_qkx3_quants`, which agree when both are given weights.

    Args:
        count: values in a sub-block.
        top: the highest level.
        linear: weigh absolute differences instead of squares (`use_mad`).
        tries: the inverse scales to try, as `numerators` gives them.
    """
    steps = len(tries)

    @compiled(count, top, linear, len(tries))
    def fit(values: Array, weights: Array, levels: Array) -> Any:
        """Fit one sub-block in each lane.

        Args:
            values: (count, LANES) float32, flat.
            weights: the same for their weights.
            levels: scratch of the same size.

        Returns:
            scale and -minimum; (inverse, low), which give the levels as `nearest(inverse * (x - low))`; the
            mask of odd lanes.
        """
        x = load(values, 0)
        w = load(weights, 0)
        low, high, sum_w, sum_x = x, x, w, w * x
        for i in range(1, count):
            x = load(values, i * LANES)
            w = load(weights, i * LANES)
            low = select(x < low, x, low)
            high = select(x > high, x, high)
            sum_w = sum_w + w
            sum_x = sum_x + w * x
        low = select(low > 0.0, 0.0, low)
        flat = high == low
        inverse = top / (high - low)
        scale = 1.0 / inverse
        error = floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            level = clamp(round_even(inverse * (x - low)), 0.0, top)
            difference = scale * level + low - x
            difference = absolute(difference) if linear else difference * difference
            error = error + load(weights, i * LANES) * difference
        minimum, best_inverse, best_low = low, inverse, low
        lowest, highest = low, low
        for step in range(steps):
            # From the minimum of the best step so far, not of the values: hoisting it changes bytes.
            inverse = tries[step] / (high - minimum)
            sum_l, sum_l2, sum_xl = floats(0.0), floats(0.0), floats(0.0)
            for i in range(count):
                x = load(values, i * LANES)
                level = clamp(round_even(inverse * (x - minimum)), 0.0, top)
                store(levels, i * LANES, level)
                wl = load(weights, i * LANES) * level
                sum_l = sum_l + wl
                sum_l2 = sum_l2 + wl * level
                sum_xl = sum_xl + wl * x
            determinant = sum_w * sum_l2 - sum_l * sum_l
            step_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            step_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            positive = step_minimum > 0.0
            if any_lane(positive):
                step_minimum = select(positive, 0.0, step_minimum)
                step_scale = select(positive, sum_xl / sum_l2, step_scale)
            step_error = floats(0.0)
            for i in range(count):
                difference = step_scale * load(levels, i * LANES) + step_minimum - load(values, i * LANES)
                difference = absolute(difference) if linear else difference * difference
                step_error = step_error + load(weights, i * LANES) * difference
            better = (determinant > 0.0) & (step_error < error)
            error = select(better, step_error, error)
            scale = select(better, step_scale, scale)
            best_inverse = select(better, inverse, best_inverse)
            best_low = select(better, minimum, best_low)
            minimum = select(better, step_minimum, minimum)
            lowest = select(minimum < lowest, minimum, lowest)
            highest = select(minimum > highest, minimum, highest)
        # No inverse was larger than the last over the smallest spread, no difference larger than these two
        # together.
        widest = tries[steps - 1] / (high - highest) * ((high - lowest) + (highest - low))
        odd = flip(flat | ((widest >= 0.0) & (widest <= REACH)))
        scale = select(flat, 0.0, scale)
        best_inverse = select(flat, 0.0, best_inverse)
        return scale, 0.0 - minimum, best_inverse, best_low, odd

    return fit


def magnitude_fit(count: int, top: int) -> Any:
    """Compile the fit of scales or minimums themselves: `x ~ scale * level`, x >= 0, level in 0..top.

    Follows `make_qp_quants`.

    Args:
        count: sub-blocks in a super-block.
        top: the highest level.
    """
    f32 = np.float32
    tries = np.array([f32(0.1) * f32(i) + f32(top) for i in range(-4, 5) if i], f32)
    steps = len(tries)

    @compiled(count, top)
    def fit(values: Array, weights: Array, levels: Array) -> FloatLanes:
        """Fit one super-block in each lane.

        Args:
            values: (count, LANES) float32, flat.
            weights: the same for their weights.
            levels: (count, LANES) int32, flat, to be filled; each modulo 256, as C stores them.

        Returns:
            scale.
        """
        largest = floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            largest = select(largest > x, largest, x)
        inverse = top / largest
        scale = 1.0 / inverse
        error = floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            difference = x - scale * to_float(nearest(inverse * x) & 255)
            error = error + load(weights, i * LANES) * difference * difference
        for step in range(steps):
            step_inverse = tries[step] / largest
            step_scale = 1.0 / step_inverse
            step_error = floats(0.0)
            for i in range(count):
                x = load(values, i * LANES)
                level = nearest(step_inverse * x)
                level = select(level < top, level, top)
                difference = x - step_scale * to_float(level)
                step_error = step_error + load(weights, i * LANES) * difference * difference
            better = step_error < error
            error = select(better, step_error, error)
            inverse = select(better, step_inverse, inverse)
        sum_xl, sum_l2 = floats(0.0), floats(0.0)
        for i in range(count):
            x = load(values, i * LANES)
            w = load(weights, i * LANES)
            level = nearest(inverse * x)
            level = select(level < top, level, top)
            store(levels, i * LANES, level & 255)
            number = to_float(level)
            sum_xl = sum_xl + w * x * number
            sum_l2 = sum_l2 + w * number * number
        for _ in range(5):
            changed = ints(0) != 0
            for i in range(count):
                x = load(values, i * LANES)
                w = load(weights, i * LANES)
                level = load(levels, i * LANES)
                number = to_float(level)
                rest_xl = sum_xl - w * x * number
                rest_l2 = sum_l2 - w * number * number
                new = nearest(x * rest_l2 / rest_xl)
                new = select(new < top, new, top)
                move = (rest_xl > 0.0) & (rest_l2 > 0.0) & (new != level)
                number = to_float(new)
                rest_xl = rest_xl + w * x * number
                rest_l2 = rest_l2 + w * number * number
                move = move & (rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2)
                store(levels, i * LANES, select(move, new & 255, level))
                sum_xl = select(move, rest_xl, sum_xl)
                sum_l2 = select(move, rest_l2, sum_l2)
                changed = changed | move
            if not any_lane(changed):
                break
        zero = largest < TINY
        if any_lane(zero):
            for i in range(count):
                store(levels, i * LANES, select(zero, ints(0), load(levels, i * LANES)))
        return select(zero | flip(sum_l2 > 0.0), 0.0, sum_xl / sum_l2)

    return fit
