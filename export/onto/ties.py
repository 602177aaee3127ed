"""Rows that fit several lines: what tells them apart when their numbers do not.

Equal lines are rare and known: tokens that were never trained, layers and experts that were copied from one
another before the training. The rows around one show where it stands; else names do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafold.export.onto.lines import NONE, Numbers

MOST_PAIRS = 20_000_000
LONGEST_PERIOD = 4096
"""Rows of one head at most."""


def predicted(lines: Numbers, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """What the settled rows of a tensor say about others.

    Args:
        lines: of all rows of the tensor, NONE where they are not settled.
        rows: rows to guess.

    Returns:
        A guess for each, to be compared: by the distance between row and line that both neighbours have, else
        by a pattern that repeats with every head. -1 becomes a number that is no line. None if nothing is
        settled.
    """
    known = np.flatnonzero(lines != NONE)
    if not known.size:
        return None
    shift = lines[known].astype(np.int64) - known
    after = np.searchsorted(known, rows)
    before = np.clip(after - 1, 0, known.size - 1)
    after = np.clip(after, 0, known.size - 1)
    guess = np.where(shift[before] == shift[after], rows + shift[after], int(NONE))
    if (guess == int(NONE)).any() and (period := _period(lines, known)) is not None:
        pattern = np.full(period, -1, np.int64)
        pattern[known % period] = lines[known].astype(np.int64) - known // period * period
        told = np.where(
            pattern[rows % period] >= 0, pattern[rows % period] + rows // period * period, int(NONE)
        )
        guess = np.where(guess == int(NONE), told, guess)
    return guess


def _period(lines: Numbers, known: NDArray[np.int64]) -> int | None:
    """The shortest period of a permutation that repeats along the rows."""
    for period in range(2, min(LONGEST_PERIOD, len(lines) // 2) + 1):
        if len(lines) % period:
            continue
        offset = lines[known].astype(np.int64) - known // period * period
        first = np.full(period, np.iinfo(np.int64).max)
        np.minimum.at(first, known % period, offset)
        if (offset == first[known % period]).all():
            return period
    return None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows with each of their candidates.

    Attributes:
        rows: the row of each pair.
        numbers: the line of each pair.
    """

    rows: NDArray[np.int64]
    numbers: Numbers

    @classmethod
    def of(
        cls, rows: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64], numbers: Numbers
    ) -> Pairs | None:
        """Every row with its candidates `numbers[low:high]`; None if there are too many to look through."""
        counts = high - low
        total = int(counts.sum())
        if total > MOST_PAIRS:
            return None
        starts = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return cls(np.repeat(rows, counts), numbers[starts + np.arange(total)])

    def keep(self, fits: NDArray[np.bool_]) -> Pairs:
        """The pairs that fit; all of a row for which none does."""
        unique, place = np.unique(self.rows, return_inverse=True)
        some = np.zeros(len(unique), np.bool_)
        some[place[fits]] = True
        kept = fits | ~some[place]
        return Pairs(self.rows[kept], self.numbers[kept])

    def single(self) -> tuple[NDArray[np.int64], Numbers]:
        """Rows with one candidate left, and that."""
        unique, first, counts = np.unique(self.rows, return_index=True, return_counts=True)
        alone = counts == 1
        return unique[alone], self.numbers[first[alone]]
