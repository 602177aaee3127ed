"""Tensors whose columns stand in another order, and vectors that are permuted like the rows of their weight.

Some converters regroup the heads of a state-space layer, which permutes the columns of its output projection
(Qwen3.5). A sum over a row that does not depend on the order finds the rows; a fingerprint along some rows
then finds the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.export.onto.index import Index, Keys, mixed
from lorafold.export.onto.lines import NONE
from lorafold.export.onto.match import BLOCK_NUMBERS, Search, TensorMap
from lorafold.export.onto.model import FileTensor

_ROWS = 64
"""Rows along which a column is told from the others."""


def find_shuffled(search: Search, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
    """Look for whole tensors of which the columns were permuted, and perhaps the rows."""
    for name in search.uncovered(names):
        info = search.info(name)
        if search.covered[name].any() or info.rows < 2:
            continue
        for tensor in tensors:
            free = tensor.plain and (tensor.rows, tensor.cols) == (info.rows, info.cols)
            if free and tensor.name not in search.maps and _shuffled(search, name, tensor):
                break


def _shuffled(search: Search, name: str, tensor: FileTensor) -> bool:
    info = search.info(name)
    strip = search.row_strip(name)
    numbers = np.arange(strip.first, strip.first + strip.count, dtype=np.uint32)
    step = max(BLOCK_NUMBERS // tensor.cols, 1)

    def blocks() -> list[tuple[int, int]]:
        return [(start, min(start + step, tensor.rows)) for start in range(0, tensor.rows, step)]

    own = [_unordered(search.bits(tensor, start, stop)) for start, stop in blocks()]
    theirs = [_unordered(search.line_bits(tensor, numbers[start:stop])) for start, stop in blocks()]
    index = Index.of([(np.concatenate(theirs), strip.first)])
    low, high = index.find(np.concatenate(own))
    if not (high - low == 1).all():
        return False
    lines = index.numbers[low]
    some = np.linspace(0, tensor.rows - 1, min(_ROWS, tensor.rows)).astype(np.int64)
    columns = _columns(search.rows_bits(tensor, some), search.line_bits(tensor, lines[some]))
    if columns is None:
        return False
    for start, stop in blocks():
        wanted = search.line_bits(tensor, lines[start:stop])[:, columns]
        if not np.array_equal(wanted, search.bits(tensor, start, stop)):
            return False
    search.maps[tensor.name] = TensorMap(lines, columns=columns)
    search.covered[name][:] = True
    assert info.rows == tensor.rows
    return True


def _unordered(bits: NDArray[Any]) -> Keys:
    """Keys of rows that do not depend on the order of their numbers."""
    keys: Keys = mixed(bits.astype(np.uint64) + np.uint64(1)).sum(axis=1, dtype=np.uint64)
    return keys


def _columns(own: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.int64] | None:
    """For each column of `own` the column of `theirs` that is equal; None if that is not one for each."""
    place = {column.tobytes(): number for number, column in enumerate(np.ascontiguousarray(theirs.T))}
    found = [place.get(column.tobytes(), -1) for column in np.ascontiguousarray(own.T)]
    columns = np.array(found, np.int64)
    return columns if len(np.unique(columns)) == len(columns) and columns.min() >= 0 else None


def find_vectors(search: Search, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
    """Look for vectors that are permuted like the rows of their weight, or stored plus one."""
    for name in search.uncovered(names):
        info = search.info(name)
        if len(info.shape) != 1:
            continue
        strip = search.row_strip(name)
        number = np.array([strip.first], np.uint32)
        found: list[tuple[FileTensor, TensorMap]] = []
        for tensor in tensors:
            if not tensor.plain or (tensor.rows, tensor.cols) != (1, info.cols):
                continue
            if tensor.name in search.maps and search.maps[tensor.name].lines[0] != NONE:
                continue
            order = _row_order(search, name, tensor)
            if order is not None:
                values = search.line_bits(tensor, number)[:, order]
                if np.array_equal(values, search.bits(tensor, 0, 1)):
                    found.append((tensor, TensorMap(number, columns=order)))
                    continue
            if np.array_equal(search.line_bits_plus(tensor, number, 1.0), search.bits(tensor, 0, 1)):
                found.append((tensor, TensorMap(number, plus=1.0)))
        if len(found) == 1:
            search.maps[found[0][0].name] = found[0][1]
            search.covered[name][:] = True
        elif found:
            search.twice.add(found[0][0].name)


def _row_order(search: Search, name: str, tensor: FileTensor) -> NDArray[np.int64] | None:
    """The order of the rows of a bias's weight, if that was found under the bias's name in the file."""
    weight, theirs = f"{name.removesuffix('.bias')}.weight", f"{tensor.name.removesuffix('.bias')}.weight"
    found = search.maps.get(theirs)
    if not name.endswith(".bias") or not tensor.name.endswith(".bias") or found is None:
        return None
    if weight not in search.origins or (found.lines == NONE).any() or found.columns is not None:
        return None
    strip = search.row_strip(weight)
    order = found.lines.astype(np.int64) - strip.first
    inside = order.size == tensor.cols and order.min() >= 0 and order.max() < strip.count
    return order if inside else None
