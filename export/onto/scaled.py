"""Rows of the file that are rows of the checkpoint times a constant (Falcon-H1's multipliers).

The signs of a row's numbers tell which line it can be, whatever the constant. Every pair of numbers then
gives an interval in which the constant must lie, so that the product rounds to what the file holds:

    (g - ulp/2) / h  <=  s  <=  (g + ulp/2) / h

The intervals of all numbers of a section have a common part, or the rows are something else. That part is
narrow (float32's own precision after a few thousand numbers), and the products are compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.onto.index import Index, Keys, mixed
from lorafold.export.onto.lines import NONE, Numbers
from lorafold.export.onto.match import Search, TensorMap
from lorafold.export.onto.model import FileTensor
from lorafold.export.onto.numbers import bit_floats, float_bits

SIGNS = 256
"""Numbers of a row whose signs are compared."""
MOST_SECTIONS = 16
"""Sections with a constant of their own in one tensor."""

# Bits of the fraction of a number between 1 and 2.
FRACTION = {Type.F32: 23, Type.BF16: 7, Type.F16: 10}


def find_scaled(search: Search, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
    """Look for rows that were multiplied, among the rows of those GGUF tensors that are not explained."""
    for tensor in tensors:
        free = search.open_rows(tensor)
        left = [name for name in search.uncovered(names) if search.info(name).cols == tensor.cols]
        if not tensor.plain or not left or not free.all() or tensor.cols < 16:
            continue
        found = _scaled(search, left, tensor)
        if found is not None:
            search.maps[tensor.name] = found
            search.cover([search.row_strip(name) for name in left])


def _scaled(search: Search, names: Sequence[str], tensor: FileTensor) -> TensorMap | None:
    strips = [search.row_strip(name) for name in names]
    parts = []
    for strip in strips:
        numbers = np.arange(strip.first, strip.first + strip.count, dtype=np.uint32)
        keys = [_signs(search.values(part, tensor.cols)) for part in _blocks(numbers, tensor.cols)]
        parts.append((np.concatenate(keys), strip.first))
    index = Index.of(parts)
    rows = np.arange(tensor.rows, dtype=np.uint32)
    low, high = index.find(
        np.concatenate([_signs(_values(search, tensor, part)) for part in _blocks(rows, tensor.cols)])
    )
    lines = np.where(high - low == 1, index.numbers[np.minimum(low, len(index.numbers) - 1)], NONE)
    if (lines == NONE).any():
        return None
    scales = _sections(search, tensor, lines)
    return None if scales is None else TensorMap(lines, scales=scales)


def _values(search: Search, tensor: FileTensor, rows: Numbers) -> NDArray[np.float32]:
    return bit_floats(search.bits(tensor, int(rows[0]), int(rows[-1]) + 1), tensor.type)


def _blocks(numbers: Numbers, cols: int) -> list[Numbers]:
    step = max((1 << 19) // cols, 1)
    return [numbers[start : start + step] for start in range(0, len(numbers), step)]


def _signs(values: NDArray[np.float32]) -> Keys:
    """Keys of the pattern of signs, the same for a negative constant."""
    at = np.linspace(0, values.shape[1] - 1, min(SIGNS, values.shape[1])).astype(np.int64)
    signs = np.signbit(values[:, at])
    packed = np.packbits(signs ^ signs[:, :1], axis=1)
    padded = np.zeros((len(values), -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    keys = np.zeros(len(values), np.uint64)
    for word in padded.view(np.uint64).T:
        keys = mixed(keys * np.uint64(31) + word + np.uint64(1))
    return keys


def _sections(
    search: Search, tensor: FileTensor, lines: Numbers
) -> tuple[tuple[int, int, float], ...] | None:
    """The constants of a tensor, section by section; None if there is none for some row, or too many."""
    low = np.empty(tensor.rows)
    high = np.empty(tensor.rows)
    for rows in _blocks(np.arange(tensor.rows, dtype=np.uint32), tensor.cols):
        own = _values(search, tensor, rows).astype(np.float64)
        theirs = search.values(lines[rows], tensor.cols).astype(np.float64)
        if ((own == 0) != (theirs == 0)).any():
            return None
        low[rows], high[rows] = _interval(own, theirs, tensor.type)
    if (low > high).any():
        return None
    sections: list[tuple[int, int, float]] = []
    start, least, most = 0, -np.inf, np.inf
    for row in range(tensor.rows + 1):
        ends = row == tensor.rows
        if not ends and max(least, low[row]) <= min(most, high[row]):
            least, most = max(least, low[row]), min(most, high[row])
            continue
        sections.append((start, row, float((least + most) / 2)))
        if len(sections) > MOST_SECTIONS:
            return None
        if not ends:
            start, least, most = row, low[row], high[row]
    exact = []
    for first, last, scale in sections:
        near = np.float32(scale)
        tried = (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)))
        right = next((one for one in tried if _right(search, tensor, lines, first, last, one)), None)
        if right is None:
            return None
        exact.append((first, last, float(right)))
    return tuple(exact)


def _right(
    search: Search, tensor: FileTensor, lines: Numbers, first: int, last: int, scale: np.float32
) -> bool:
    """Whether rows [first, last) are their lines times this constant, bit by bit."""
    return all(
        np.array_equal(
            float_bits(search.values(lines[part], tensor.cols) * scale, tensor.type),
            search.bits(tensor, int(part[0]), int(part[-1]) + 1),
        )
        for part in _blocks(np.arange(first, last, dtype=np.uint32), tensor.cols)
    )


def _interval(
    own: NDArray[np.float64], theirs: NDArray[np.float64], type_: Type
) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each row the least and the greatest constant that all of its numbers allow."""
    usable = theirs != 0
    safe = np.where(usable, theirs, 1.0)
    exponent = np.frexp(np.abs(own))[1] - 1  # 2 ** exponent <= |number|
    slack = np.ldexp(1.0, exponent - FRACTION[type_] - 1)
    if type_ != Type.F32:
        slack += np.ldexp(1.0, exponent - FRACTION[Type.F32] - 1)  # the product is rounded to float32 first
    if type_ == Type.F16:
        slack = np.maximum(slack, 2.0**-25)  # half the smallest number
    one, other = (own - slack) / safe, (own + slack) / safe
    low = np.where(usable, np.minimum(one, other), -np.inf).max(axis=1)
    high = np.where(usable, np.maximum(one, other), np.inf).min(axis=1)
    return low, high
