"""The tensors of a plan as lines of text: where each will stand, and how many are alike.

A model has hundreds of tensors, so `tensor_summary` joins those that differ only in their layer;
`tensor_listing` names each with its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lorafold.export.gguf.header import GgufFile
from lorafold.export.survival.rows import kind_of
from lorafold.progress import Lines


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor as it will stand in a file.

    Attributes:
        file: the file's name.
        name: the tensor's name there.
        shape: rows first, columns last.
        type: ggml's or safetensors' name of its type.
        nbytes: bytes, without padding.
        offset: bytes from the beginning of the file.
        model: the model of which the file is all or a part.
    """

    file: str
    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    offset: int
    model: str


def tensors_of(files: Iterable[GgufFile]) -> list[PlannedTensor]:
    """The tensors of GGUF files."""
    return [
        PlannedTensor(
            file=file.name,
            name=typed.tensor.name,
            shape=typed.tensor.shape,
            type=typed.type.name,
            nbytes=typed.nbytes,
            offset=len(file.header) + typed.offset,
            model=file.joined or file.name,
        )
        for file in files
        for typed in file.tensors
    ]


def tensor_summary(tensors: Iterable[PlannedTensor]) -> Lines:
    """Lines for each model: its tensors, `*` for the number of a layer or expert, alike ones counted."""
    groups: dict[str, dict[tuple[str, str, tuple[int, ...]], list[int]]] = {}
    for tensor in tensors:
        key = (kind_of(tensor.name), tensor.type, tensor.shape)
        groups.setdefault(tensor.model, {}).setdefault(key, []).append(tensor.nbytes)
    lines: Lines = []
    for model, alike in groups.items():
        total = sum(len(sizes) for sizes in alike.values())
        lines.append(("tensors", f"{total} in {model}; --tensors lists each with its offset"))
        rows = [
            (f"  {name}", [f"{len(sizes)} ×", _shape(shape), kind, f"{sum(sizes):,} bytes"])
            for (name, kind, shape), sizes in alike.items()
        ]
        lines += _aligned(rows)
    return lines


def tensor_listing(tensors: Iterable[PlannedTensor]) -> Lines:
    """Lines for each file: every tensor with its shape, type, bytes and offset."""
    files: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        files.setdefault(tensor.file, []).append(tensor)
    lines: Lines = []
    for file, inside in files.items():
        lines.append(("tensors", f"{len(inside)} in {file}"))
        rows = [
            (f"  {one.name}", [_shape(one.shape), one.type, f"{one.nbytes:,} bytes", f"at {one.offset:,}"])
            for one in inside
        ]
        lines += _aligned(rows)
    return lines


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _aligned(rows: list[tuple[str, list[str]]]) -> Lines:
    """The cells of each column to the right, one below the other."""
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    return [
        (label, "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
        for label, cells in rows
    ]
