"""Rounding in lanes: to the nearest integer and to 16-bit floats, bit for bit as ggml rounds.

Specification: ggml's `nearest_int` (ggml-quants.c) and IEEE 754 binary16 with ties to even.
"""
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

from numba import njit

from lorafold.export.quant.kernels.lanes import FloatLanes, Ints, absolute, bits, from_bits, ints, select

# Added to a float32 below 2^22, this pushes the fraction out of the mantissa: what stays is the nearest
# integer, ties to even.
MAGIC = 12582912.0  # 1.5 * 2^23


@njit
def nearest(value: FloatLanes) -> Ints:
    """The nearest integers; beyond 2^22, and for infinity and NaN, the same nonsense that ggml computes."""
    return (bits(value + MAGIC) & 0x007FFFFF) - 0x00400000


@njit
def clamp(value: FloatLanes, low: float, high: float) -> FloatLanes:
    """`value` within [low, high]; a NaN becomes `low`."""
    value = select(value > low, value, low)
    return select(value < high, value, high)


@njit
def clamp_ints(value: Ints, low: int, high: int) -> Ints:
    """`value` within [low, high]."""
    value = select(value > low, value, low)
    return select(value < high, value, high)


@njit
def to_half(value: FloatLanes) -> Ints:
    """The bits of the nearest binary16, ties to even, in the low 16 of each lane."""
    sign = (bits(value) >> 16) & 0x8000
    magnitude = bits(absolute(value))
    # Below 2^-14 binary16 counts in steps of 2^-24, which is also the step of float32 at 0.5, so
    # adding 0.5 rounds.
    small = bits(from_bits(magnitude) + 0.5) - 0x3F000000
    # Above, 13 bits of the mantissa are dropped and the exponent's bias shrinks by 127 - 15.
    normal = ((magnitude + 0x0FFF + ((magnitude >> 13) & 1)) >> 13) - (112 << 10)
    half = select(magnitude < 0x38800000, small, normal)
    half = select(magnitude >= 0x477FF000, ints(0x7C00), half)  # 65520 and more round to infinity
    half = select(magnitude > 0x7F800000, ints(0x7E00), half)
    return half | sign


@njit
def from_half(half: Ints) -> FloatLanes:
    """The float32 values of binary16 bits."""
    magnitude = half & 0x7FFF
    # Moved to float32's fields the exponent is 127 - 15 too low; the product is exact, subnormals included.
    value = bits(from_bits(magnitude << 13) * 5.192296858534828e33)  # 2^112
    value = select(magnitude >= 0x7C00, (magnitude << 13) | 0x7F800000, value)
    return from_bits(value | ((half & 0x8000) << 16))
