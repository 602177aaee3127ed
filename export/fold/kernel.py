"""The inner loop of the fold: block += scale · left @ right, in float32, with a fixed order of operations.

A BLAS library may add up in any order, and the order changes with the shape of the block: with OpenBLAS the
last bit of a row differs when it is folded alone and among others. Here every element is one chain of fused
multiply-adds over the rank, first to last, whatever the block, the thread or the machine's vector width:

    acc = fma(left[i, k], right[k, j], acc)   for k = 0 .. rank - 1, from acc = 0
    block[i, j] = block[i, j] + acc * scale   (two roundings)

That is also what torch's matrix product behind PEFT's merge computes on x86 for ranks up to 192, seen with
torch 2.13 (MKL cuts longer sums into parts), so the float32 results agree with PEFT's to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray

_Block = NDArray[np.float32]

TILE = 1024
"""Columns that are summed together: the accumulators, 4 KiB, stay in the first-level cache."""


@intrinsic  # type: ignore[untyped-decorator]
def _fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with a single rounding: LLVM's `llvm.fma`, which is vectorized."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return numba.float32(numba.float32, numba.float32, numba.float32), generate


@functools.cache
def compiled() -> Callable[[_Block, _Block, _Block, np.float32], None]:
    """The machine code: from numba's cache beside this module, or in the user's cache folder, or made now.

    Returns:
        A function of a block, float32 (rows, cols), which it adds scale · left @ right to in place; left,
        float32 (rows, rank); right, float32 (rank, cols); and scale. All C-contiguous.
    """
    one = np.zeros((1, 1), np.float32)
    try:
        kernel: Callable[..., None] = numba.njit(nogil=True, cache=True)(_add_low_rank)
        kernel(one, one, one, np.float32(0))
    except Exception:
        # No folder to cache in, a full disk, a broken cache file: compile for this process alone.
        kernel = numba.njit(nogil=True)(_add_low_rank)
        kernel(one, one, one, np.float32(0))
    return kernel


def _add_low_rank(block: Any, left: Any, right: Any, scale: Any) -> None:
    rows, cols = block.shape
    rank = left.shape[1]
    whole = rank - rank % 4
    buffer = np.empty((2, TILE), np.float32)
    for first in range(0, cols, TILE):
        # One-dimensional views, indexed from 0: only then does LLVM see that no index is negative.
        last = min(first + TILE, cols)
        width = last - first
        acc, acc_2 = buffer[0, :width], buffer[1, :width]
        # Two rows, and four steps of both chains, for each load of `right` and each store of an accumulator.
        for i in range(0, rows, 2):
            i_2 = min(i + 1, rows - 1)  # a last odd row is paired with itself
            for j in range(width):
                acc[j] = np.float32(0.0)
                acc_2[j] = np.float32(0.0)
            for k in range(0, whole, 4):
                a, b, c, d = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
                e, f, g, h = left[i_2, k], left[i_2, k + 1], left[i_2, k + 2], left[i_2, k + 3]
                row, row_1 = right[k, first:last], right[k + 1, first:last]
                row_2, row_3 = right[k + 2, first:last], right[k + 3, first:last]
                for j in range(width):
                    w, x, y, z = row[j], row_1[j], row_2[j], row_3[j]
                    acc[j] = _fma(d, z, _fma(c, y, _fma(b, x, _fma(a, w, acc[j]))))
                    acc_2[j] = _fma(h, z, _fma(g, y, _fma(f, x, _fma(e, w, acc_2[j]))))
            for k in range(whole, rank):
                a, e, row = left[i, k], left[i_2, k], right[k, first:last]
                for j in range(width):
                    acc[j] = _fma(a, row[j], acc[j])
                    acc_2[j] = _fma(e, row[j], acc_2[j])
            out = block[i, first:last]
            for j in range(width):
                out[j] += acc[j] * scale
            if i_2 != i:
                out = block[i_2, first:last]
                for j in range(width):
                    out[j] += acc_2[j] * scale
