"""Proof of the weights: rows of the file against the same rows folded in float64.

Some row groups of every tensor are folded by the slow, independent path (float64, whole rows) and quantized
by ggml's own code, not by our kernels. Two things must hold. The file has the values that come out: only
where the float32 sum lies on the other side of a rounding border may a number differ. And what differs has
nothing to do with the adapter: along its change, the file is neither short of it (left out) nor beyond it
(applied twice), however small the change is beside the type's own error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.changes import round_to
from lorafold.export.gguf.header import GgufFile, TypedTensor
from lorafold.export.gguf.rows import column_weights, read_block
from lorafold.export.proof.check import Check
from lorafold.export.quant import ggml
from lorafold.export.survival.rows import TunedSource, is_changed
from lorafold.gguf_file.read import read_gguf_header

_Rows = NDArray[np.float32]

_GROUPS = 4  # sampled row groups of each tensor
_WEIGHTS = 32_768  # about this many weights in one group
# How far the file's values may be from the quantized exact ones, beside the error that the type itself makes
# on the same rows. Seen over thirteen types: 0.30 in Q5_K, whose search has many near ties, at most 0.12 in
# the others.
_SHARE = 0.5
# The same beside the size of the weights, which is all that F32 has: the last bits of a sum (seen: 1e-7), and
# with PEFT's rounding half a step of 16 bits, since some of its methods round on the way.
ROUNDING = {"exact": 1e-6, "peft": 2.0**-8}
# The share of an adapter's change that the file may have too little or too much, and how many standard
# deviations it must be before it counts.
CHANGE = 0.25
SURE = 6.0


class ProvenSource(TunedSource, Protocol):
    """What a file was made from, as far as it is asked here: a `Folded`, or what was put onto a GGUF."""

    def exact_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows of a tensor by the slow, independent path."""


class ExactSource:
    """The fold in float64, rounded to float32 once; then to the base's own type, if the export rounded so.

    Args:
        folded: the fold.
        rounding: the export's `rounding`.
    """

    def __init__(self, folded: ProvenSource, rounding: str = "exact") -> None:
        self._folded = folded
        self._rounding = rounding

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        exact = self._folded.exact_rows(name, np.arange(start, stop))
        rows = np.ascontiguousarray(exact, dtype=np.float32)
        return round_to(self._folded.tensors[name].dtype, rows) if self._rounding == "peft" else rows


def check_tensors(
    folder: Path,
    file: GgufFile,
    source: ProvenSource,
    *,
    rounding: str,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    seed: int = 0,
) -> Check:
    """Compare sampled rows of every tensor of one file.

    Args:
        folder: where the file lies.
        file: its plan: names, types, offsets.
        source: what it was made from.
        rounding: the export's `rounding`.
        imatrix: the importance weights it was made with.
        seed: of the sampling.
    """
    random = np.random.default_rng(seed)
    exact = ExactSource(source, rounding)
    # Where an engine finds the tensors; the plan's header may be of another length if the base has moved.
    placed = read_gguf_header(folder / file.name).tensors
    strangers = [
        typed.tensor.name
        for typed in file.tensors
        if typed.tensor.name not in placed
        or placed[typed.tensor.name].nbytes != typed.tensor.rows * typed.row_bytes
    ]
    if strangers:
        meaning = f"{', '.join(strangers)}: not in the file as planned"
        return Check(f"tensors {file.name}", "failed", meaning)
    worst, worst_name, rows_seen, wrong, amounts = 0.0, "", 0, [], {}
    descriptor = os.open(folder / file.name, os.O_RDONLY)
    try:
        for typed in file.tensors:
            change = _Change() if is_changed(typed.tensor, source, source.base) else None
            for start, stop in _sample(typed, random):
                wanted = read_block(exact, typed.tensor, start, stop)
                got = _read(descriptor, placed[typed.tensor.name].offset, typed, start, stop)
                weights = column_weights(imatrix, typed.tensor, start)
                reference = ggml.dequantize(
                    ggml.quantize(wanted, typed.type, weights), typed.type, typed.tensor.cols
                )
                scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
                error, type_error = _rmse(got, wanted) / scale, _rmse(reference, wanted) / scale
                rows_seen += stop - start
                if error > worst:
                    worst, worst_name = error, typed.tensor.name
                if not _rmse(got, reference) / scale <= _SHARE * type_error + ROUNDING[rounding]:
                    wrong.append(typed.tensor.name)
                if change is not None:
                    change.add(got, reference, wanted - read_block(source.base, typed.tensor, start, stop))
            if change is not None and not change.whole:
                amounts[typed.tensor.name] = change.amount
    finally:
        os.close(descriptor)
    figures: dict[str, Any] = {"rows": rows_seen, "largest relative error": worst, "in": worst_name}
    name = f"tensors {file.name}"
    if wrong or amounts:
        figures["times the change is there"] = amounts
        told = ", ".join(dict.fromkeys([*wrong, *amounts]))
        if amounts and all(amount < 0.5 for amount in amounts.values()):
            told += " (the adapter's change is not in them)"
        elif amounts and all(amount > 1.5 for amount in amounts.values()):
            told += " (the adapter's change is in them more than once)"
        return Check(name, "failed", f"rows of {told} are not the folded weights", figures)
    meaning = (
        f"{rows_seen:,} rows from all {len(file.tensors)} tensors are what folding in float64 and "
        f"{file.recipe} give; the rounding itself changes a group of weights by at most {worst:.2%}"
    )
    return Check(name, "passed", meaning, figures)


class _Change:
    """How much of an adapter's change to one tensor a file holds: by projection onto the change."""

    def __init__(self) -> None:
        self._along = self._size = self._variance = 0.0

    def add(self, got: _Rows, reference: _Rows, change: _Rows) -> None:
        """Count a group of rows: of the file, of the reference, and what the adapter adds to the base."""
        product = (got.astype(np.float64) - reference) * change
        self._along += float(product.sum())
        self._variance += float(np.square(product).sum())
        self._size += float(np.square(change, dtype=np.float64).sum())

    @property
    def amount(self) -> float:
        """1 if the file holds as much of the change as its type keeps, 0 if none, 2 if twice as much."""
        return 1 + self._along / self._size if self._size else 1.0

    @property
    def whole(self) -> bool:
        """Whether nothing but chance makes it differ from 1."""
        return abs(self.amount - 1) <= CHANGE or abs(self._along) <= SURE * float(np.sqrt(self._variance))


def _sample(typed: TypedTensor, random: np.random.Generator) -> list[tuple[int, int]]:
    """A few groups of rows, spread over the tensor, inside one matrix each."""
    tensor = typed.tensor
    matrix = tensor.height
    size = min(max(_WEIGHTS // tensor.cols // tensor.group, 1) * tensor.group, matrix)
    firsts = np.arange(0, matrix - size + 1, tensor.group)
    starts = random.choice(firsts, min(_GROUPS, len(firsts)), replace=False)
    matrices = random.integers(0, tensor.rows // matrix, len(starts)) * matrix
    return [(int(start), int(start) + size) for start in starts + matrices]


def _read(descriptor: int, offset: int, typed: TypedTensor, start: int, stop: int) -> NDArray[np.float32]:
    data = os.pread(descriptor, (stop - start) * typed.row_bytes, offset + start * typed.row_bytes)
    rows = np.frombuffer(data, np.uint8).reshape(stop - start, typed.row_bytes)
    return ggml.dequantize(np.ascontiguousarray(rows), typed.type, typed.tensor.cols)


def _rmse(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))
