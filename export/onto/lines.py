"""Lines of a checkpoint: what a row of a GGUF can be made of, numbered through.

A line is a row of a tensor, or, of a tensor that is stored transposed in the GGUF, a column of some of its
rows (of all of them, of one expert's, of one head's):

    rows [start, stop) of a tensor       a strip of rows:    stop - start lines, each as long as a row
                                         a strip of columns: as many lines as columns, each stop - start long
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NONE = np.uint32(0xFFFFFFFF)
"""No line: a row of the GGUF that keeps its own values."""

_GAP = 4
"""Rows that are read without need where that saves a read of its own."""

READ_NUMBERS = 1 << 20
"""About so many numbers are read at once for a strip of columns."""

_Reader = Callable[[str, int, int], NDArray[Any]]
"""Rows [start, stop) of a tensor: (stop - start, cols)."""
Numbers = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Strip:
    """Lines that belong together; see the module's head.

    Attributes:
        tensor: name in the checkpoint.
        start: first row.
        stop: one past the last row.
        cols: columns of the tensor.
        columns: whether the lines are columns.
        first: number of its first line.
    """

    tensor: str
    start: int
    stop: int
    cols: int
    columns: bool
    first: int

    @property
    def count(self) -> int:
        """How many lines."""
        return self.cols if self.columns else self.stop - self.start

    @property
    def length(self) -> int:
        """Numbers in a line."""
        return self.stop - self.start if self.columns else self.cols


class LineTable:
    """All strips, and the numbers of their lines: four bytes name a line of any of them."""

    def __init__(self) -> None:
        self.strips: list[Strip] = []
        self.total = 0
        self._firsts: list[int] = []
        self._sorted = np.zeros(0, np.int64)

    def add(self, tensor: str, start: int, stop: int, cols: int, *, columns: bool) -> Strip:
        """Number the lines of one more strip."""
        strip = Strip(tensor, start, stop, cols, columns, self.total)
        self.strips.append(strip)
        self.total += strip.count
        assert self.total < int(NONE)
        self._firsts.append(strip.first)
        return strip

    def owners(self, numbers: Numbers) -> NDArray[np.int64]:
        """Index of the strip of each line."""
        if len(self._sorted) < len(self._firsts):
            self._sorted = np.array(self._firsts)
        return np.searchsorted(self._sorted, numbers, side="right") - 1

    def strips_of(self, numbers: Numbers) -> list[Strip]:
        """The strips that these lines belong to, each once; NONE belongs to none."""
        real = numbers[numbers != NONE] if (numbers == NONE).any() else numbers
        if not real.size:
            return []
        first, last = self.owners(np.array([real.min(), real.max()])).tolist()
        if first == last:
            return [self.strips[first]]
        return [self.strips[index] for index in np.unique(self.owners(real)).tolist()]

    def as_rows(self, numbers: Numbers) -> tuple[str, int, int] | None:
        """Lines that are rows [start, stop) of one tensor, in order: tensor, start and stop; else None."""
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first + 1 != len(numbers) or not (numbers[1:] > numbers[:-1]).all():
            return None
        ends = self.owners(numbers[[0, -1]])
        strip = self.strips[int(ends[0])]
        if ends[0] != ends[1] or strip.columns:
            return None
        return strip.tensor, first - strip.first + strip.start, last - strip.first + strip.start + 1

    def gather(self, read: _Reader, numbers: Numbers, out: NDArray[Any]) -> None:
        """Read lines, in any order.

        Args:
            read: reads rows of a tensor.
            numbers: the lines; all of one length.
            out: (len(numbers), length), of the reader's type.
        """
        if (whole := self.as_rows(numbers)) is not None:
            out[:] = read(*whole)
            return
        owners = self.owners(numbers)
        for index in np.unique(owners).tolist():
            strip = self.strips[index]
            at = np.flatnonzero(owners == index)
            local = numbers[at].astype(np.int64) - strip.first
            if strip.columns:
                step = max(READ_NUMBERS // strip.cols, 1)
                for start in range(strip.start, strip.stop, step):
                    stop = min(start + step, strip.stop)
                    part = read(strip.tensor, start, stop)[:, local]
                    out[at, start - strip.start : stop - strip.start] = part.T
            else:
                for start, stop, inside in runs(local + strip.start):
                    rows = read(strip.tensor, start, stop)
                    out[at[inside]] = rows[local[inside] + strip.start - start]


def runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Rows in any order, as ranges [start, stop) to read, and which of the given ones lie in each."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    cuts = np.flatnonzero(np.diff(ordered) > _GAP) + 1
    for part in np.split(order, cuts):
        yield int(rows[part[0]]), int(rows[part[-1]]) + 1, part
