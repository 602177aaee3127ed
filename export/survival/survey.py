"""Measures what survives in planned files: on a sample before anything is written, or while it is written.

The writer shows each block that it has quantized; a few rows of it are quantized once more without the
adapters, and both are expanded again. Rows are chosen before, and their figures added up in their order, so
that the result depends on no thread and no size of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import NumericError
from lorafold.export.fold.changes import Block
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.rows import column_weights
from lorafold.export.gguf.writer import Seen, block_rows, largest_block
from lorafold.export.quant import ggml
from lorafold.export.quant.mixture import Importance
from lorafold.export.quant.quantize import quantize
from lorafold.export.survival.grid import Grid, GridSearch
from lorafold.export.survival.rows import RowNumbers, TunedSource, is_changed, read_rows, sample_rows
from lorafold.export.survival.share import Survival, Tally
from lorafold.progress import Progress, silent
from lorafold.stopwatch import doing
from lorafold.weights import TensorSource

TypedModel = Sequence[tuple[MappedTensor, Type]]
# Rows, their type, their tensor and their numbers in it -> the rows.
RoundsRows = Callable[[Block, Type, str, RowNumbers], Block]

# In the pass: this part of the touched weights, divided evenly over the tensors. Twice as much would cost a
# tenth of the processor's time for a 0.5B model (`tools/bench_export.py --survival`).
_SHARE = 1 / 128
_LEAST = 2_000_000  # weights that are measured in any case: small models whole
_SEARCHED = 64  # tensors that are searched for a grid
PLANNED = 32_768  # weights of each tensor for a plan


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tensor and the rows of it that are measured."""

    tensor: MappedTensor
    rows: RowNumbers

    def within(self, start: int, stop: int) -> slice:
        """The places of those of its rows that lie in [start, stop)."""
        first, last = np.searchsorted(self.rows, (start, stop))
        return slice(int(first), int(last))


@dataclass(frozen=True, slots=True)
class _Look:
    """A block's measured rows, waiting for what became of them.

    Attributes:
        tallies: where the figures go, by type.
        at: the rows' places among the tensor's measured rows.
        picked: the rows' places in the block.
        base: W of these rows.
        tuned: W + Δ.
        weights: the importance of the columns, or None.
    """

    tallies: Mapping[Type, Tally]
    at: slice
    picked: RowNumbers
    base: Block
    tuned: Block
    weights: NDArray[np.float32] | None

    def see(self, kind: Type, rows: NDArray[np.uint8]) -> None:
        """Take the measured ones out of the block's quantized rows."""
        with doing("survival"):
            self.enter(kind, np.ascontiguousarray(rows[self.picked]))

    def enter(self, kind: Type, rows: NDArray[np.uint8]) -> None:
        """Count the measured rows.

        Args:
            kind: the type they are written in.
            rows: they themselves, quantized: (len(picked), bytes of a row).
        """
        cols = self.base.shape[1]
        try:
            with doing("quantize"):
                quantized = quantize(self.base, kind, self.weights)
        except NumericError:  # the base's values are too large for the type: that must not end an export
            return
        rounded_base = ggml.dequantize(quantized, kind, cols)
        rounded = ggml.dequantize(rows, kind, cols)
        self.tallies[kind].add(self.at, self.base, self.tuned, rounded_base, rounded)


class Survey:
    """What survives in some models that are made of the same tensors.

    Args:
        models: tensors and types of each model, by its name.
        source: what the models are made from.
        exact: the same if a rounding on the way (`--rounding peft`) is left out; the change is taken from it.
        imatrix: the importance weights of the export.
        weights: how many weights of each tensor are measured; None for as many as the pass can afford.
        rounded: what is done to sampled rows before they are quantized; None for nothing.

    Attributes:
        source: what the models are made from.
        exact: where their change is taken from, if that is another one.
        imatrix: the importance weights; to be set if they come later than the plan.
        measured: the tensors that the adapters change, with their measured rows.
        unmeasured: names of tensors that are changed and cannot be compared: the base lacks them, or has them
            in another shape.
    """

    def __init__(
        self,
        models: Mapping[str, TypedModel],
        source: TunedSource,
        *,
        exact: TunedSource | None = None,
        imatrix: Importance | None = None,
        weights: int | None = None,
        rounded: RoundsRows | None = None,
    ) -> None:
        self._models, self.source, self.exact = models, source, exact
        self._rounded = rounded
        self._base: TensorSource = source.base
        self.imatrix = imatrix
        distinct = {tensor.name: tensor for model in models.values() for tensor, _ in model}
        touched = [
            tensor
            for tensor in distinct.values()
            if any(piece.source in source.touched for piece in tensor.sources)
        ]
        changed = [tensor for tensor in touched if is_changed(tensor, source, self._base)]
        names = {tensor.name for tensor in changed}
        self.unmeasured = [tensor.name for tensor in touched if tensor.name not in names]
        if weights is None:
            total = sum(tensor.rows * tensor.cols for tensor in changed)
            weights = int(max(total * _SHARE, _LEAST)) // max(len(changed), 1)
        self.measured = {tensor.name: Chosen(tensor, sample_rows(tensor, weights)) for tensor in changed}
        self._tallies: dict[str, dict[Type, Tally]] = {name: {} for name in self.measured}
        for model in models.values():
            for tensor, kind in model:
                if tensor.name in self.measured:
                    self._tallies[tensor.name][kind] = Tally(len(self.measured[tensor.name].rows))
        matrices = [name for name, chosen in self.measured.items() if chosen.tensor.rows > 1]
        self._searched = frozenset(matrices[:: -(-len(matrices) // _SEARCHED) or 1])
        self._grids = GridSearch()

    def look(self, name: str, start: int, stop: int, block: Block | None) -> Seen | None:
        """What wants to see a block's quantized rows; None if none of them is measured. See `Watcher`."""
        look = self._look(name, start, stop, block)
        return None if look is None else look.see

    def _look(self, name: str, start: int, stop: int, block: Block | None) -> _Look | None:
        measured = self.measured.get(name)
        if measured is None:
            return None
        at = measured.within(start, stop)
        numbers = measured.rows[at]
        if not len(numbers):
            return None
        tensor = measured.tensor
        with doing("survival"):
            base = read_rows(self._base, tensor, numbers)
            if self.exact is None and block is not None:
                tuned = np.ascontiguousarray(block[numbers - start])
            else:
                tuned = read_rows(self.exact or self.source, tensor, numbers)
            if at.start == 0 and name in self._searched:  # the same rows, whichever thread comes first
                self._grids.add(name, base)
        weights = column_weights(self.imatrix, tensor, start)
        return _Look(self._tallies[name], at, numbers - start, base, tuned, weights)

    def sample(self, progress: Progress = silent, *, skip_too_large: bool = False) -> None:
        """Measure before anything is written, by reading the chosen rows alone.

        Args:
            progress: told the tensors.
            skip_too_large: leave a type out that cannot hold a tensor's values, instead of raising.

        Raises:
            NumericError: a value is too large for F16.
        """
        for number, measured in enumerate(self.measured.values()):
            progress("measure what survives", number, len(self.measured))
            self._sample_tensor(measured, skip_too_large)
        progress("measure what survives", len(self.measured), len(self.measured))

    def _sample_tensor(self, measured: Chosen, skip_too_large: bool) -> None:
        tensor = measured.tensor
        for start, stop in block_rows(tensor, largest_block(tensor)):
            if (look := self._look(tensor.name, start, stop, None)) is None:
                continue
            written = look.tuned
            if self.exact is not None:
                written = read_rows(self.source, tensor, look.picked + start)
            for kind in list(self._tallies[tensor.name]):
                rows = written
                if self._rounded is not None:
                    rows = self._rounded(written.copy(), kind, tensor.name, look.picked + start)
                try:
                    look.enter(kind, quantize(rows, kind, look.weights, at=tensor.name))
                except NumericError:
                    if not skip_too_large:
                        raise
                    del self._tallies[tensor.name][kind]

    def found(self) -> dict[str, list[Survival]]:
        """What survives, by model, in the order of its tensors; tensors that do not change are left out."""
        result: dict[str, list[Survival]] = {}
        for model, tensors in self._models.items():
            each = (
                self._tallies[tensor.name][kind].survival(tensor.name, kind.name, tensor.rows)
                for tensor, kind in tensors
                if kind in self._tallies.get(tensor.name, {})
            )
            result[model] = [survival for survival in each if survival is not None]
        return result

    def grid(self) -> Grid | None:
        """The grid on which the base's measured rows lie, if they do."""
        return self._grids.found()
