"""Where the rows of a GGUF come from: every line of the tensors that an adapter touches is looked for in it.

Values decide, names only order the search: the tensors of one layer are held against the block of the same
number, and what is left is held against all blocks. What is equal twice is told apart by block, role and
place (`ties`). A line that was found has been compared number by number.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.onto.index import Index, Keys, fingerprints, places
from lorafold.export.onto.lines import NONE, LineTable, Numbers, Strip
from lorafold.export.onto.model import BaseGguf, FileTensor
from lorafold.export.onto.numbers import AS_BITS, file_bits, float_bits, rounding, widen
from lorafold.export.onto.ties import Pairs, predicted
from lorafold.weights import Checkpoint, TensorInfo

BLOCK_NUMBERS = 1 << 20
"""About so many numbers of the GGUF are compared at once; of strips of columns the larger number."""
COLUMN_BLOCK_NUMBERS = 1 << 23

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def block_of(gguf_name: str) -> int | None:
    """The block of a GGUF tensor; None for what stands outside of all blocks."""
    found = _BLOCK.search(gguf_name)
    return int(found[1]) if found else None


def layer_of(name: str) -> int | None:
    """The layer of a checkpoint's tensor: the first number of its name."""
    found = _NUMBER.search(name)
    return int(found[0]) if found else None


def without_layer(name: str) -> str:
    """A name with `*` for its first number, that of its layer or block."""
    return _NUMBER.sub("*", name, count=1)


@dataclass(slots=True)
class TensorMap:
    """What the rows of one GGUF tensor are made of.

    Attributes:
        lines: for each row its line, or NONE for one that keeps its values.
        columns: for each column the number of the line that it is, or None if they are in order.
        scales: (first row, one past the last, factor) of rows that are a line times a constant.
        plus: what is added to every number (1 for some makers' norms).
    """

    lines: Numbers
    columns: NDArray[np.int64] | None = None
    scales: tuple[tuple[int, int, float], ...] = ()
    plus: float = 0.0

    def describe(self, lines: LineTable) -> str:
        """How the tensor was found, in a word or two."""
        if self.scales:
            return "scaled rows"
        if self.columns is not None:
            return "permuted columns"
        if self.plus:
            return "plus one"
        numbers = self.lines[self.lines != NONE]
        strips = lines.strips_of(numbers)
        if any(strip.columns for strip in strips):
            parts = len({(strip.start, strip.stop) for strip in strips}) > 1
            return "transposed parts" if parts else "transposed"
        steps = np.diff(numbers.astype(np.int64))
        if len({strip.tensor for strip in strips}) > 1:
            return "stacked"
        if (steps != 1).any() and strips[0].count == len(numbers):
            return "permuted rows"
        return "rows" if len(numbers) == strips[0].count else "slices"


@dataclass(slots=True)
class Search:
    """The state of a search.

    Attributes:
        base: the checkpoint.
        model: the GGUF.
        origins: for each touched tensor the tensor of the checkpoint that holds its values: another one only
            for an output head that was tied.
        embedding: name of the input embedding, or None.
        head: name of the output head, or None.
        lines: the lines that are looked for.
        maps: the result, by GGUF name.
        covered: for each touched tensor, which of its rows were found.
        twice: GGUF tensors with rows that fit several lines and were not settled.
        largest_index: bytes of the largest index that was needed.
    """

    base: Checkpoint
    model: BaseGguf
    origins: Mapping[str, str]
    embedding: str | None = None
    head: str | None = None
    lines: LineTable = field(default_factory=LineTable)
    maps: dict[str, TensorMap] = field(default_factory=dict)
    covered: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    largest_index: int = 0
    _known: dict[str, list[Strip]] = field(default_factory=dict)

    def info(self, name: str) -> TensorInfo:
        """The checkpoint's entry of a touched tensor."""
        return self.base.tensors[self.origins[name]]

    def stored(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a touched tensor as the checkpoint stores them."""
        return self.base.stored(self.origins[name], start, stop)

    def groups(self, names: Iterable[str]) -> Iterator[tuple[list[str], list[FileTensor]]]:
        """Touched tensors of each layer with the tensors of the block of the same number."""
        blocks: dict[int | None, list[FileTensor]] = {}
        for tensor in self.model.tensors.values():
            blocks.setdefault(block_of(tensor.name), []).append(tensor)
        layers: dict[int | None, list[str]] = {}
        for name in names:
            layers.setdefault(layer_of(name), []).append(name)
        for layer, inside in layers.items():
            yield inside, blocks.get(layer, [])

    def uncovered(self, names: Iterable[str]) -> list[str]:
        """Those of which rows were not found."""
        return [name for name in names if not self.covered[name].all()]

    def open_rows(self, tensor: FileTensor) -> NDArray[np.bool_]:
        """Which rows of a GGUF tensor have no line yet."""
        found = self.maps.get(tensor.name)
        return np.ones(tensor.rows, np.bool_) if found is None else found.lines == NONE

    # Rows and columns that are in the file as they are.

    def find_rows(self, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
        """Look for rows of these tensors among the rows of those GGUF tensors."""
        self._find([self.row_strip(name) for name in names], tensors)

    def find_columns(self, names: Sequence[str], tensors: Sequence[FileTensor]) -> None:
        """Look for columns of what was not found by rows: of whole tensors, of one expert, of one head."""
        lengths = {tensor.cols for tensor in tensors if tensor.plain and self.open_rows(tensor).any()}
        strips = [
            self._strip(name, start, stop, self.info(name).cols, columns=True)
            for name in names
            for start, stop in open_runs(self.covered[name], _matrix_rows(self.info(name)))
            if stop - start in lengths and stop - start > 1
        ]
        self._find(strips, tensors)

    def _strip(self, name: str, start: int, stop: int, cols: int, *, columns: bool) -> Strip:
        for strip in self._known.get(name, ()):
            if (strip.start, strip.stop, strip.columns) == (start, stop, columns):
                return strip
        strip = self.lines.add(name, start, stop, cols, columns=columns)
        self._known.setdefault(name, []).append(strip)
        return strip

    def _find(self, strips: Sequence[Strip], tensors: Sequence[FileTensor]) -> None:
        """Look through tensors of which some rows are found at once; through the others if lines are missing.

        So a file that lies on a hub is read only where the adapter changes it.
        """
        indexes: dict[tuple[int, str], Index] = {}
        left: list[tuple[FileTensor, Index, bool]] = []
        for tensor in tensors:
            if not tensor.plain:
                continue
            fitting = [strip for strip in strips if strip.length == tensor.cols]
            if not fitting or not self.open_rows(tensor).any():
                continue
            roundings = {rounding(self.info(strip.tensor).dtype, tensor.type) for strip in fitting}
            key = tensor.cols, max(roundings)
            if key not in indexes:
                indexes[key] = Index.of((self._keys(strip, tensor.type), strip.first) for strip in fitting)
                self.largest_index = max(self.largest_index, indexes[key].nbytes)
            columns = any(strip.columns for strip in fitting)
            if self._shows(tensor, indexes[key]):
                self._find_in(tensor, indexes[key], columns=columns)
            else:
                left.append((tensor, indexes[key], columns))
        self.cover(strips, tensors)
        for tensor, index, columns in left:
            if all(self.covered[strip.tensor][strip.start : strip.stop].all() for strip in strips):
                break
            self._find_in(tensor, index, columns=columns)
            self.cover(strips, [tensor])

    def _shows(self, tensor: FileTensor, index: Index) -> bool:
        """Whether the first, the last, or the middle row of a tensor is one of the index."""
        at = places(tensor.cols)
        for row in dict.fromkeys((0, tensor.rows - 1, tensor.rows // 2)):
            bits = self.bits(tensor, row, row + 1, alone=True)
            low, high = index.find(fingerprints(bits[:, at], tensor.type))
            if high[0] > low[0]:
                return True
        return False

    def _keys(self, strip: Strip, type_: Type) -> Keys:
        """Fingerprints of a strip's lines as they would stand in a file of this type."""
        dtype = self.info(strip.tensor).dtype
        at = places(strip.length)

        def as_stored(stored: NDArray[Any]) -> NDArray[Any]:
            return file_bits(np.ascontiguousarray(stored), dtype, type_)

        if strip.columns:
            rows = [self.stored(strip.tensor, row, row + 1)[0] for row in (strip.start + at).tolist()]
            return fingerprints(as_stored(np.stack(rows, axis=1)), type_)
        step = max(BLOCK_NUMBERS // strip.cols, 1)
        return np.concatenate(
            [
                fingerprints(
                    as_stored(self.stored(strip.tensor, start, min(start + step, strip.stop))[:, at]), type_
                )
                for start in range(strip.start, strip.stop, step)
            ]
        )

    def _find_in(self, tensor: FileTensor, index: Index, *, columns: bool) -> None:
        at = places(tensor.cols)
        step = max((COLUMN_BLOCK_NUMBERS if columns else BLOCK_NUMBERS) // tensor.cols, 1)
        wide = self.open_rows(tensor)
        found: Numbers | None = None
        several: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        for start in range(0, tensor.rows, step):
            stop = min(start + step, tensor.rows)
            if not wide[start:stop].any():
                continue
            bits = self.bits(tensor, start, stop)
            if found is not None and wide[start:stop].all():
                follows = self._next(found[start - step : start], stop - start, index)
                if follows is not None and self.same(tensor, bits, follows).all():
                    found[start:stop] = follows
                    continue
            low, high = index.find(fingerprints(bits[:, at], tensor.type))
            counts = np.where(wide[start:stop], high - low, 0)
            one = np.flatnonzero(counts == 1)
            if one.size:
                numbers = index.numbers[low[one]]
                right = self.same(tensor, bits[one] if one.size < len(bits) else bits, numbers)
                if found is None:
                    found = self._lines(tensor)
                found[start + one[right]] = numbers[right]
            many = np.flatnonzero(counts > 1)
            if many.size:
                several.append((start + many, low[many], high[many]))
        if several:
            rows, low, high = (np.concatenate(part) for part in zip(*several, strict=True))
            self._settle(tensor, index, rows, low, high)

    def _next(self, before: Numbers, count: int, index: Index) -> Numbers | None:
        """So many lines behind those of the block before, to be compared; None if these are not in order.

        Only lines that are no other's equal: then an equal row can be no other line either.
        """
        if before[-1] == NONE or self.lines.as_rows(before) is None:
            return None
        first = int(before[-1]) + 1
        strip = self.lines.strips[int(self.lines.owners(before[-1:])[0])]
        last = first + count
        fits = last <= strip.first + strip.count and index.alone(first, last)
        return np.arange(first, last, dtype=np.uint32) if fits else None

    def _lines(self, tensor: FileTensor) -> Numbers:
        """The lines of a GGUF tensor's rows, to be filled in."""
        if tensor.name not in self.maps:
            self.maps[tensor.name] = TensorMap(np.full(tensor.rows, NONE, np.uint32))
        return self.maps[tensor.name].lines

    def bits(self, tensor: FileTensor, start: int, stop: int, *, alone: bool = False) -> NDArray[Any]:
        """Rows of the GGUF as unsigned numbers, (stop - start, cols); `alone` as for `BaseGguf.packed`."""
        return self.model.packed(tensor.name, start, stop, alone=alone).view(AS_BITS[tensor.type])

    def line_bits(self, tensor: FileTensor, numbers: Numbers) -> NDArray[Any]:
        """Lines as the GGUF would store them: (len(numbers), cols)."""

        def read(name: str, start: int, stop: int) -> NDArray[Any]:
            return file_bits(self.stored(name, start, stop), self.info(name).dtype, tensor.type)

        if (whole := self.lines.as_rows(numbers)) is not None:
            return read(*whole)
        out = np.empty((len(numbers), tensor.cols), AS_BITS[tensor.type])
        self.lines.gather(read, numbers, out)
        return out

    def values(self, numbers: Numbers, length: int) -> NDArray[np.float32]:
        """Lines as float32, not rounded to the type of the GGUF: (len(numbers), length)."""
        out = np.empty((len(numbers), length), np.float32)
        self.lines.gather(
            lambda name, start, stop: widen(self.stored(name, start, stop), self.info(name).dtype),
            numbers,
            out,
        )
        return out

    def line_bits_plus(self, tensor: FileTensor, numbers: Numbers, plus: float) -> NDArray[Any]:
        """Lines with a number added to each of theirs, as the GGUF would store them."""
        return float_bits(self.values(numbers, tensor.cols) + np.float32(plus), tensor.type)

    def row_strip(self, name: str) -> Strip:
        """The rows of a tensor as one strip."""
        info = self.info(name)
        return self._strip(name, 0, info.rows, info.cols, columns=False)

    def column_strip(self, name: str, start: int, stop: int) -> Strip:
        """The columns of some rows as one strip."""
        return self._strip(name, start, stop, self.info(name).cols, columns=True)

    def same(self, tensor: FileTensor, bits: NDArray[Any], numbers: Numbers) -> NDArray[np.bool_]:
        """For each row of `bits` whether it is this line, all of its numbers compared."""
        return equal_rows(self.line_bits(tensor, numbers), bits)

    def _settle(
        self,
        tensor: FileTensor,
        index: Index,
        rows: NDArray[np.int64],
        low: NDArray[np.int64],
        high: NDArray[np.int64],
    ) -> None:
        """Rows that fit several lines: by what their neighbours show, then by block, role and place."""
        found = self._lines(tensor)
        guess = predicted(found, rows)
        if guess is not None:
            fits = guess < self.lines.total
            fits[fits] = self._long_as(tensor, guess[fits].astype(np.uint32))
            self._accept(tensor, rows[fits], guess[fits].astype(np.uint32))
        left = found[rows] == NONE
        pairs = Pairs.of(rows[left], low[left], high[left], index.numbers) if left.any() else None
        if pairs is not None:
            self._accept(tensor, *self._by_name(tensor, pairs).single())
        if (found[rows] == NONE).any():
            self.twice.add(tensor.name)

    def _accept(self, tensor: FileTensor, rows: NDArray[np.int64], numbers: Numbers) -> None:
        """Take these lines for these rows where all numbers are equal."""
        step = max(BLOCK_NUMBERS // tensor.cols, 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            right = self.same(tensor, self.rows_bits(tensor, part), numbers[start : start + step])
            self._lines(tensor)[part[right]] = numbers[start : start + step][right]

    def _long_as(self, tensor: FileTensor, numbers: Numbers) -> NDArray[np.bool_]:
        """For each line whether it is as long as the tensor's rows."""
        lengths = np.array([strip.length for strip in self.lines.strips])
        fits: NDArray[np.bool_] = lengths[self.lines.owners(numbers)] == tensor.cols
        return fits

    def rows_bits(self, tensor: FileTensor, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Single rows of the GGUF, in any order."""
        out = np.empty((len(rows), tensor.cols), AS_BITS[tensor.type])
        whole = LineTable()
        whole.add(tensor.name, 0, tensor.rows, tensor.cols, columns=False)
        whole.gather(lambda _, a, b: self.bits(tensor, a, b, alone=True), rows.astype(np.uint32), out)
        return out

    def _by_name(self, tensor: FileTensor, pairs: Pairs) -> Pairs:
        """Keep of each row's candidates those whose names fit: block, then role, then expert."""
        strips = self.lines.strips
        owners = self.lines.owners(pairs.numbers)
        block = block_of(tensor.name)
        fits = np.array([layer_of(strip.tensor) == block for strip in strips])
        pairs = pairs.keep(fits[owners])
        owners = self.lines.owners(pairs.numbers)
        role = {"token_embd.weight": self.embedding, "output.weight": self.head}.get(tensor.name)
        pairs = pairs.keep(np.array([strip.tensor == role for strip in strips])[owners])
        matrix = tensor.shape[-2] if len(tensor.shape) > 2 else tensor.rows
        owners = self.lines.owners(pairs.numbers)
        experts = np.array([_expert(strip) for strip in strips])[owners]
        tall = np.array([_matrix_rows(self.info(strip.tensor)) for strip in strips])[owners]
        first = np.array([strip.first for strip in strips])[owners]
        begin = np.array([strip.start for strip in strips])[owners]
        columns = np.array([strip.columns for strip in strips])[owners]
        row = np.where(columns, begin, pairs.numbers.astype(np.int64) - first + begin)
        stacked = np.array([len(self.info(strip.tensor).shape) > 2 for strip in strips])[owners]
        expert = np.where(stacked, row // tall, experts)
        pairs = pairs.keep(expert == pairs.rows // matrix)
        return pairs

    def cover(self, strips: Sequence[Strip], tensors: Iterable[FileTensor] | None = None) -> None:
        """Note which rows of the strips' tensors have been found.

        Args:
            strips: of the checkpoint.
            tensors: of the GGUF, in which they may have been found; all of them if not given.
        """
        if not strips:
            return
        names = self.maps if tensors is None else [each.name for each in tensors if each.name in self.maps]
        low = min(strip.first for strip in strips)
        high = max(strip.first + strip.count for strip in strips)
        used = np.zeros(high - low, np.bool_)
        for name in names:
            lines = self.maps[name].lines
            used[lines[(lines >= low) & (lines < high)] - np.uint32(low)] = True
        for strip in strips:
            own = used[strip.first - low : strip.first - low + strip.count]
            if not strip.columns:
                self.covered[strip.tensor][strip.start : strip.stop] |= own
            elif own.all():
                self.covered[strip.tensor][strip.start : strip.stop] = True


def equal_rows(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """For each row whether all of its bytes are equal."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    width = a.shape[1] * a.itemsize
    kind = np.uint64 if width % 8 == 0 else np.uint16 if width % 2 == 0 else np.uint8
    equal: NDArray[np.bool_] = (a.view(kind) == b.view(kind)).all(axis=1)
    return equal


def open_runs(covered: NDArray[np.bool_], matrix: int) -> list[tuple[int, int]]:
    """Runs of rows that were not found, cut where one matrix of a stack ends and the next begins."""
    edges = np.zeros(len(covered) + 1, np.bool_)
    edges[0] = edges[-1] = True
    edges[1:-1] = covered[1:] != covered[:-1]
    edges[::matrix] = True
    at = np.flatnonzero(edges).tolist()
    return [(a, b) for a, b in itertools.pairwise(at) if not covered[a]]


def _matrix_rows(info: TensorInfo) -> int:
    """Rows of one matrix of a stack; of a matrix all rows."""
    return info.shape[-2] if len(info.shape) > 2 else max(info.rows, 1)


def _expert(strip: Strip) -> int:
    """The last number of a tensor's name behind that of its layer: its expert; -1 if there is none."""
    numbers = _NUMBER.findall(strip.tensor)
    return int(numbers[-1]) if len(numbers) > 1 else -1
