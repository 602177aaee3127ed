"""Where the weights of a GGUF stand in the checkpoint.

A proof asks: it rounds these as the file does, and holds what the adapter leaves alone against the base.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lorafold.errors import InputError
from lorafold.export.gguf.header import TypedTensor
from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.export.onto.alike import check_alike
from lorafold.export.onto.entries import SAME_BASE
from lorafold.export.onto.find import searched
from lorafold.export.onto.lines import NONE, runs
from lorafold.export.onto.match import Search, TensorMap
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.source import OntoSource
from lorafold.weights import item_size


class Places:
    """The checkpoint's rows of any tensor of the file, touched or not.

    Args:
        source: the result; all other tensors of its base are looked for when this is made.
        model: where they are looked for: the file, or what holds the same tensors.
        threads: how many layers are looked for at once.
    """

    def __init__(self, source: OntoSource, model: BaseGguf, threads: int = 1) -> None:
        self._source = source
        touched = source.found.search.origins
        base = source.found.search.base
        others = [n for n, info in base.tensors.items() if n not in touched and len(info.shape) > 1]
        plain = [name for name in others if item_size(base.tensors[name]) > 0]
        self._others = searched(base, model, plain, threads=threads) if model.exact else None

    def check_left_alone(self) -> int | None:
        """Hold the matrices that the adapter leaves alone against the base, as far as that can be told.

        What is nowhere in the base was computed by the converter, and rows of zeros are padding.

        Returns:
            How many matrices were found; None for a quantized file, which holds other numbers.

        Raises:
            InputError: some rows of a matrix are the base's and others are not, or one layer differs from the
                others in place or order.
        """
        if (others := self._others) is None:
            return None
        check_alike(others)
        for name, found in others.maps.items():
            lines = found.lines.copy()
            if (touched := self._source.found.maps.get(name)) is not None:
                lines = np.minimum(lines, touched.lines)  # NONE is the largest
            strange = np.flatnonzero(lines == NONE) if name not in others.twice else ()
            for row in map(int, strange):
                if others.model.values(name, row, row + 1, alone=True).any():
                    raise InputError(
                        f"row {row:,} of {name} is not the base's, as other rows of it are",
                        at=others.model.header.path,
                        fix=SAME_BASE,
                    )
        return len(others.maps)

    def of(self, typed: TypedTensor) -> TypedTensor | None:
        """The tensor as rows of the checkpoint; None if it holds them without rounding, or is no matrix."""
        name = typed.tensor.name
        own = self._source.model.tensors.get(name)
        if len(typed.tensor.shape) < 2:
            return None
        search = self._source.found.search
        found = search.maps.get(name)
        if found is None and self._others is not None:
            search, found = self._others, self._others.maps.get(name)
        ranges = None if found is None else _ranges(search, found)
        if ranges is None:
            return typed
        kept = own is not None and own.type == typed.type and name not in self._source.found.maps
        sources, transpose = ranges
        if kept and search.info(sources[0].source).dtype == typed.type.name:
            return None
        return replace(typed, tensor=_mapped(typed.tensor, sources, transpose))


def _mapped(tensor: MappedTensor, sources: tuple[RowRange, ...], transpose: bool) -> MappedTensor:
    return MappedTensor(tensor.name, tensor.shape, sources, transpose=transpose)


def _ranges(search: Search, found: TensorMap) -> tuple[tuple[RowRange, ...], bool] | None:
    """Ranges of rows that hold a tensor's lines, in their own order; None if they are no whole rows."""
    numbers = np.sort(found.lines)
    if not numbers.size or numbers[-1] == NONE or found.scales:
        return None
    strips = search.lines.strips_of(numbers)
    if any(strip.columns for strip in strips):
        (strip, *more) = strips
        info = search.info(strip.tensor)
        whole = not more and strip.count == len(numbers) and (strip.start, strip.stop) == (0, info.rows)
        return ((RowRange(search.origins[strip.tensor], 0, info.rows),), True) if whole else None
    ranges = []
    for strip in strips:
        own = numbers[(numbers >= strip.first) & (numbers < strip.first + strip.count)].astype(np.int64)
        for start, stop, inside in runs(own - strip.first + strip.start):
            if stop - start != len(inside):
                return None
            ranges.append(RowRange(search.origins[strip.tensor], start, stop))
    return tuple(ranges), False
