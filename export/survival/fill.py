"""Spends the bytes up to a size on better types, where the measured error falls most for each byte.

The error of a tensor is what its type does to the layer's output: the squared rounding error of the tuned
weights beside their squares, both weighted with the importance of the columns if there is a matrix. Only
raising is allowed, so the result is nowhere worse than the recipe that it began with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as Type

from lorafold.errors import NumericError
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.rows import RowSource, column_weights
from lorafold.export.gguf.writer import block_rows, largest_block
from lorafold.export.quant import ggml
from lorafold.export.quant.mixture import Importance
from lorafold.export.quant.quantize import quantize
from lorafold.export.quant.recipes import block_width
from lorafold.export.survival.ladder import bits, bytes_of, fitting, measure
from lorafold.export.survival.rows import TunedSource, read_rows, sample_rows
from lorafold.export.survival.share import ENOUGH
from lorafold.export.survival.survey import PLANNED, Survey, TypedModel
from lorafold.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Filled:
    """A tensor that got a larger type.

    Attributes:
        tensor: what it is made of.
        before: the recipe's type.
        after: its type now.
        error: the squared error beside the squared weights in the recipe's type.
        left: the same now.
    """

    tensor: MappedTensor
    before: Type
    after: Type
    error: float
    left: float

    @property
    def more(self) -> int:
        """Bytes that it costs."""
        return bytes_of(self.tensor, self.after) - bytes_of(self.tensor, self.before)


def fill(
    model: TypedModel,
    source: TunedSource,
    room: int,
    *,
    fixed: Sequence[str] = (),
    imatrix: Importance | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> tuple[TypedModel, list[Filled]]:
    """Raise types until the room is used up.

    Args:
        model: tensors with their types.
        source: what they are made from.
        room: bytes that may be added.
        fixed: names of tensors whose types stay.
        imatrix: importance weights by tensor.
        threads: how many tensors are measured at once.
        progress: told the tensors.

    Returns:
        The model with its new types, and what was raised, in the order of the model.
    """
    types = dict[str, Type]()
    errors: dict[str, Mapping[Type, float]] = {}
    tensors = {tensor.name: tensor for tensor, _ in model}
    changed = Survey({"": model}, source, weights=0).measured
    asked = [item for item in model if block_width(item[1]) > 1 and item[0].name not in fixed]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(
            lambda item: _choices(item[0], item[1], source, imatrix, item[0].name in changed), asked
        )
        for number, ((tensor, kind), each) in enumerate(zip(asked, found, strict=True)):
            progress("measure the types", number, len(asked))
            types[tensor.name], errors[tensor.name] = kind, each
    progress("measure the types", len(asked), len(asked))
    while True:
        steps = [
            (gain / max(more, 1), name, kind, more)
            for name, now in types.items()
            for kind, error in errors[name].items()
            if (more := bytes_of(tensors[name], kind) - bytes_of(tensors[name], now)) <= room
            and more >= 0
            and (gain := errors[name][now] - error) > 0
        ]
        if not steps:
            break
        _, name, kind, more = max(steps, key=lambda step: step[0])
        types[name], room = kind, room - more
    filled = [
        Filled(
            tensor,
            kind,
            types[tensor.name],
            errors[tensor.name][kind],
            errors[tensor.name][types[tensor.name]],
        )
        for tensor, kind in asked
        if types[tensor.name] != kind
    ]
    return [(tensor, types.get(tensor.name, kind)) for tensor, kind in model], filled


def _choices(
    tensor: MappedTensor, kind: Type, source: TunedSource, imatrix: Importance | None, changed: bool
) -> dict[Type, float]:
    """The errors of the types that a tensor may have: not of those that lose an adapter's change to it.

    A type may come very near to a base on a grid, and just therefore round the change away.
    """
    errors = errors_of(tensor, kind, source, imatrix)
    if not changed:
        return errors
    found = measure(tensor, list(errors), source, border=math.inf, imatrix=imatrix)
    if kind not in found:
        return errors
    most = max(1 - ENOUGH, abs(1 - found[kind].share))
    return {
        other: error
        for other, error in errors.items()
        if other == kind or (other in found and abs(1 - found[other].share) <= most)
    }


def errors_of(
    tensor: MappedTensor, kind: Type, source: RowSource, imatrix: Importance | None
) -> dict[Type, float]:
    """The error in the type that a tensor has, and in every larger one, on a sample of its rows."""
    kinds = [kind, *(other for other in fitting(tensor) if other != kind and bits(other) >= bits(kind))]
    lost, size = dict.fromkeys(kinds, 0.0), 0.0
    numbers = sample_rows(tensor, PLANNED)
    for start, stop in block_rows(tensor, largest_block(tensor)):
        inside = numbers[slice(*np.searchsorted(numbers, (start, stop)))]
        if not len(inside):
            continue
        rows = read_rows(source, tensor, inside)
        weights = column_weights(imatrix, tensor, start)
        important = np.ones(tensor.cols, np.float32) if weights is None else weights
        size += float((rows * rows * important).sum(dtype=np.float64))
        for other in list(lost):
            try:
                rounded = ggml.dequantize(quantize(rows, other, weights), other, tensor.cols)
            except NumericError:  # too large for F16
                del lost[other]
                continue
            error = rounded - rows
            lost[other] += float((error * error * important).sum(dtype=np.float64))
    return {other: error / size if size else 0.0 for other, error in lost.items()}
