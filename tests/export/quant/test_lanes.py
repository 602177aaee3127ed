"""The lanes that kernels are written in: each operation against numpy, lane by lane."""

from __future__ import annotations

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from lorafold.export.quant.kernels import iq4, lanes, memory, plain, rounding  # noqa: E402

N = lanes.LANES
f32 = np.float32


def pad(values: np.ndarray) -> np.ndarray:
    """To a whole number of vectors."""
    return np.concatenate([values, np.zeros(-len(values) % N, values.dtype)])


@numba.njit
def arithmetic(a, b, floats, ints):
    x, y = memory.load(a, 0), memory.load(b, 0)
    results = (
        x + y,
        x - y,
        x * y,
        x / y,
        2.0 - x,
        lanes.sqrt(lanes.absolute(x)),
        lanes.select(x < y, x, 7.0),
    )
    for i, result in enumerate(results):
        memory.store(floats, i * N, result)
    i, j = lanes.bits(x), lanes.bits(y)
    for k, result in enumerate((i + j, i - j, i & j, i | j, i << 3, i >> 3, lanes.select(i != j, i, 1))):
        memory.store(ints, k * N, result)


def test_arithmetic_is_numpys() -> None:
    random = np.random.default_rng(1)
    x, y = random.standard_normal((2, N)).astype(f32)
    y[3] = x[3]
    floats, ints = np.zeros((7, N), f32), np.zeros((7, N), np.int32)
    arithmetic(x, y, floats.reshape(-1), ints.reshape(-1))
    np.testing.assert_array_equal(
        floats, [x + y, x - y, x * y, x / y, 2 - x, np.sqrt(np.abs(x)), np.where(x < y, x, f32(7))]
    )
    i, j = x.view(np.int32), y.view(np.int32)
    np.testing.assert_array_equal(ints, [i + j, i - j, i & j, i | j, i << 3, i >> 3, np.where(i != j, i, 1)])


@numba.njit
def comparisons(a, b, out):
    x, y = memory.load(a, 0), memory.load(b, 0)
    masks = (x < y, x <= y, x > y, x >= y, x == y, x != y, lanes.flip(x < y), (x < y) | (x > y))
    for i, mask in enumerate(masks):
        memory.store(out, i * N, lanes.select(mask, lanes.ints(1), lanes.ints(0)))
    return lanes.any_lane(x < y), lanes.any_lane(x < -100.0)


def test_comparisons_are_cs_with_nan_too() -> None:
    x = pad(np.array([1, 2, 2, np.nan, np.nan, np.inf, -5, 0], f32))
    y = pad(np.array([2, 2, 1, 1, np.nan, np.inf, np.inf, -0.0], f32))
    out = np.zeros((8, N), np.int32)
    some, none = comparisons(x, y, out.reshape(-1))
    assert some and not none
    np.testing.assert_array_equal(
        out, [x < y, x <= y, x > y, x >= y, x == y, x != y, ~(x < y), (x < y) | (x > y)]
    )


@numba.njit
def contraction(a, b, c, out):
    memory.store(out, 0, memory.load(a, 0) * memory.load(b, 0) + memory.load(c, 0))


def test_products_are_rounded_before_they_are_added() -> None:
    # (1 + e)^2 - (1 + 2e) is e^2 if fused, and 0 if the product is rounded first.
    one = np.full(N, 1 + 2.0**-12 + 2.0**-23, f32)
    out = np.ones(N, f32)
    contraction(one, one, -(one * one), out)
    assert not out.any()


@numba.njit
def turn(source, stride, target):
    memory.transpose(source, 5, stride, target)
    return lanes.highest(memory.load(source, 3))


def test_transpose_and_highest() -> None:
    source = np.random.default_rng(2).standard_normal(40 * N).astype(f32)
    target = np.zeros((N, N), f32)
    assert turn(source, 37, target.reshape(-1)) == source[3 : 3 + N].max()
    np.testing.assert_array_equal(target.T, [source[5 + 37 * row :][:N] for row in range(N)])


@numba.njit
def halves_there_and_back(halves, values, again):
    for i in range(0, halves.size, N):
        value = rounding.from_half(memory.load(halves, i))
        memory.store(values, i, value)
        memory.store(again, i, rounding.to_half(value))


def test_every_half() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    values, again = np.zeros(1 << 16, f32), np.zeros(1 << 16, np.int32)
    halves_there_and_back(halves.astype(np.int32), values, again)
    np.testing.assert_array_equal(values, halves.view(np.float16).astype(f32))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(again[number], halves[number])
    assert (again[~number] & 0x7FFF == 0x7E00).all()


@numba.njit
def round_all(values, even, near, away):
    for i in range(0, values.size, N):
        x = memory.load(values, i)
        memory.store(even, i, lanes.round_even(x))
        memory.store(near, i, rounding.nearest(x))
        memory.store(away, i, plain.round_away(x))


def test_roundings() -> None:
    ties = np.arange(-200, 200, dtype=f32) / 2
    values = pad(np.concatenate([ties, np.nextafter(ties, f32(999)), np.nextafter(ties, f32(-999))]))
    even, near, away = np.zeros_like(values), np.zeros(values.size, np.int32), np.zeros(values.size, np.int32)
    round_all(values, even, near, away)
    np.testing.assert_array_equal(even, np.rint(values))
    np.testing.assert_array_equal(near, np.rint(values))
    # C's roundf; in float64 adding a half is exact here.
    np.testing.assert_array_equal(away, np.sign(values) * np.floor(np.abs(values.astype(np.float64)) + 0.5))


@numba.njit
def choose_all(values, levels, chosen):
    for i in range(0, values.size, N):
        x = memory.load(values, i)
        memory.store(levels, i, iq4.nearest_level(x))
        memory.store(chosen, i, iq4.nearest_value(x))


def test_nearest_of_the_table_around_every_tie() -> None:
    ties = np.array(iq4.TIES, f32)
    near = [ties, np.array(iq4.VALUES, f32)]
    for towards in (999, -999):
        step = ties
        for _ in range(3):
            step = np.nextafter(step, f32(towards))
            near.append(step)
    values = pad(np.concatenate([*near, np.linspace(-140, 140, 999, dtype=f32)]))
    levels, chosen = np.zeros(values.size, np.int32), np.zeros(values.size, f32)
    choose_all(values, levels, chosen)
    table = np.array(iq4.VALUES, f32)
    # ggml: between two neighbours, the lower one only if it is strictly nearer, distances in float32.
    upper = np.clip(np.searchsorted(table, values, side="right"), 1, 15)
    lower_is_nearer = values - table[upper - 1] < table[upper] - values
    expected = np.where(values <= table[0], 0, np.where(lower_is_nearer, upper - 1, upper))
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_array_equal(chosen, table[expected])
