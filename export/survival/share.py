"""How much of a change survives a rounding, from sums over rows.

W is a tensor of the base, Δ what the adapters add to it, Q the rounding to a type (quantized and expanded
again). Two figures tell what becomes of Δ:

    share  ⟨Q(W + Δ) - Q(W), Δ⟩ / ⟨Δ, Δ⟩     the part of the change that is still there; 1 is all of it
    error  ‖Q(W + Δ) - (W + Δ)‖ / ‖Δ‖        the rounding error beside the change

An error many times the change is usual and does little harm: it points in no direction. A share below 1 means
that the type rounds the tuned weights back to where the base's are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.changes import Block

Sums = NDArray[np.float64]

ENOUGH = 0.9  # of a change; what `--keep-delta` is suggested with


def distance(share: float) -> float:
    """How far a share is from all of the change: too large a share is as wrong as one that is too small."""
    return abs(1 - share)


def is_off(share: float, uncertainty: float, keep: float = ENOUGH) -> bool:
    """Whether a tensor keeps too little of its change, or too much, and not by the chance of the sample."""
    return distance(share) - 2 * uncertainty > 1 - keep


@dataclass(frozen=True, slots=True)
class Survival:
    """What is left of the change to one tensor in one type.

    Attributes:
        tensor: its name in the file.
        type: what it is rounded to.
        share: the part of the change that survives.
        uncertainty: standard error of `share` from the sampling of rows; 0 if all rows were measured.
        error: size of the rounding error beside that of the change.
        rows: rows that were measured.
        of: rows of the tensor.
        change: ⟨Δ, Δ⟩ of the whole tensor, extrapolated from the measured rows.
    """

    tensor: str
    type: str
    share: float
    uncertainty: float
    error: float
    rows: int
    of: int
    change: float

    @property
    def exact(self) -> bool:
        """Whether every row was measured."""
        return self.rows == self.of


@dataclass(slots=True)
class Tally:
    """Sums for each measured row of one tensor in one type; rows may come in any order, from any thread.

    Args:
        count: how many rows will be measured.
    """

    count: int
    kept: Sums = field(init=False)
    size: Sums = field(init=False)
    lost: Sums = field(init=False)

    def __post_init__(self) -> None:
        self.kept, self.size, self.lost = np.zeros((3, self.count))

    def add(self, at: slice, base: Block, tuned: Block, rounded_base: Block, rounded: Block) -> None:
        """Enter rows.

        Args:
            at: their places among the measured rows.
            base: W, (rows, cols).
            tuned: W + Δ.
            rounded_base: Q(W).
            rounded: Q(W + Δ).
        """
        change = tuned - base
        self.size[at] = _dot(change, change)
        self.kept[at] = _dot(rounded - rounded_base, change)
        error = rounded - tuned
        self.lost[at] = _dot(error, error)

    def survival(self, tensor: str, type: str, of: int) -> Survival | None:
        """The figures; None if the adapters change nothing in these rows.

        Args:
            tensor: its name.
            type: what it was rounded to.
            of: how many rows the tensor has.
        """
        size = float(self.size.sum())
        if not size:
            return None
        share = float(self.kept.sum()) / size
        return Survival(
            tensor=tensor,
            type=type,
            share=share,
            uncertainty=self._uncertainty(share, size, of),
            error=math.sqrt(float(self.lost.sum()) / size),
            rows=self.count,
            of=of,
            change=size * of / self.count,
        )

    def _uncertainty(self, share: float, size: float, of: int) -> float:
        """The standard error of a ratio of two sums over n of N rows (Cochran, Sampling Techniques, 2.11)."""
        if self.count == of:
            return 0.0
        if self.count < 2:
            return math.inf
        residual = float(np.square(self.kept - share * self.size).sum())
        spread = self.count / (self.count - 1) * (1 - self.count / of) * residual
        return math.sqrt(spread) / size


@dataclass(frozen=True, slots=True)
class Whole:
    """Several tensors taken together.

    Attributes:
        share: the part of their common change that survives.
        uncertainty: its standard error.
        error: size of their rounding error beside that of their change.
        count: how many tensors.
        exact: whether every row of all was measured.
    """

    share: float
    uncertainty: float
    error: float
    count: int
    exact: bool


def together(found: Sequence[Survival]) -> Whole | None:
    """The figures of several tensors as one: each counts by the size of its change; None for none."""
    total = sum(each.change for each in found)
    if not total:
        return None
    parts = [(each.change / total, each) for each in found]
    return Whole(
        share=sum(part * each.share for part, each in parts),
        uncertainty=math.sqrt(sum((part * each.uncertainty) ** 2 for part, each in parts)),
        error=math.sqrt(sum(part * each.error**2 for part, each in parts)),
        count=len(found),
        exact=all(each.exact for each in found),
    )


def is_kept(share: float, keep: float) -> bool:
    """Whether enough of a change survives: at least `keep` of it, and not as much too much.

    On a grid the nearest levels of another type may also be too far: then a file holds more than the change.
    """
    return keep <= share <= 2 - keep


def _dot(a: Block, b: Block) -> Sums:
    sums: Sums = (a * b).sum(axis=1, dtype=np.float64)
    return sums
