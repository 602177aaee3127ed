"""Which tensors the adapters change, which of their rows are measured, and how these are read."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.changes import Block
from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.export.gguf.rows import RowSource, read_block
from lorafold.weights import TensorInfo, TensorSource

RowNumbers = NDArray[np.int64]

_RUN = 8  # measured rows that follow one another: one read for all
_MATRICES = 20  # of a stack that is stored transposed one matrix in so many is read: a row costs all of it

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class TunedSource(Protocol):
    """A base with adapters folded in, as far as it is asked here."""

    @property
    def base(self) -> TensorSource:
        """The same without adapters."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    @property
    def touched(self) -> Mapping[str, str]:
        """The tensors that an adapter changes."""

    def rows(self, name: str, start: int, stop: int) -> Block:
        """Rows [start, stop) of a tensor with everything folded in."""


def kind_of(name: str) -> str:
    """A tensor's name with `*` for the number of its layer or expert."""
    return _NUMBER.sub("*", name)


def is_changed(tensor: MappedTensor, source: TunedSource, base: TensorSource) -> bool:
    """Whether an adapter changes a tensor that the base has in the same shape."""
    names = [piece.source for piece in tensor.sources]
    return any(name in source.touched for name in names) and all(
        name in base.tensors and base.tensors[name].shape == source.tensors[name].shape for name in names
    )


def as_it_is(info: TensorInfo) -> MappedTensor:
    """A tensor that is written under its own name, in its own order."""
    return MappedTensor(info.name, info.shape, (RowRange(info.name, 0, info.rows),))


def sample_rows(tensor: MappedTensor, weights: int) -> RowNumbers:
    """The numbers of the rows to measure, rising: all of a small tensor, else runs spread evenly over it.

    Args:
        tensor: the tensor; the same rows are drawn for it each time.
        weights: about how many weights to measure.
    """
    rows = np.arange(tensor.rows, dtype=np.int64)
    if tensor.transpose and tensor.rows > tensor.height:
        matrices = rows.reshape(-1, tensor.height)
        rows = matrices[_MATRICES // 2 % len(matrices) :: _MATRICES].reshape(-1)
    if len(rows) * tensor.cols <= weights:
        return rows
    slots = len(rows) // _RUN
    wanted = min(max(-(-weights // (_RUN * tensor.cols)), 2), slots)
    if wanted < 1:
        return rows
    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    borders = np.linspace(0, slots, wanted + 1).astype(np.int64)
    chosen = borders[:-1] + (random.random(wanted) * np.diff(borders)).astype(np.int64)
    picked: RowNumbers = rows[(chosen[:, None] * _RUN + np.arange(_RUN)).reshape(-1)]
    return picked


def read_rows(source: RowSource, tensor: MappedTensor, numbers: RowNumbers) -> Block:
    """Rows of a tensor by their rising numbers.

    Returns:
        float32 (len(numbers), cols), C-contiguous.
    """
    block = np.empty((len(numbers), tensor.cols), np.float32)
    for first, last in _spans(tensor, numbers):
        inside = numbers[first:last]
        start = int(inside[0]) // tensor.group * tensor.group
        stop = -(-(int(inside[-1]) + 1) // tensor.group) * tensor.group
        block[first:last] = read_block(source, tensor, start, stop)[inside - start]
    return block


def _spans(tensor: MappedTensor, numbers: RowNumbers) -> Iterator[tuple[int, int]]:
    """Places [first, last) in `numbers` of rows that are read at once: those whose groups touch."""
    if tensor.transpose:  # each read goes through the whole matrix, so there is one for all
        yield 0, len(numbers)
        return
    groups = numbers // tensor.group
    cuts = [0, *(np.flatnonzero(np.diff(groups) > 1) + 1).tolist(), len(numbers)]
    yield from itertools.pairwise(cuts)
