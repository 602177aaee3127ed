"""Kernels for the types without a search: F16 and Q8_0.

Float32 rows come in, GGUF bytes go out. Nothing here is summed, so lanes are simply consecutive values.

Specification: ggml.c (`ggml_fp32_to_fp16_row`), ggml-quants.c (`quantize_row_q8_0_ref`); a Q8_0 block is a
little-endian half d and 32 signed bytes.
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

from lorafold.export.quant.kernels.lanes import (
    LANES,
    SOURCES,
    Array,
    FloatLanes,
    Ints,
    absolute,
    floats,
    highest,
    ints,
    select,
    to_float,
    truncate,
)
from lorafold.export.quant.kernels.memory import load, store, store_bytes, store_half, store_halves
from lorafold.export.quant.kernels.rounding import to_half

Q8_VALUES, Q8_BYTES = 32, 34


def f16(x: Array, importance: None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """F16: the nearest binary16, ties to even."""
    whole = x.size - x.size % LANES
    for i in range(0, whole, LANES):
        store_halves(out, 2 * i, to_half(load(x, i)))
    rest = np.zeros(LANES, np.float32)
    halves = np.empty(LANES, np.int32)
    for i in range(x.size - whole):
        rest[i] = x[whole + i]
    store(halves, 0, to_half(load(rest, 0)))
    for i in range(x.size - whole):
        store_half(out, 2 * (whole + i), halves[i])


@njit
def round_away(value: FloatLanes) -> Ints:
    """The nearest integers, ties away from zero, as C's `roundf`; for magnitudes below 2^31."""
    whole = truncate(value)
    fraction = value - to_float(whole)
    return whole + select(fraction >= 0.5, ints(1), ints(0)) - select(fraction <= -0.5, ints(1), ints(0))


def q8_0(x: Array, importance: None, out: Array, odd: Array, sources: int = SOURCES) -> None:
    """Q8_0: 32 values in steps of a 127th of the largest."""
    blocks = x.size // Q8_VALUES
    largest = np.empty(LANES, np.float32)
    inverses = np.empty(LANES, np.float32)
    halves = np.empty(LANES, np.int32)
    for group in range(0, blocks, LANES):
        used = min(LANES, blocks - group)
        for lane in range(used):
            at = (group + lane) * Q8_VALUES
            first, second = absolute(load(x, at)), absolute(load(x, at + LANES))
            largest[lane] = highest(select(first > second, first, second))
        for lane in range(used, LANES):
            largest[lane] = 0.0
        d = load(largest, 0) / 127.0
        # A subnormal d has no finite inverse: what C then computes is undefined, so ggml itself is asked.
        inverse = select(d != 0.0, 1.0 / d, 0.0)
        store(inverses, 0, inverse)
        store(halves, 0, to_half(d))
        for lane in range(used):
            at, to = (group + lane) * Q8_VALUES, (group + lane) * Q8_BYTES
            odd[group + lane] = not inverses[lane] < np.inf
            store_half(out, to, halves[lane])
            scale = floats(inverses[lane])
            for part in range(0, Q8_VALUES, LANES):
                store_bytes(out, to + 2 + part, round_away(load(x, at + part) * scale))
