"""Small numbers as float32: integers of a few bits, FP8, FP4, powers of two; groups that share a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""E2M1 (OCP Microscaling Formats 1.0, table 5): one sign, two exponent bits, one bit of fraction."""


def _e4m3() -> Floats:
    """OCP 8-bit floating point, E4M3: bias 7, no infinity, all ones is NaN."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


def _e5m2() -> Floats:
    """E5M2: the upper byte of an F16."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


FP8_TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
"""The 256 values of each type, by safetensors' name."""


def power_of_two(codes: NDArray[Any]) -> Floats:
    """E8M0: 2 to the power of (code - 127); 255 is NaN."""
    values = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    values[codes == 255] = np.nan
    return values


def pair_table(values: Floats, first: str) -> NDArray[np.uint64]:
    """For each byte its two values side by side, as one 64-bit number: one look-up yields both.

    Args:
        values: of the 16 codes.
        first: which half of a byte comes first, "low" or "high".
    """
    codes = np.arange(256)
    low, high = values[codes & 15], values[codes >> 4]
    pairs = (low, high) if first == "low" else (high, low)
    return np.stack(pairs, axis=1).astype(np.float32).view(np.uint64)[:, 0]


def look_up_pairs(packed: NDArray[np.uint8], table: NDArray[np.uint64]) -> Floats:
    """Bytes (rows, n) as values (rows, 2n)."""
    values: Floats = np.take(table, packed).view(np.float32)
    return values


_COUNTING = pair_table(np.arange(16, dtype=np.float32), "low")


def unpack(packed: NDArray[np.uint8], bits: int) -> Floats:
    """Unsigned integers that follow each other from the lowest bit of the first byte on, as float32.

    Args:
        packed: bytes (rows, n), n a multiple of `bits` unless that divides 8.
        bits: of one integer, 1 to 8.

    Returns:
        (rows, 8n / bits).
    """
    if bits == 8:
        whole: Floats = packed.astype(np.float32)
        return whole
    if bits == 4:
        return look_up_pairs(packed, _COUNTING)
    rows = len(packed)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts = packed[:, :, None] >> shifts & np.uint8(2**bits - 1)
        narrow: Floats = parts.astype(np.float32).reshape(rows, -1)
        return narrow
    # Eight integers lie in `bits` bytes.
    words = np.zeros((rows, packed.shape[1] // bits, 8), np.uint8)
    words[:, :, :bits] = packed.reshape(rows, -1, bits)
    shifts64 = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    codes = words.view("<u8") >> shifts64 & np.uint64(2**bits - 1)
    values: Floats = codes.astype(np.float32).reshape(rows, -1)
    return values


def multiply_groups(block: Floats, scales: Floats, width: int) -> None:
    """Multiply groups of columns, in place.

    Args:
        block: (rows, cols).
        scales: (rows, groups), or one row for all.
        width: columns of a group; the last group may have fewer.
    """
    rows, cols = block.shape
    whole = cols // width
    inside = block[:, : whole * width].reshape(rows, whole, width)
    inside *= scales[:, :whole, None]
    if whole * width < cols:
        block[:, whole * width :] *= scales[:, whole:]


def subtract_groups(block: Floats, zeros: Floats, width: int) -> None:
    """Subtract a number from each group of columns, in place; arguments as for `multiply_groups`."""
    rows, cols = block.shape
    whole = cols // width
    inside = block[:, : whole * width].reshape(rows, whole, width)
    inside -= zeros[:, :whole, None]
    if whole * width < cols:
        block[:, whole * width :] -= zeros[:, whole:]
