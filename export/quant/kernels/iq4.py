"""Kernels for IQ4_XS and IQ4_NL, whose 4-bit levels stand for sixteen unevenly spaced values.

Float32 rows come in, GGUF block bytes go out, one super-block (256 values; IQ4_NL: 32) in each SIMD lane.

Specification: ggml-quants.c (`quantize_row_iq4_nl_impl` with 7 tries), ggml-common.h for the layouts; d is a
little-endian half:

    IQ4_XS 136 bytes: d, 8 x high 2 bits of the scales, 8 x their low 4 bits in 4 bytes, qs[128]
    IQ4_NL  18 bytes: d, qs[16]
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

from lorafold.export.quant.kernels.fit_affine import TINY
from lorafold.export.quant.kernels.fit_symmetric import largest_of
from lorafold.export.quant.kernels.lanes import (
    LANES,
    SOURCES,
    Array,
    FloatLanes,
    absolute,
    compiled,
    define_choice,
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
from lorafold.export.quant.kernels.rounding import clamp_ints, nearest, to_half

# The values of the levels 0..15 (kvalues_iq4nl), and where one gives way to the next. ggml compares the
# distances to both neighbours; at a tie the upper one wins, and near the ties both differences are exact in
# float32.
VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TIES = tuple((low + high) / 2 for low, high in pairwise(VALUES))

nearest_value = define_choice("nearest_value", TIES, VALUES)
nearest_level = define_choice("nearest_level", TIES, range(16))

TRIES = np.array([i + VALUES[0] for i in range(-7, 8)], np.float32)

# Scales beyond these give quotients that overflow, where the order of ggml's comparisons starts to matter.
SMALLEST, LARGEST = np.float32(1e-30), np.float32(1e30)


@njit
def table_sums(inverse: FloatLanes, values: Array, weights: Array) -> Any:
    """Sums of w*q*x and w*q*q over 32 positions, q the table's value nearest to x * inverse."""
    sum_qx, sum_q2 = floats(0.0), floats(0.0)
    for i in range(32):
        x = load(values, i * LANES)
        q = nearest_value(inverse * x)
        wq = load(weights, i * LANES) * q
        sum_qx = sum_qx + wq * x
        sum_q2 = sum_q2 + wq * q
    return sum_qx, sum_q2


@njit
def table_fit(values: Array, weights: Array) -> FloatLanes:
    """The scale of one sub-block of 32 in each lane: the best of 16 tries."""
    largest = largest_of(values, 32)
    sum_qx, sum_q2 = table_sums(1.0 / (largest / 127.0), values, weights)
    scale = select(sum_q2 > 0.0, sum_qx / sum_q2, 0.0)
    best = scale * sum_qx
    for step in range(15):
        sum_qx, sum_q2 = table_sums(TRIES[step] / largest, values, weights)
        better = (sum_q2 > 0.0) & (sum_qx * sum_qx > best * sum_q2)
        scale = select(better, sum_qx / sum_q2, scale)
        best = select(better, scale * sum_qx, best)
    return select(absolute(largest) < TINY, 0.0, scale)


@njit
def weigh(values: Array, columns: Array, energy: FloatLanes, weighted: bool, weights: Array) -> None:
    """Importance * sqrt(energy + x^2), or x^2 without importances."""
    for i in range(32):
        x = load(values, i * LANES)
        w = x * x
        store(weights, i * LANES, load(columns, i * LANES) * sqrt(energy + w) if weighted else w)


@njit
def energy_of(values: Array, count: int) -> FloatLanes:
    """Twice the mean square over a super-block."""
    energy = floats(0.0)
    for i in range(count):
        x = load(values, i * LANES)
        energy = energy + x * x
    return energy * (2.0 / count)


@njit
def write_levels(values: Array, at: int, inverse: float, out: Array, to: int) -> None:
    """32 levels in 16 bytes, the first half in the low nibbles."""
    low = nearest_level(load(values, at) * inverse)
    high = nearest_level(load(values, at + 16) * inverse)
    store_bytes(out, to, low | (high << 4))


def driver_iq4_xs(weighted: bool) -> Any:
    """Compile IQ4_XS."""

    @compiled(weighted)
    def run(x: Array, importance: Array, out: Array, odd: Array) -> None:
        total = x.size // SUPER
        values = np.empty(SUPER * LANES, np.float32)
        columns = np.empty(SUPER * LANES, np.float32)
        rest = np.empty(SUPER * LANES, np.float32)
        spread = np.empty(SUPER * LANES, np.float32)
        weights = np.empty(32 * LANES, np.float32)
        scales = np.empty(8 * LANES, np.float32)
        packed = np.empty(6 * LANES, np.int32)
        header = np.empty(2 * LANES, np.int32)
        for group in range(0, total, LANES):
            source, at, used = gather_values(x, group, total, SUPER, rest, values)
            energy = energy_of(values, SUPER)
            if weighted:
                gather_importance(importance, group, SUPER, spread, columns)
            strange = ints(0)
            for j in range(8):
                here = j * 32 * LANES
                weigh(values[here:], columns[here:], energy, weighted, weights)
                scale = table_fit(values[here:], weights)
                strange = select(absolute(scale) < LARGEST, strange, 1)
                store(scales, j * LANES, scale)
            largest = largest_of(scales, 8)
            strange = select((largest == 0.0) | (absolute(largest) > SMALLEST), strange, 1)
            d = largest * -1.0 / 32.0
            store(header, 0, to_half(d))
            store(header, LANES, strange)
            inverse = select(d != 0.0, 1.0 / d, 0.0)
            high = ints(0)
            for j in range(8):
                level = clamp_ints(nearest(inverse * load(scales, j * LANES)), -32, 31)
                rounded = d * to_float(level)
                store(scales, j * LANES, select(rounded != 0.0, 1.0 / rounded, 0.0))
                level = level + 32
                high = high | ((level >> 4) << (2 * j))
                low = level & 15
                if j % 2:
                    low = load(packed, (2 + j // 2) * LANES) | (low << 4)
                store(packed, (2 + j // 2) * LANES, low)
            store(packed, 0, high & 255)
            store(packed, LANES, high >> 8)
            for lane in range(used):
                to = (group + lane) * 136
                odd[group + lane] = header[LANES + lane]
                store_half(out, to, header[lane])
                for k in range(6):
                    out[to + 2 + k] = packed[k * LANES + lane]
                for j in range(8):
                    first = at + lane * SUPER + j * 32
                    write_levels(source, first, scales[j * LANES + lane], out, to + 8 + j * 16)

    return run


def driver_iq4_nl(weighted: bool) -> Any:
    """Compile IQ4_NL: every 32 values are a super-block of their own."""

    @compiled(weighted)
    def run(x: Array, importance: Array, out: Array, odd: Array) -> None:
        total = x.size // 32
        values = np.empty(32 * LANES, np.float32)
        columns = np.empty(32 * LANES, np.float32)
        rest = np.empty(32 * LANES, np.float32)
        spread = np.empty(32 * LANES, np.float32)
        weights = np.empty(32 * LANES, np.float32)
        inverses = np.empty(LANES, np.float32)
        header = np.empty(2 * LANES, np.int32)
        for group in range(0, total, LANES):
            source, at, used = gather_values(x, group, total, 32, rest, values)
            if weighted:
                gather_importance(importance, group, 32, spread, columns)
            weigh(values, columns, energy_of(values, 32), weighted, weights)
            scale = table_fit(values, weights)
            sane = (scale == 0.0) | ((absolute(scale) > SMALLEST) & (absolute(scale) < LARGEST))
            store(header, 0, to_half(scale))
            store(header, LANES, select(sane, ints(0), 1))
            store(inverses, 0, select(scale != 0.0, 1.0 / scale, 0.0))
            for lane in range(used):
                odd[group + lane] = header[LANES + lane]
                store_half(out, (group + lane) * 18, header[lane])
                write_levels(source, at + lane * 32, inverses[lane], out, (group + lane) * 18 + 2)

    return run


run_iq4_xs = driver_iq4_xs(False)
run_iq4_xs_weighted = driver_iq4_xs(True)
run_iq4_nl = driver_iq4_nl(False)
run_iq4_nl_weighted = driver_iq4_nl(True)


def iq4_xs(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """IQ4_XS. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_iq4_xs(x, x, out, odd)
    else:
        run_iq4_xs_weighted(x, importance, out, odd)


def iq4_nl(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """IQ4_NL. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_iq4_nl(x, x, out, odd)
    else:
        run_iq4_nl_weighted(x, importance, out, odd)
