"""Proof of the weights: rows of the file against the same rows folded in float64.

In: a written GGUF and the source it was made from. Some row groups of every tensor are folded anew by the
slow, independent path (float64, whole rows), quantized by ggml's own code (not by our kernels), and both are
compared by their error against the exact rows: a file that was folded and quantized right has the same error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import GgufFile, TypedTensor
from lorafold.export.gguf.rows import column_weights, read_block
from lorafold.export.proof.check import Check
from lorafold.export.quant import ggml

GROUPS = 4  # sampled row groups of each tensor
WEIGHTS = 32_768  # about this many weights in one group
# How much larger than the reference's error a sound file's may be: the exact sum and the float32 sum may fall
# on different sides of a rounding boundary, and PEFT's rounding adds half a step of the base's 16-bit type.
SLACK = 1.02
ROUNDING = {"exact": 1e-6, "peft": 2.0**-8}


class ExactSource:
    """The fold in float64, rounded to float32 once."""

    def __init__(self, folded: Folded) -> None:
        self._folded = folded

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        exact = self._folded.exact_rows(name, np.arange(start, stop))
        return np.ascontiguousarray(exact, dtype=np.float32)


def check_tensors(
    folder: Path,
    file: GgufFile,
    source: Folded,
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
    exact = ExactSource(source)
    worst, worst_name, rows_seen, wrong = 0.0, "", 0, []
    descriptor = os.open(folder / file.name, os.O_RDONLY)
    try:
        for typed in file.tensors:
            for start, stop in _sample(typed, random):
                wanted = read_block(exact, typed.tensor, start, stop)
                got = _read(descriptor, len(file.header), typed, start, stop)
                weights = column_weights(imatrix, typed.tensor, start)
                reference = ggml.dequantize(
                    ggml.quantize(wanted, typed.type, weights), typed.type, typed.tensor.cols
                )
                scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))) or 1.0
                error, allowed = _rmse(got, wanted) / scale, _rmse(reference, wanted) / scale
                rows_seen += stop - start
                if error > worst:
                    worst, worst_name = error, typed.tensor.name
                if not error <= allowed * SLACK + ROUNDING[rounding]:
                    wrong.append(typed.tensor.name)
    finally:
        os.close(descriptor)
    figures = {"rows": rows_seen, "largest relative error": worst, "in": worst_name}
    name = f"tensors {file.name}"
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        return Check(name, "failed", f"rows of {names} are not the folded weights", figures)
    meaning = (
        f"{rows_seen:,} rows from all {len(file.tensors)} tensors are what folding in float64 and "
        f"{file.recipe} give; the largest error of a group is {worst:.2%} of its weights' size"
    )
    return Check(name, "passed", meaning, figures)


def _sample(typed: TypedTensor, random: np.random.Generator) -> list[tuple[int, int]]:
    """A few groups of rows, spread over the tensor, inside one matrix each."""
    tensor = typed.tensor
    matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    size = min(max(WEIGHTS // tensor.cols // tensor.group, 1) * tensor.group, matrix)
    firsts = np.arange(0, matrix - size + 1, tensor.group)
    starts = random.choice(firsts, min(GROUPS, len(firsts)), replace=False)
    matrices = random.integers(0, tensor.rows // matrix, len(starts)) * matrix
    return [(int(start), int(start) + size) for start in starts + matrices]


def _read(descriptor: int, header: int, typed: TypedTensor, start: int, stop: int) -> NDArray[np.float32]:
    data = os.pread(
        descriptor, (stop - start) * typed.row_bytes, header + typed.offset + start * typed.row_bytes
    )
    rows = np.frombuffer(data, np.uint8).reshape(stop - start, typed.row_bytes)
    return ggml.dequantize(np.ascontiguousarray(rows), typed.type, typed.tensor.cols)


def _rmse(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(a.astype(np.float64) - b))))
