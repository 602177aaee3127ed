"""Finds out whether weights lie on a grid: each block of a row holds few different values.

Weights that were once in 4 bit (dequantized NF4, MXFP4, a quantized file, quantization-aware training) are
not spread like trained ones: a block takes at most 16 values, however they are stored now. A type whose own
grid is another, or the same at the same place, can round a small change away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from lorafold.export.fold.changes import Block

_LEVELS = (4, 8, 16, 32, 256)  # of 2, 3, 4, 5 and 8 bits
_ROWS = 2  # of each tensor
# Different values beside all values, zeros apart: trained weights in 16 bits come to 0.95 and more in blocks
# of up to 256; 16 levels come to about 0.55 in blocks of 16, 32 levels to 0.6 in blocks of 32.
_FEW = 0.7
_FEW_OF_16 = 0.65
# So many levels can only be told from chance in blocks of this width or wider.
_NARROWEST = {4: 16, 8: 16, 16: 16, 32: 32, 256: 512}
_WIDTHS = (256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Levels:
    """A grid that some rows lie on.

    Attributes:
        bits: enough to number the values of one block.
        width: values in a block; 0 if the whole row is one.
        kind: "MXFP4" if the values are those of E2M1 times a power of two, else "".
    """

    bits: int
    width: int
    kind: str = ""

    def __str__(self) -> str:
        blocks = f"blocks of {self.width}" if self.width else "whole rows"
        return f"{self.bits} bits in {blocks}" + (f", {self.kind}" if self.kind else "")


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of a base.

    Attributes:
        levels: what most of the tensors lie on.
        tensors: how many tensors lie on a grid.
        of: how many were looked at.
    """

    levels: Levels
    tensors: int
    of: int


class GridSearch:
    """Looks at a few rows of each tensor."""

    def __init__(self) -> None:
        self._seen: dict[str, Levels | None] = {}

    def add(self, name: str, rows: Block) -> None:
        """Look at a tensor's first rows that are measured; vectors are passed over."""
        if len(rows) > 1:
            self._seen[name] = find_levels(rows[:_ROWS])

    def found(self) -> Grid | None:
        """The grid of the base: that of most of its tensors; None if most lie on none."""
        counts = Counter(levels for levels in self._seen.values() if levels is not None)
        on_one = sum(counts.values())
        if not counts or 2 * on_one < len(self._seen):
            return None
        return Grid(counts.most_common(1)[0][0], on_one, len(self._seen))


def find_levels(rows: Block) -> Levels | None:
    """The grid that rows lie on: the fewest levels, and of these the widest blocks.

    Args:
        rows: float32 (rows, cols).

    Returns:
        None if the values differ as those of trained weights do.
    """
    cols = rows.shape[1]
    widths = [cols, *(width for width in _WIDTHS if cols % width == 0 and width < cols)]
    counted = {width: _different(rows.reshape(-1, width)) for width in widths}
    for levels in _LEVELS:
        for width in widths:
            most, share = counted[width]
            if (
                width >= _NARROWEST[levels]
                and most <= levels
                and share <= (_FEW if width > 16 else _FEW_OF_16)
            ):
                bits = levels.bit_length() - 1
                kind = "MXFP4" if bits == 4 and _is_e2m1(rows) else ""
                return Levels(bits, 0 if width == cols else width, kind)
    return None


def _different(blocks: Block) -> tuple[int, float]:
    """The most different values of a block, and how many of all values are different within their block.

    Zeros do not count, since pruned weights are full of them.
    """
    ordered = np.sort(blocks, axis=1)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    most = int(new.sum(axis=1).max())
    there = ordered != 0
    if 4 * int(there.sum()) < ordered.size:  # hardly any weights: nothing can be told
        return most, 1.0
    return most, float((new & there).sum() / there.sum())


def _is_e2m1(rows: Block) -> bool:
    """Whether every value is 1 or 1.5 times a power of two, as E2M1's with a scale that is one are."""
    mantissa = np.abs(np.frexp(rows)[0])
    return bool(np.isin(mantissa, (0.0, 0.5, 0.75)).all())
