"""Stochastic rounding to 16 bit: up or down at random, so that the expected value is the number itself.

Rounding to the nearest lets a change vanish that is smaller than half a step: each weight goes back to where
the base's is. At random, a change of a tenth of a step moves one weight in ten by a step, and along its own
direction all of it survives, at the price of a larger error.

The random numbers are those of a counter (Philox 4x64, Salmon et al. 2011), keyed by a seed and the tensor's
name and counted by row: the same whatever the blocks and threads.
"""

from __future__ import annotations

import zlib

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from lorafold.export.fold.changes import Block

_PER_COUNT = 16  # numbers of 16 bits that one step of the counter gives
_F16_DIGITS, _F16_LOWEST = 11, -24  # binary digits of a significand; exponent of the smallest step


def round_at_random(block: Block, dtype: str, name: str, start: int, seed: int) -> Block:
    """Round rows to what a type can hold, in place.

    Args:
        block: float32 (rows, cols), finite; changed.
        dtype: "BF16" or "F16"; anything wider changes nothing.
        name: the tensor.
        start: its row with which the block begins.
        seed: another one gives other numbers.
    """
    if dtype not in ("BF16", "F16"):
        return block
    rows, cols = block.shape
    counts = -(-cols // _PER_COUNT)  # of one row
    key = np.array([seed, zlib.crc32(name.encode())], np.uint64)
    raw = np.random.Philox(key=key, counter=start * counts).random_raw(rows * counts * 4)
    dice = raw.astype("<u8").view("<u2").reshape(rows, -1)[:, :cols]
    if dtype == "BF16":
        # The 16 bits that go are the part of a step: added to as many random ones they carry as often.
        bits = block.view(np.uint32)
        bits += dice
        bits &= np.uint32(0xFFFF0000)
        return block
    exponent = np.maximum(np.frexp(block)[1] - _F16_DIGITS, _F16_LOWEST)
    steps = np.ldexp(block.astype(np.float64), -exponent)
    np.copyto(block, np.ldexp(np.floor(steps + dice / 65536.0), exponent))
    return block


def round_rows_at_random(
    rows: Block, kind: GGMLQuantizationType, name: str, numbers: NDArray[np.int64], *, seed: int
) -> Block:
    """The same for chosen rows.

    Args:
        rows: float32 (len(numbers), cols), finite; changed.
        kind: the type that they are rounded to.
        name: the tensor.
        numbers: of the rows in it.
        seed: another one gives other numbers.
    """
    for place, number in enumerate(numbers):
        round_at_random(rows[place : place + 1], kind.name, name, int(number), seed)
    return rows
