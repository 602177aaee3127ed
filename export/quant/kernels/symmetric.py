"""Kernels for the K-quants whose sub-blocks have a scale only: Q6_K and Q3_K.

Float32 rows come in, GGUF block bytes go out, `LANES` super-blocks of 256 values at a time, one in each
SIMD lane.

Specification: ggml-quants.c (`quantize_row_q?_K_ref` without importance weights, `_impl` with them),
ggml-common.h for the layouts. Numbers of a block, with a little-endian half d:

    Q6_K 210 bytes: ql[128], qh[64], 16 x int8 scale, d
    Q3_K 110 bytes: hmask[32], qs[64], 16 x 6-bit scale in 12 bytes, d
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lorafold.export.quant.kernels.fit_affine import TINY
from lorafold.export.quant.kernels.fit_symmetric import descent_fit, largest_of, symmetric_fit
from lorafold.export.quant.kernels.lanes import (
    LANES,
    SOURCES,
    Array,
    Ints,
    absolute,
    compiled,
    flip,
    floats,
    ints,
    select,
    sqrt,
    to_float,
)
from lorafold.export.quant.kernels.memory import (
    SUPER,
    gather_importance,
    gather_values,
    load,
    store,
    store_bytes,
    store_half,
)
from lorafold.export.quant.kernels.rounding import clamp_ints, from_half, nearest, to_half

fit_q6 = symmetric_fit(16, 32)
fit_q3 = symmetric_fit(16, 4)
fit_q3_descent = descent_fit(16, 4)


# --- Q6_K ---


@njit
def levels_q6(values: Array, at: int, plan: Array, sub: int, lane: int) -> Ints:
    """Levels 0..63 of one sub-block of 16 values."""
    x = load(values, at + sub * 16)
    slot = sub * LANES + lane
    scale = plan[slot]
    if scale != 0.0:
        return clamp_ints(nearest(x / scale), -32, 31) + 32
    # The scale vanished in rounding: the levels of the search stand.
    level = clamp_ints(nearest(x * plan[16 * LANES + slot]), -32, 31)
    return level + int(plan[32 * LANES + slot])


@njit
def write_q6(
    values: Array, at: int, plan: Array, packed: Array, halves: Array, lane: int, out: Array, to: int
) -> None:
    if packed[16 * LANES + lane]:  # all zero: levels too, which elsewhere are 32 at zero
        for i in range(210):
            out[to + i] = 0
        return
    for side in range(2):
        for part in range(2):
            sub = side * 8 + part
            q1 = levels_q6(values, at, plan, sub, lane)
            q2 = levels_q6(values, at, plan, sub + 2, lane)
            q3 = levels_q6(values, at, plan, sub + 4, lane)
            q4 = levels_q6(values, at, plan, sub + 6, lane)
            low = to + side * 64 + part * 16
            store_bytes(out, low, (q1 & 15) | ((q3 & 15) << 4))
            store_bytes(out, low + 32, (q2 & 15) | ((q4 & 15) << 4))
            high = (q1 >> 4) | ((q2 >> 4) << 2) | ((q3 >> 4) << 4) | ((q4 >> 4) << 6)
            store_bytes(out, to + 128 + side * 32 + part * 16, high)
    for sub in range(16):
        out[to + 192 + sub] = packed[sub * LANES + lane]
    store_half(out, to + 208, halves[lane])


def driver_q6(weighted: bool) -> Any:
    """Compile Q6_K; the weights are the columns' importances, or the squares of the values."""

    @compiled(weighted)
    def run(x: Array, importance: Array, out: Array, odd: Array) -> None:
        total = x.size // SUPER
        values = np.empty(SUPER * LANES, np.float32)
        columns = np.empty(SUPER * LANES if weighted else 16 * LANES, np.float32)
        rest = np.empty(SUPER * LANES, np.float32)
        spread = np.empty(SUPER * LANES if weighted else 1, np.float32)
        scratch = np.empty(16 * LANES, np.float32)
        # Per sub-block and lane: scale, inverse, the level of zero; what `levels_q6` reads.
        plan = np.empty(48 * LANES, np.float32)
        packed = np.empty(17 * LANES, np.int32)
        halves = np.empty(LANES, np.int32)
        for group in range(0, total, LANES):
            source, at, used = gather_values(x, group, total, SUPER, rest, values)
            if weighted:
                gather_importance(importance, group, SUPER, spread, columns)
            for j in range(16):
                here = j * 16 * LANES
                if weighted:
                    weights = columns[here:]
                else:
                    weights = columns
                    for i in range(16):
                        v = load(values, here + i * LANES)
                        store(weights, i * LANES, v * v)
                scale, inverse, zero = fit_q6(values[here:], weights, scratch)
                store(plan, j * LANES, scale)
                store(plan, (16 + j) * LANES, inverse)
                store(plan, (32 + j) * LANES, select(zero, floats(0.0), 32.0))
            largest = largest_of(plan, 16)
            inverse = -128.0 / largest
            d = to_half(1.0 / inverse)
            store(halves, 0, d)
            for j in range(16):
                level = nearest(inverse * load(plan, j * LANES))
                level = select(level < 127, level, 127)
                store(packed, j * LANES, level & 255)
                # As the signed byte that it becomes.
                store(plan, j * LANES, from_half(d) * to_float((level << 24) >> 24))
            store(packed, 16 * LANES, select(absolute(largest) < TINY, ints(1), ints(0)))
            for lane in range(used):
                odd[group + lane] = 0
                write_q6(source, at + lane * SUPER, plan, packed, halves, lane, out, (group + lane) * 210)

    return run


# --- Q3_K ---


@njit
def levels_q3(values: Array, at: int, plan: Array, found: Array, sub: int, lane: int) -> Ints:
    """Levels 0..7 of one sub-block of 16 values."""
    scale = plan[sub * LANES + lane]
    if scale != 0.0:
        return clamp_ints(nearest(load(values, at + sub * 16) / scale), -4, 3) + 4
    # The scale vanished in rounding: the levels of the search stand.
    column = np.empty(LANES, np.int32)
    for i in range(16):
        column[i] = found[(sub * 16 + i) * LANES + lane]
    return load(column, 0)


@njit
def write_q3(
    values: Array,
    at: int,
    plan: Array,
    found: Array,
    packed: Array,
    half: int,
    lane: int,
    out: Array,
    to: int,
) -> None:
    for part in range(2):
        third = ints(0)
        for side in range(2):
            two = ints(0)
            for k in range(4):
                level = levels_q3(values, at, plan, found, side * 8 + k * 2 + part, lane)
                two = two | ((level & 3) << (2 * k))
                third = third | ((level >> 2) << (side * 4 + k))
            store_bytes(out, to + 32 + side * 32 + part * 16, two)
        store_bytes(out, to + part * 16, third)
    for k in range(12):
        out[to + 96 + k] = packed[k * LANES + lane]
    store_half(out, to + 108, half)


@njit
def pack_q3(levels: Array, packed: Array) -> None:
    """Sixteen 6-bit scales: low halves in eight bytes, high quarters in four."""
    for j in range(8):
        low, high = load(levels, j * LANES), load(levels, (j + 8) * LANES)
        store(packed, j * LANES, (low & 15) | ((high & 15) << 4))
    for j in range(4):
        quarters = ints(0)
        for k in range(4):
            quarters = quarters | ((load(levels, (4 * k + j) * LANES) >> 4) << (2 * k))
        store(packed, (8 + j) * LANES, quarters & 255)


def driver_q3(weighted: bool) -> Any:
    """Compile Q3_K; with importances both levels of scales are searched, without them neither is."""
    fit_scales = symmetric_fit(16, 32)

    @compiled(weighted)
    def run(x: Array, importance: Array, out: Array, odd: Array) -> None:
        total = x.size // SUPER
        values = np.empty(SUPER * LANES, np.float32)
        columns = np.empty(SUPER * LANES if weighted else 1, np.float32)
        rest = np.empty(SUPER * LANES, np.float32)
        spread = np.empty(SUPER * LANES if weighted else 1, np.float32)
        weights = np.empty(16 * LANES, np.float32)
        scratch = np.empty(16 * LANES, np.float32)
        found = np.empty(SUPER * LANES, np.uint8)
        trial = np.empty(32 * LANES, np.int32)
        plan = np.empty(16 * LANES, np.float32)
        sums = np.empty(16 * LANES, np.float32)
        levels = np.empty(16 * LANES, np.int32)
        packed = np.empty(12 * LANES, np.int32)
        halves = np.empty(LANES, np.int32)
        for group in range(0, total, LANES):
            source, at, used = gather_values(x, group, total, SUPER, rest, values)
            strange = ints(0)
            if weighted:
                gather_importance(importance, group, SUPER, spread, columns)
                energy = floats(0.0)
                for i in range(SUPER):
                    v = load(values, i * LANES)
                    energy = energy + v * v
                energy = 2.0 * energy / 256.0
                for j in range(16):
                    here = j * 16 * LANES
                    total_weight = floats(0.0)
                    for i in range(16):
                        v = load(values, here + i * LANES)
                        w = load(columns, here + i * LANES) * sqrt(energy + v * v)
                        store(weights, i * LANES, w)
                        total_weight = total_weight + w
                    store(sums, j * LANES, total_weight)
                    scale, inverse, zero = fit_q3(values[here:], weights, scratch)
                    store(plan, j * LANES, scale)
                    strange = select(absolute(scale) < np.inf, strange, 1)
                    for i in range(16):
                        level = clamp_ints(nearest(inverse * load(values, here + i * LANES)), -4, 3) + 4
                        store_bytes(found, here + i * LANES, select(zero, 0, level))
                scale, inverse, zero = fit_scales(plan, sums, scratch)
                d = to_half(scale)
                for j in range(16):
                    level = clamp_ints(nearest(inverse * load(plan, j * LANES)), -32, 31) + 32
                    store(levels, j * LANES, select(zero, 0, level))
            else:
                for j in range(0, 16, 2):
                    here = j * 16 * LANES
                    scale, scale2 = fit_q3_descent(values[here:], trial)
                    store(plan, j * LANES, scale)
                    store(plan, (j + 1) * LANES, scale2)
                    for i in range(32):
                        store_bytes(found, here + i * LANES, load(trial, i * LANES) + 4)
                largest = largest_of(plan, 16)
                inverse = -32.0 / largest
                zero = flip(largest != 0.0)
                d = select(zero, 0, to_half(1.0 / inverse))
                for j in range(16):
                    level = nearest(inverse * load(plan, j * LANES))
                    # C keeps it in a signed byte before cutting it.
                    level = clamp_ints((level << 24) >> 24, -32, 31) + 32
                    store(levels, j * LANES, select(zero, 0, level))
            pack_q3(levels, packed)
            store(halves, 0, d)
            for j in range(16):
                store(plan, j * LANES, from_half(d) * to_float(load(levels, j * LANES) - 32))
            store(levels, 0, strange)
            for lane in range(used):
                odd[group + lane] = levels[lane]
                to = (group + lane) * 110
                write_q3(source, at + lane * SUPER, plan, found, packed, halves[lane], lane, out, to)

    return run


run_q6 = driver_q6(False)
run_q6_weighted = driver_q6(True)
run_q3 = driver_q3(False)
run_q3_weighted = driver_q3(True)


def q6_k(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q6_K. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_q6(x, x, out, odd)
    else:
        run_q6_weighted(x, importance, out, odd)


def q3_k(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q3_K. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_q3(x, x, out, odd)
    else:
        run_q3_weighted(x, importance, out, odd)
