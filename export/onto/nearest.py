"""Tensors of a quantized GGUF: found by the nearest lines of the base, checked by what quantizing leaves.

A quantized row is no line of the checkpoint any more, but it still is far nearer to its own than to any other
(cosine 0.98 and more against 0.33, also at three bits). A few rows of each tensor are held against all lines;
what they say about the order of the rows (as they are, or the two halves of each head interleaved) is checked
on every row: its distance from its line must be what quantizing that line gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.changes import Block
from lorafold.export.onto.lines import NONE, Numbers, Strip
from lorafold.export.onto.match import Search, TensorMap
from lorafold.export.onto.model import FileTensor
from lorafold.export.quant import ggml

_PROBES = 16
"""Rows of a tensor that are held against all lines; of a stack at least two of each matrix."""
_BLOCK_NUMBERS = 1 << 21
ALIKE = 0.8
"""Least cosine between a row and its line: quantized to two bits they have 0.9."""
SLACK = 2.5
"""How much larger than that of a fresh quantization a row's error may be: other programs search otherwise."""


def find_nearest(search: Search, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
    """Look for what was not found among the rows of those GGUF tensors that are quantized."""
    for cols in sorted({tensor.cols for tensor in tensors if _searched(search, tensor)}):
        group = [tensor for tensor in tensors if tensor.cols == cols and _searched(search, tensor)]
        strips = list(_strips(search, search.uncovered(names), group))
        if strips:
            _find(search, strips, group)


def _searched(search: Search, tensor: FileTensor) -> bool:
    return not tensor.plain and len(tensor.shape) > 1 and tensor.name not in search.maps


def _strips(search: Search, names: Sequence[str], tensors: Sequence[FileTensor]) -> Iterator[Strip]:
    """Lines that may stand in these tensors: rows, columns of a matrix, columns of a head's part."""
    cols = tensors[0].cols
    for name in names:
        info = search.info(name)
        if info.cols == cols:
            yield search.row_strip(name)
        matrix = info.shape[-2] if len(info.shape) > 2 else info.rows
        for tensor in tensors:
            heads = tensor.shape[0] if len(tensor.shape) > 2 else 1
            turned = tensor.shape[-2] == info.cols
            if turned and matrix == cols and info.rows % matrix == 0 and matrix != info.cols:
                for start in range(0, info.rows, matrix):
                    yield search.column_strip(name, start, start + matrix)
                break
            if turned and len(info.shape) == 2 and heads > 1 and info.rows % heads == 0:
                height = info.rows // heads  # of latent attention: the part of the keys comes first
                if height > cols:
                    for start in range(0, info.rows, height):
                        yield search.column_strip(name, start, start + cols)
                    break


def _find(search: Search, strips: Sequence[Strip], tensors: Sequence[FileTensor]) -> None:
    probes = [_probes(tensor) for tensor in tensors]
    values = [
        np.concatenate([search.model.values(tensor.name, row, row + 1, alone=True) for row in rows.tolist()])
        for tensor, rows in zip(tensors, probes, strict=True)
    ]
    best, lines = _nearest(search, strips, np.concatenate(values))
    start = 0
    for tensor, rows in zip(tensors, probes, strict=True):
        own = slice(start, start + len(rows))
        start += len(rows)
        known = best[own] >= ALIKE
        if not known.any():
            continue
        found = _mapped(search, tensor, rows[known], lines[own][known])
        if found is not None:
            search.maps[tensor.name] = TensorMap(found)
    search.cover(strips)


def _probes(tensor: FileTensor) -> NDArray[np.int64]:
    """Rows to look at: spread over the tensor, at odd places so that a permutation of heads shows."""
    matrices = tensor.rows // tensor.shape[-2]
    height = tensor.shape[-2]
    each = min(max(_PROBES // matrices, 2), height)
    inside = np.unique(np.linspace(0, height - 1, each).astype(np.int64))
    if height > 8:
        inside = np.unique(np.concatenate([inside, [1, 2, 3]]))
    return (np.arange(matrices)[:, None] * height + inside[None, :]).reshape(-1)


def _nearest(search: Search, strips: Sequence[Strip], rows: Block) -> tuple[NDArray[np.float32], Numbers]:
    """For each row the greatest cosine with any line, and that line."""
    unit = _unit(rows)
    best = np.full(len(rows), -1.0, np.float32)
    lines = np.full(len(rows), NONE, np.uint32)
    for strip in strips:
        step = max(_BLOCK_NUMBERS // strip.length, 1)
        if strip.columns:
            step = strip.count  # a strip of columns is read whole
        for first in range(0, strip.count, step):
            numbers = np.arange(
                strip.first + first, strip.first + min(first + step, strip.count), dtype=np.uint32
            )
            cosines = unit @ _unit(search.values(numbers, strip.length)).T
            nearest = cosines.argmax(axis=1)
            value = cosines[np.arange(len(rows)), nearest]
            better = value > best
            best[better], lines[better] = value[better], numbers[nearest[better]]
    return best, lines


def _unit(rows: Block) -> Block:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float32))
    unit: Block = rows / np.maximum(norms, np.float32(1e-30))[:, None]
    return unit


def _mapped(search: Search, tensor: FileTensor, rows: NDArray[np.int64], lines: Numbers) -> Numbers | None:
    """The lines of all rows: by the first order that the probes and then all rows agree with."""
    height = tensor.shape[-2]
    found = np.full(tensor.rows, NONE, np.uint32)
    limit = _limit(search, tensor, lines)
    for first in range(0, tensor.rows, height):
        inside = (rows >= first) & (rows < first + height)
        if not inside.any():
            continue
        wanted, given = rows[inside] - first, lines[inside].astype(np.int64)
        whole = np.arange(height)
        for order in _orders(search, height, given):
            guess = order(whole)
            if guess is None or not (guess[wanted] == given).all():
                continue
            if _right(search, tensor, first, guess.astype(np.uint32), limit):
                found[first : first + height] = guess
                break
        else:
            each = _each(search, tensor, first, height, given, limit)
            if each is not None:
                found[first : first + height] = each
    return None if (found == NONE).all() else found


_Order = Callable[[NDArray[np.int64]], NDArray[np.int64] | None]


def _orders(search: Search, height: int, given: NDArray[np.int64]) -> Iterator[_Order]:
    """Orders of rows that converters write: as they are, and the halves of every head interleaved."""
    strip = search.lines.strips[int(search.lines.owners(given[:1].astype(np.uint32))[0])]
    room = strip.count - height

    def shifted(offset: int) -> _Order:
        return lambda rows: rows + offset

    for offset in dict.fromkeys((int(given[0]), strip.first, strip.first + max(room, 0))):
        if strip.first <= offset <= strip.first + room:
            yield shifted(offset)
    for head in range(4, height + 1, 2):
        if height % head:
            continue

        def interleaved(rows: NDArray[np.int64], head: int = head) -> NDArray[np.int64] | None:
            inside = rows % head
            return strip.first + rows - inside + inside // 2 + (inside % 2) * (head // 2)

        if room == 0:
            yield interleaved


def _limit(search: Search, tensor: FileTensor, lines: Numbers) -> float:
    """The greatest error that a row may have, as a part of its size, by quantizing some lines again."""
    some = np.unique(lines)[:32]
    values = search.values(some, tensor.cols)
    if ggml.requires_imatrix(tensor.type) or tensor.type not in ggml.QUANTIZABLE:
        return 0.7
    again = ggml.dequantize(ggml.quantize(values, tensor.type), tensor.type, tensor.cols)
    return float(_errors(again, values).max()) * SLACK


def _errors(own: Block, lines: Block) -> NDArray[np.float64]:
    size = np.sqrt(np.square(lines, dtype=np.float64).sum(axis=1))
    error: NDArray[np.float64] = np.sqrt(np.square(own.astype(np.float64) - lines).sum(axis=1))
    error /= np.maximum(size, 1e-30)
    return error


def _right(search: Search, tensor: FileTensor, first: int, lines: Numbers, limit: float) -> bool:
    """Whether every row is as near to its line as quantizing leaves it."""
    step = max(_BLOCK_NUMBERS // tensor.cols, 1)
    for start in range(0, len(lines), step):
        stop = min(start + step, len(lines))
        own = search.model.values(tensor.name, first + start, first + stop)
        if (_errors(own, search.values(lines[start:stop], tensor.cols)) > limit).any():
            return False
    return True


def _each(
    search: Search, tensor: FileTensor, first: int, height: int, given: NDArray[np.int64], limit: float
) -> Numbers | None:
    """Every row by its nearest line, among the strips that the probes hit; each line once."""
    owners = np.unique(search.lines.owners(given.astype(np.uint32))).tolist()
    strips = [search.lines.strips[index] for index in owners]
    parts = []
    step = max(_BLOCK_NUMBERS // tensor.cols, 1)
    for start in range(first, first + height, step):
        stop = min(start + step, first + height)
        parts.append(_nearest(search, strips, search.model.values(tensor.name, start, stop))[1])
    lines = np.concatenate(parts)
    if len(np.unique(lines)) != height or not _right(search, tensor, first, lines, limit):
        return None
    return lines
