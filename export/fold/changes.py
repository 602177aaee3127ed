"""What an adapter does to one tensor, as steps that work on any block of its rows.

A step changes a float32 block, rows [start, start + n) of the tensor seen as 2-D, and does to every element
the same operations in the same order whatever the block, so the result depends on no blocking and no thread.
Each step has a second path, `exact`, in float64 and in plain numpy: what `verify` compares an artifact with.

PEFT's formulas (peft/tuners/lora, 0.21), for a weight W (out, in):

    LoRA    W + s · B A                        DoRA    m / ‖W + s · B A‖ · (W + s · B A), norms of rows
    bias    b + s · b_B                        (IA)³   W · l, per row, or per column of a feed-forward module
    tokens  W with some rows replaced          saved   W replaced
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import NumericError
from lorafold.stopwatch import doing
from lorafold.weights import TensorSource

Block = NDArray[np.float32]
Exact = NDArray[np.float64]
_Rows = NDArray[np.int64]

NORM_ROWS = 256
"""Rows that a pass over a whole tensor reads at once."""


class Change(Protocol):
    """One step of a fold."""

    def apply(self, block: Block, start: int) -> Block:
        """Change rows [start, start + n) and return them, in place if possible."""

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        """The same for the rows of these numbers, in float64."""


@functools.cache
def _kernel() -> Callable[[Block, Block, Block, np.float32], None]:
    """The inner loop. numba is imported, and perhaps at work for seconds, when it is first needed."""
    with doing("compile"):
        from lorafold.export.fold.kernel import compiled

        return compiled()


@dataclass(frozen=True, slots=True, eq=False)
class AddLowRank:
    """Add scale · left @ right to a range of rows.

    Args:
        left: rows [a, b) of the left factor, counted from `start`: float32 (b - a, rank), C-contiguous.
        right: the right factor: float32 (rank, cols), C-contiguous.
        scale: what their product is multiplied with, rounded to float32 before.
        start: first row of the tensor that it changes.
        stop: one past the last.
        rounded: type that the product is rounded to before it is added, "" for none. PEFT does so for
            embeddings, experts and some variants, and not for linear layers.
    """

    left: Callable[[int, int], Block]
    right: Callable[[], Block]
    scale: float
    start: int
    stop: int
    rounded: str = ""

    def part(self, offset: int, rows: int, start: int) -> AddLowRank:
        """The step that adds some rows of this product elsewhere.

        Args:
            offset: first row of the product, counted from its own `start`.
            rows: how many.
            start: row of the tensor that the first of them goes to.
        """
        left = self.left
        if offset == 0 and rows == self.stop - self.start:
            return replace(self, start=start, stop=start + rows)
        return replace(self, left=lambda a, b: left(offset + a, offset + b), start=start, stop=start + rows)

    def apply(self, block: Block, start: int) -> Block:
        first, last = max(start, self.start), min(start + len(block), self.stop)
        if first < last:
            part = block[first - start : last - start]
            left = self.left(first - self.start, last - self.start)
            product = np.zeros_like(part) if self.rounded else part
            _kernel()(product, left, self.right(), np.float32(self.scale))
            if self.rounded:
                part += round_to(self.rounded, product)
        return block

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        inside = np.flatnonzero((rows >= self.start) & (rows < self.stop))
        if inside.size:
            right = self.right().astype(np.float64)
            numbers = rows[inside] - self.start
            left = np.concatenate([self.left(int(row), int(row) + 1) for row in numbers]).astype(np.float64)
            block[inside] += self.scale * (left @ right)
        return block


@dataclass(frozen=True, slots=True, eq=False)
class AddVector:
    """Add scale · vector to a tensor of one row: the bias of lora_B goes into the base's bias."""

    vector: Callable[[], Block]
    scale: float

    def apply(self, block: Block, start: int) -> Block:
        block += self.vector() * np.float32(self.scale)
        return block

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        return block + self.scale * self.vector().astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """Take the rows from the adapter: modules_to_save, trained biases, resized embeddings.

    Args:
        source: the adapter's tensors.
        key: name of the tensor there.
        offset: its row that becomes row 0 here.
        shape: shape of the result.
    """

    source: TensorSource
    key: str
    shape: tuple[int, ...]
    offset: int = 0

    def read(self, start: int, stop: int) -> Block:
        """Rows [start, stop) of the result."""
        return self.source.rows(self.key, self.offset + start, self.offset + stop)

    def apply(self, block: Block, start: int) -> Block:
        return self.read(start, start + len(block))

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        taken = [
            self.source.rows(self.key, self.offset + int(row), self.offset + int(row) + 1) for row in rows
        ]
        return np.concatenate(taken).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class ReplaceRows:
    """Take single rows from the adapter: trained tokens.

    Args:
        source: the adapter's tensors.
        key: name of the tensor there, (len(numbers), cols).
        numbers: the tensor's row that each of its rows replaces, in any order, each once.
    """

    source: TensorSource
    key: str
    numbers: _Rows

    def apply(self, block: Block, start: int) -> Block:
        for index in np.flatnonzero((self.numbers >= start) & (self.numbers < start + len(block))):
            block[self.numbers[index] - start] = self.source.rows(self.key, int(index), int(index) + 1)[0]
        return block

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        index_of = {int(number): index for index, number in enumerate(self.numbers)}
        for position, row in enumerate(rows.tolist()):
            if row in index_of:
                block[position] = self.source.rows(self.key, index_of[row], index_of[row] + 1)[0]
        return block


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Multiply rows or columns by a vector: (IA)³.

    Args:
        vector: float32, one value for each row or for each column.
        by_row: whether row i is multiplied with value i, or column j with value j.
    """

    vector: Callable[[], Block]
    by_row: bool

    def apply(self, block: Block, start: int) -> Block:
        vector = self.vector()
        block *= vector[start : start + len(block), None] if self.by_row else vector[None, :]
        return block

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        vector = self.vector().astype(np.float64)
        return block * (vector[rows][:, None] if self.by_row else vector[None, :])


@dataclass(frozen=True, slots=True, eq=False)
class Dora:
    """Add a low-rank product, then rescale every output to its trained magnitude (arXiv:2402.09353).

    An output of the layer is a row, or a column if the weight is stored transposed (Conv1D, embeddings).
    The norm of a row is known with the row; those of columns take one pass over the tensor, made when first
    needed. Sums of squares are taken in float64; PEFT takes them in float32, so the last bit of a factor can
    differ.

    Args:
        product: the low-rank product; its rows are the outputs, if an output is a row.
        magnitude: float32, one value for each output.
        name: of the tensor, for the error.
        by_row: whether an output is a row.
        before: rows [a, b) of the tensor as it is before this step, float32.
        alone: whether blocks come as `before` gives them, so that a row's norm can be taken from the block;
            behind another adapter they do not, and the norm is still that of the base with this product.
    """

    product: AddLowRank
    magnitude: Callable[[], Block]
    name: str
    by_row: bool
    before: Callable[[int, int], Block]
    alone: bool = True
    _norms: dict[str, Exact] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def apply(self, block: Block, start: int) -> Block:
        block = self.product.apply(block, start)
        if not self.by_row:
            norms = self._column_norms("float32").astype(np.float32)
            block *= self._factors(self.magnitude(), norms)[None, :]
            return block
        zero = self.product.start
        first, last = max(start, zero), min(start + len(block), self.product.stop)
        if first < last:
            outputs = block[first - start : last - start]
            normed = outputs if self.alone else self.product.apply(self.before(first, last), first)
            squares = np.square(normed, dtype=np.float64).sum(axis=1)
            norms = np.sqrt(squares).astype(np.float32)
            outputs *= self._factors(self.magnitude()[first - zero : last - zero], norms)[:, None]
        return block

    def _factors(self, magnitude: Block, norms: Block) -> Block:
        if not norms.all():
            raise NumericError(
                f"DoRA divides by the norm of output {int(np.argmin(norms))}, which is zero",
                at=self.name,
                fix="use the base that the adapter was trained on",
            )
        return magnitude / norms

    def exact(self, block: Exact, rows: _Rows) -> Exact:
        block = self.product.exact(block, rows)
        magnitude = self.magnitude().astype(np.float64)
        if not self.by_row:
            block *= (magnitude / self._column_norms("float64"))[None, :]
            return block
        inside = np.flatnonzero((rows >= self.product.start) & (rows < self.product.stop))
        if inside.size:
            numbers = rows[inside]
            normed = block[inside]
            if not self.alone:
                base = [self.before(row, row + 1) for row in numbers.tolist()]
                normed = self.product.exact(np.concatenate(base).astype(np.float64), numbers)
            factors = magnitude[numbers - self.product.start] / np.linalg.norm(normed, axis=1)
            block[inside] *= factors[:, None]
        return block

    def _column_norms(self, precision: str) -> Exact:
        """Norms of the columns after the product was added, summed up in the order of the rows."""
        with self._lock:
            if precision not in self._norms:
                total: Exact | None = None
                for start in range(0, self.product.stop, NORM_ROWS):
                    stop = min(start + NORM_ROWS, self.product.stop)
                    block = self.before(start, stop)
                    if precision == "float32":
                        squares = np.square(self.product.apply(block, start), dtype=np.float64)
                    else:
                        squares = np.square(
                            self.product.exact(block.astype(np.float64), np.arange(start, stop))
                        )
                    total = squares.sum(axis=0) + (0.0 if total is None else total)
                self._norms[precision] = np.sqrt(np.asarray(total))
            return self._norms[precision]


def read_through(
    base: TensorSource, name: str, changes: Sequence[Change], start: int, stop: int, rounding: str = ""
) -> Block:
    """Rows [start, stop) of a base tensor after these steps.

    Args:
        base: where the tensor lies; it is not read if the first step replaces it.
        name: the tensor.
        changes: the steps, in order.
        start: first row.
        stop: one past the last.
        rounding: the type to round to after each step, "" for none.
    """
    if changes and isinstance(changes[0], Replace):
        block = round_to(rounding, changes[0].read(start, stop))
        changes = changes[1:]
    else:
        block = base.rows(name, start, stop)
    for change in changes:
        block = round_to(rounding, change.apply(block, start))
    return block


def round_to(dtype: str, block: Block) -> Block:
    """Round a float32 block to what a type can hold, half to even, in place.

    Args:
        dtype: "BF16", "F16", or anything wider, which changes nothing.
        block: float32, finite; changed.
    """
    if dtype == "BF16":
        bits = block.view(np.uint32)
        # Half of the 16 bits that go, less one if the last bit that stays is 0: ties go to even.
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        bits &= np.uint32(0xFFFF0000)
    elif dtype == "F16":
        with np.errstate(over="ignore"):
            np.copyto(block, block.astype(np.float16))
    return block
