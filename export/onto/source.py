"""The rows of the GGUF that is to be written: folded where the adapter touches them, else the file's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.fold.changes import Block
from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.export.onto.find import FoldedRows, Found
from lorafold.export.onto.lines import NONE
from lorafold.export.onto.match import Search
from lorafold.export.onto.model import BaseGguf, FileTensor
from lorafold.export.quant import ggml
from lorafold.export.quant import quantize as kernels
from lorafold.stopwatch import doing
from lorafold.weights import TensorInfo

COMPARED_NUMBERS = 1 << 20


def digest(rows: NDArray[np.uint8] | bytes) -> bytes:
    """What stands for the bytes of some rows."""
    return hashlib.blake2b(rows, digest_size=16).digest()  # type: ignore[arg-type]  # arrays are buffers


def _blocks(rows: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def check_types(source: OntoSource, imatrix: Collection[str] = ()) -> None:
    """Refuse tensors that change and cannot be written in the type that they have.

    Args:
        source: the result.
        imatrix: names of tensors with importance weights.

    Raises:
        InputError: there is one.
    """
    path = source.model.header.path
    for tensor in source.file_tensors():
        if tensor.name not in source.found.maps:
            continue
        if tensor.type not in ggml.QUANTIZABLE:
            raise InputError(
                f"{tensor.name} is {tensor.type.name}, which lorafold can read but not write",
                at=path,
                fix="give a GGUF of another type",
            )
        if ggml.requires_imatrix(tensor.type) and tensor.name not in imatrix:
            raise InputError(
                f"{tensor.name} is {tensor.type.name}, which needs an importance matrix",
                at=path,
                fix="pass one with --imatrix, or give a GGUF of 3 bits or more",
            )


@dataclass(frozen=True, slots=True)
class Unfolded:
    """The tensors that adapters touch, without them; a `Fold` that changes nothing."""

    search: Search

    def rows(self, name: str, start: int, stop: int) -> Block:
        """Rows of the base."""
        return self.search.base.rows(self.search.origins[name], start, stop)

    def exact_rows(self, name: str, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Rows of the base, in float64."""
        return np.concatenate([self.rows(name, int(row), int(row) + 1) for row in rows]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class OntoSource:
    """Rows by GGUF name; a `RowSource` that also hands out rows as they are stored.

    Attributes:
        fold: the base with the adapters folded in.
        model: the file.
        found: what its rows are made of.
        copied: digests of the rows that were copied from a hub, by tensor, first row, and one past the last.
    """

    fold: FoldedRows
    model: BaseGguf
    found: Found
    copied: dict[tuple[str, int, int], bytes] = field(default_factory=dict, repr=False)
    _infos: dict[str, TensorInfo] = field(default_factory=dict, repr=False)
    _touched: dict[str, str] = field(default_factory=dict, repr=False)
    _base: list[OntoSource] = field(default_factory=list, repr=False)

    def file_tensors(self) -> list[FileTensor]:
        """Every tensor of the result, in the file's order."""
        return [*self.model.tensors.values(), *self.found.added]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its GGUF name; its type is that of the numbers it is made from."""
        if self._infos:  # a survey asks for every tensor
            return self._infos
        search, infos = self.found.search, {}
        for tensor in self.file_tensors():
            dtype = "F32"
            if (found := self.found.maps.get(tensor.name)) is not None:
                owner = search.lines.owners(found.lines[found.lines != NONE][:1])[0]
                dtype = search.info(search.lines.strips[owner].tensor).dtype
            infos[tensor.name] = TensorInfo(tensor.name, dtype, tensor.shape, tensor.path, tensor.offset, 0)
        self._infos.update(infos)
        return infos

    @property
    def touched(self) -> Mapping[str, str]:
        """How each tensor that changes was found."""
        if not self._touched:
            lines = self.found.search.lines
            self._touched.update({name: each.describe(lines) for name, each in self.found.maps.items()})
        return self._touched

    @property
    def base(self) -> OntoSource:
        """The same rows without the adapters, at the base's precision."""
        if not self._base:  # it is asked for at every tensor, and knows its own tensors once it was asked
            found = replace(self.found, added=())
            self._base.append(OntoSource(Unfolded(self.found.search), self.model, found))
        return self._base[0]

    def mapped(self, tensor: FileTensor) -> MappedTensor:
        """The tensor as the plan and the writer take it.

        A block of a tensor that is stored transposed holds whole strips of columns: each is read for it.
        """
        group = 1
        found = self.found.maps.get(tensor.name)
        if found is not None:
            lines = self.found.search.lines
            columns = [strip for strip in lines.strips_of(found.lines) if strip.columns]
            matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1
            group = max((min(strip.count, matrix) for strip in columns), default=1)
            group = group if matrix % group == 0 else matrix
        return MappedTensor(tensor.name, tensor.shape, (RowRange(tensor.name, 0, tensor.rows),), group=group)

    def touches(self, name: str, start: int, stop: int) -> bool:
        """Whether the adapters change something in rows [start, stop)."""
        found = self.found.maps.get(name)
        return found is not None and bool((found.lines[start:stop] != NONE).any())

    def packed(
        self, name: str, type_: Type, start: int, stop: int, weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8] | None:
        """Rows [start, stop) as they are stored in the file, if they stay in its type; None if they change.

        Rows that the adapter leaves alone keep their bytes, also beside others that it changes.
        """
        tensor = self.model.tensors.get(name)
        if tensor is None or tensor.type != type_:
            return None
        if not self.touches(name, start, stop):
            with doing("copy"):
                kept_rows = self.model.packed(name, start, stop)
                if self.model.hub is not None:
                    self.copied[name, start, stop] = digest(kept_rows)
                return kept_rows
        kept = self.found.maps[name].lines[start:stop] == NONE
        if tensor.plain or not kept.any():
            return None
        rows = self.model.packed(name, start, stop)
        rows[~kept] = kernels.quantize(
            self.rows(name, start, stop), type_, weights, at=name, first_row=start
        )[~kept]
        return rows

    def keeps(self, name: str, type_: Type) -> bool:
        """Whether a tensor is the file's, byte by byte, if it is written in this type."""
        own = self.model.tensors.get(name)
        return own is not None and own.type == type_ and name not in self.found.maps

    def differs(self, name: str, read: Callable[[int, int], bytes]) -> bool:
        """Whether rows that were copied are not the file's.

        Of a file on a hub its digests are compared, if this process copied the rows: they are not read again.

        Args:
            name: a tensor that the adapters leave alone.
            read: the bytes of rows [start, stop) of the copy.
        """
        known = [(start, stop) for other, start, stop in self.copied if other == name]
        tensor = self.model.tensors[name]
        for start, stop in known or _blocks(tensor.rows, max(COMPARED_NUMBERS // tensor.cols, 1)):
            own, wanted = read(start, stop), self.copied.get((name, start, stop))
            if wanted is None:
                same = own == self.model.packed(name, start, stop).tobytes()
            else:
                same = digest(own) == wanted
            if not same:
                return True
        return False

    def rows(self, name: str, start: int, stop: int) -> Block:
        """Rows [start, stop) of the result as float32."""
        if not self.touches(name, start, stop):
            return self.model.values(name, start, stop)
        return self._rows(name, start, stop, self.fold.rows, np.float32)

    def exact_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows by the slow, independent path, in float64; the numbers must follow one another."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        if not self.touches(name, start, stop):
            return self.model.values(name, start, stop, alone=True).astype(np.float64)

        def exact(tensor: str, first: int, last: int) -> NDArray[np.float64]:
            return self.fold.exact_rows(tensor, np.arange(first, last))

        return self._rows(name, start, stop, exact, np.float64)

    def _rows(
        self, name: str, start: int, stop: int, read: Callable[[str, int, int], Any], kind: type
    ) -> NDArray[Any]:
        found = self.found.maps[name]
        numbers = found.lines[start:stop]
        changed = np.flatnonzero(numbers != NONE)
        tensor = self.model.tensors.get(name) or next(t for t in self.found.added if t.name == name)
        whole = self.found.search.lines.as_rows(numbers) if changed.size == len(numbers) else None
        if whole is not None and found.columns is None and not found.scales and not found.plus:
            rows: NDArray[Any] = read(*whole)
            return rows
        out: NDArray[Any] = np.empty((stop - start, tensor.cols), kind)
        if changed.size == len(numbers):
            self.found.search.lines.gather(read, numbers, out)
        else:
            out[:] = self.model.values(name, start, stop)
            part: NDArray[Any] = np.empty((changed.size, tensor.cols), kind)
            self.found.search.lines.gather(read, numbers[changed], part)
            out[changed] = part
        if found.columns is not None:
            out = np.ascontiguousarray(out[:, found.columns])
        for first, last, scale in found.scales:
            inside = slice(max(first - start, 0), max(last - start, 0))
            out[inside] *= kind(np.float32(scale))
        if found.plus:
            out += kind(found.plus)
        return out
