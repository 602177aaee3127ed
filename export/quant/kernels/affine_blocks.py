"""The bytes of Q4_K, Q5_K and Q2_K blocks: final levels with the scales that the file holds, and their
packing.

Scales and minimums come in as the search found them, the bytes of one super-block go out. Specification:
ggml-common.h; d and dmin are little-endian halves:

    Q4_K 144 bytes: d, dmin, 8 x (6-bit scale, 6-bit minimum) in 12 bytes, qs[128]
    Q5_K 176 bytes: d, dmin, the same 12 bytes, qh[32], qs[128]
    Q2_K  84 bytes: 16 x (4-bit scale, 4-bit minimum) in 16 bytes, qs[64], d, dmin
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from typing import Any

from numba import njit

from lorafold.export.quant.kernels.lanes import LANES, Array, Ints, ints
from lorafold.export.quant.kernels.memory import load, store_bytes
from lorafold.export.quant.kernels.rounding import clamp_ints, nearest
from lorafold.export.quant.kernels.tiles import store_half


def levels_of(count: int, top: int) -> Any:
    """Compile the final levels of 16 consecutive values, with the scale and minimum that the file holds."""

    @njit
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
