"""Kernels for the K-quants whose sub-blocks have a scale and a minimum: Q4_K, Q5_K and Q2_K.

Float32 rows come in, GGUF block bytes go out. `LANES` super-blocks of 256 values are quantized at once, one
in each SIMD lane: the search for scales runs across lanes on transposed values, and the final levels are
computed along each super-block again, where the bytes are packed.

Specification: ggml-quants.c (`quantize_row_q?_K_ref` without importance weights, `_impl` with them). The
layouts are drawn where they are packed.
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from lorafold.export.quant.kernels.fit_affine import affine_fit, magnitude_fit, numerators
from lorafold.export.quant.kernels.lanes import (
    LANES,
    SOURCES,
    Array,
    FloatLanes,
    Ints,
    absolute,
    compiled,
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


def levels_of(count: int, top: int) -> Any:
    """Compile the final levels of 16 consecutive values, with the scale and minimum that the file holds."""

    @compiled(count, top)
    def levels(values: Array, at: int, plan: Array, sub: int, lane: int) -> Ints:
        x = load(values, at)
        slot = sub * LANES + lane
        scale = plan[slot]
        if scale != 0.0:
            level = nearest((x + plan[count * LANES + slot]) / scale)
        else:  # the scale vanished in rounding: the levels of the search stand
            level = nearest(plan[2 * count * LANES + slot] * (x - plan[3 * count * LANES + slot]))
        return clamp_ints(level, 0, top)

    return levels


levels_q4 = levels_of(8, 15)
levels_q5 = levels_of(8, 31)
levels_q2 = levels_of(16, 3)


@njit
def write_q4(
    values: Array, at: int, plan: Array, packed: Array, halves: Array, lane: int, out: Array, to: int
) -> None:
    store_half(out, to, halves[lane])
    store_half(out, to + 2, halves[LANES + lane])
    for k in range(12):
        out[to + 4 + k] = packed[k * LANES + lane]
    for pair in range(4):
        for part in range(2):
            first = at + pair * 64 + part * 16
            low = levels_q4(values, first, plan, 2 * pair, lane)
            high = levels_q4(values, first + 32, plan, 2 * pair + 1, lane)
            store_bytes(out, to + 16 + pair * 32 + part * 16, low | (high << 4))


@njit
def write_q5(
    values: Array, at: int, plan: Array, packed: Array, halves: Array, lane: int, out: Array, to: int
) -> None:
    store_half(out, to, halves[lane])
    store_half(out, to + 2, halves[LANES + lane])
    for k in range(12):
        out[to + 4 + k] = packed[k * LANES + lane]
    for part in range(2):
        fifth = ints(0)
        for pair in range(4):
            first = at + pair * 64 + part * 16
            low = levels_q5(values, first, plan, 2 * pair, lane)
            high = levels_q5(values, first + 32, plan, 2 * pair + 1, lane)
            store_bytes(out, to + 48 + pair * 32 + part * 16, (low & 15) | ((high & 15) << 4))
            fifth = fifth | ((low >> 4) << (2 * pair)) | ((high >> 4) << (2 * pair + 1))
        store_bytes(out, to + 16 + part * 16, fifth)


@njit
def write_q2(
    values: Array, at: int, plan: Array, packed: Array, halves: Array, lane: int, out: Array, to: int
) -> None:
    for k in range(16):
        out[to + k] = packed[k * LANES + lane]
    for side in range(2):
        for part in range(2):
            four = ints(0)
            for k in range(4):
                sub = side * 8 + k * 2 + part
                four = four | (levels_q2(values, at + sub * 16, plan, sub, lane) << (2 * k))
            store_bytes(out, to + 16 + side * 32 + part * 16, four)
    store_half(out, to + 80, halves[lane])
    store_half(out, to + 82, halves[LANES + lane])


# --- weights of the values ---


@njit
def weigh_rms(values: Array, importance: Array, energy: FloatLanes, weights: Array) -> None:
    """Q4_K and Q5_K: root mean square of the sub-block plus the magnitude."""
    total = floats(0.0)
    for i in range(32):
        x = load(values, i * LANES)
        total = total + x * x
    average = sqrt(total / 32.0)
    for i in range(32):
        store(weights, i * LANES, average + absolute(load(values, i * LANES)))


@njit
def weigh_magnitude(values: Array, importance: Array, energy: FloatLanes, weights: Array) -> None:
    """Q2_K: the magnitude."""
    for i in range(16):
        store(weights, i * LANES, absolute(load(values, i * LANES)))


def weigh_importance(count: int) -> Any:
    """All types: the column's importance times sqrt(energy of the super-block + x^2)."""

    @compiled(count)
    def weigh(values: Array, importance: Array, energy: FloatLanes, weights: Array) -> None:
        for i in range(count):
            x = load(values, i * LANES)
            store(weights, i * LANES, load(importance, i * LANES) * sqrt(energy + x * x))

    return weigh


# --- scales and minimums of a super-block ---


def ratio_levels(count: int, top: int) -> Any:
    """Scales as fractions of the largest, in `top` steps; without importance weights."""

    @compiled(count, top)
    def choose(values: Array, weights: Array, levels: Array) -> FloatLanes:
        largest = floats(0.0)
        for j in range(count):
            value = load(values, j * LANES)
            largest = select(value > largest, value, largest)
        inverse = select(largest > 0.0, top / largest, 0.0)
        for j in range(count):
            level = nearest(inverse * load(values, j * LANES)) & 255
            # 6-bit levels are cut at 63 after C's conversion to a byte; 4-bit ones are not cut.
            store(levels, j * LANES, select(level > 63, ints(63), level) if top == 63 else level)
        return largest / top

    return choose


@njit
def pack_6bit(scales: Array, minimums: Array, packed: Array) -> None:
    """Eight 6-bit scales and minimums into twelve bytes, and back out of them what a reader will see."""
    for j in range(4):
        scale, minimum = load(scales, j * LANES), load(minimums, j * LANES)
        scale4, minimum4 = load(scales, (j + 4) * LANES), load(minimums, (j + 4) * LANES)
        low = (scale | ((scale4 >> 4) << 6)) & 255
        middle = (minimum | ((minimum4 >> 4) << 6)) & 255
        high = (scale4 & 15) | ((minimum4 & 15) << 4)
        store(packed, j * LANES, low)
        store(packed, (j + 4) * LANES, middle)
        store(packed, (j + 8) * LANES, high)
        store(scales, j * LANES, low & 63)
        store(minimums, j * LANES, middle & 63)
        store(scales, (j + 4) * LANES, (high & 15) | ((low >> 6) << 4))
        store(minimums, (j + 4) * LANES, (high >> 4) | ((middle >> 6) << 4))


@njit
def pack_6bit_cut(scales: Array, minimums: Array, packed: Array) -> None:
    """`pack_6bit` of levels cut at 63, which the search's bytes exceed if a scale was negative.

    ggml cuts in Q5_K; in Q4_K it packs such a byte as it is.
    """
    for j in range(8):
        scale, minimum = load(scales, j * LANES), load(minimums, j * LANES)
        store(scales, j * LANES, select(scale < 63, scale, 63))
        store(minimums, j * LANES, select(minimum < 63, minimum, 63))
    pack_6bit(scales, minimums, packed)


@njit
def pack_4bit(scales: Array, minimums: Array, packed: Array) -> None:
    """Sixteen 4-bit scales and minimums into sixteen bytes, and back out of them what a reader will see."""
    for j in range(16):
        both = (load(scales, j * LANES) | (load(minimums, j * LANES) << 4)) & 255
        store(packed, j * LANES, both)
        store(scales, j * LANES, both & 15)
        store(minimums, j * LANES, both >> 4)


# --- the kernels ---


def driver(
    count: int, nbytes: int, energy_factor: float, weigh: Any, fit: Any, choose: Any, pack: Any, write: Any
) -> Any:
    """Compile one type: sub-blocks of `256 // count` values, super-blocks of `nbytes`.

    The energy is `energy_factor` * sum(x^2) / 256 over the super-block, 0 if it is not wanted.
    """
    width = SUPER // count

    @compiled(count, nbytes, energy_factor)
    def run(x: Array, importance: Array, out: Array, odd: Array) -> None:
        total = x.size // SUPER
        values = np.empty(SUPER * LANES, np.float32)
        columns = np.empty(SUPER * LANES if energy_factor else 1, np.float32)
        rest = np.empty(SUPER * LANES, np.float32)
        spread = np.empty(SUPER * LANES if energy_factor else 1, np.float32)
        weights = np.empty(width * LANES, np.float32)
        scratch = np.empty(width * LANES, np.float32)
        # Per sub-block and lane: scale, minimum, inverse, low; what `levels_of` reads.
        plan = np.empty(4 * count * LANES, np.float32)
        sums = np.empty(count * LANES, np.float32)
        scales = np.empty(count * LANES, np.int32)
        minimums = np.empty(count * LANES, np.int32)
        packed = np.empty(16 * LANES, np.int32)
        halves = np.empty(2 * LANES, np.int32)
        for group in range(0, total, LANES):
            source, at, used = gather_values(x, group, total, SUPER, rest, values)
            energy = floats(0.0)
            if energy_factor:
                gather_importance(importance, group, SUPER, spread, columns)
                for i in range(SUPER):
                    v = load(values, i * LANES)
                    energy = energy + v * v
                energy = energy_factor * energy / 256.0
            strange = ints(0)
            for j in range(count):
                here = j * width * LANES
                weigh(values[here:], columns[here if energy_factor else 0 :], energy, weights)
                if energy_factor:
                    total_weight = floats(0.0)
                    for i in range(width):
                        total_weight = total_weight + load(weights, i * LANES)
                    store(sums, j * LANES, total_weight)
                scale, minimum, inverse, low, lane_odd = fit(values[here:], weights, scratch)
                strange = strange | select(lane_odd, ints(1), ints(0))
                store(plan, j * LANES, scale)
                store(plan, (count + j) * LANES, minimum)
                store(plan, (2 * count + j) * LANES, inverse)
                store(plan, (3 * count + j) * LANES, low)
            d = to_half(choose(plan, sums, scales))
            dmin = to_half(choose(plan[count * LANES :], sums, minimums))
            store(halves, 0, d)
            store(halves, LANES, dmin)
            pack(scales, minimums, packed)
            for j in range(count):
                store(plan, j * LANES, from_half(d) * to_float(load(scales, j * LANES)))
                store(plan, (count + j) * LANES, from_half(dmin) * to_float(load(minimums, j * LANES)))
            store(scales, 0, strange)
            for lane in range(used):
                odd[group + lane] = scales[lane]
                write(source, at + lane * SUPER, plan, packed, halves, lane, out, (group + lane) * nbytes)

    return run


fit_q4 = affine_fit(32, 15, False, numerators(-1.0, 0.1, 20, 15))
fit_q4_weighted = affine_fit(32, 15, False, numerators(-0.9, 0.05, 36, 15))
fit_q5 = affine_fit(32, 31, False, numerators(-0.5, 0.1, 15, 31))
fit_q5_weighted = affine_fit(32, 31, False, numerators(-0.9, 0.05, 36, 31))
fit_q2 = affine_fit(16, 3, True, numerators(-0.5, 0.1, 15, 3))
fit_q2_weighted = affine_fit(16, 3, False, numerators(-0.9, 0.05, 36, 3))

run_q4 = driver(8, 144, 0, weigh_rms, fit_q4, ratio_levels(8, 63), pack_6bit, write_q4)
run_q5 = driver(8, 176, 0, weigh_rms, fit_q5, ratio_levels(8, 63), pack_6bit, write_q5)
run_q2 = driver(16, 84, 0, weigh_magnitude, fit_q2, ratio_levels(16, 15), pack_4bit, write_q2)
run_q4_weighted = driver(
    8, 144, 2, weigh_importance(32), fit_q4_weighted, magnitude_fit(8, 63), pack_6bit, write_q4
)
run_q5_weighted = driver(
    8, 176, 2, weigh_importance(32), fit_q5_weighted, magnitude_fit(8, 63), pack_6bit_cut, write_q5
)
run_q2_weighted = driver(
    16, 84, 1, weigh_importance(16), fit_q2_weighted, magnitude_fit(16, 15), pack_4bit, write_q2
)


def q4_k(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q4_K. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_q4(x, x, out, odd)
    else:
        run_q4_weighted(x, importance, out, odd)


def q5_k(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q5_K. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_q5(x, x, out, odd)
    else:
        run_q5_weighted(x, importance, out, odd)


def q2_k(x: Array, importance: Array | None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q2_K. numba compiles the branch alone that the type of `importance` leaves."""
    if importance is None:
        run_q2(x, x, out, odd)
    else:
        run_q2_weighted(x, importance, out, odd)
