"""What a packed base's files hold, read as it is: integers, bytes, scales; by rows, by columns, or whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.numbers import FP8_TABLES, power_of_two
from lorafold.safetensors_file import DTYPE_BITS, TensorInfo
from lorafold.weights import Checkpoint

DOWNLOAD_AGAIN = "download the folder again, with all its files"

_NUMPY = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U32": "<u4",
    "I8": "i1", "U8": "u1",
    "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1",
}  # fmt: skip
"""How each type is handed out: floats that numpy lacks as their bits."""

FLOATS = ("F32", "F16", "BF16")
SCALES = (*FLOATS, "F8_E8M0", "F8_E4M3")

_CHUNK = 1 << 20
"""Bytes that are read at once on the way to a few columns."""
SKIP = 1 << 14
"""A gap between two pieces that is longer than this is jumped over; a shorter one is read and thrown away."""


class PackedTensor(Protocol):
    """One tensor of the model, as its rows are made from the stored ones."""

    @property
    def info(self) -> TensorInfo:
        """Name, 16-bit type and shape that the tensor has in the model."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of the tensor seen as 2-D: float32, fresh."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a packed base as they lie in its files.

    Attributes:
        checkpoint: the files.
        dtype: safetensors' name of the 16-bit type that the model is written in if its weights are unpacked.
    """

    checkpoint: Checkpoint
    dtype: str

    @property
    def config(self) -> Path:
        """The file that says how the tensors are packed."""
        return self.checkpoint.folder / "config.json"

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor by name."""
        return self.checkpoint.tensors

    def has(self, name: str) -> bool:
        """Whether there is a stored tensor of that name."""
        return name in self.checkpoint.tensors

    def find(
        self, name: str, of: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
    ) -> TensorInfo:
        """A tensor that another one cannot be unpacked without.

        Args:
            name: its name.
            of: the tensor that needs it.
            dtypes: the types that it may have.
            shape: the shape that it must have.

        Raises:
            InputError: it is missing, or of another type or shape.
        """
        info = self.checkpoint.tensors.get(name)
        if info is None:
            raise InputError(
                f"tensor {name!r} is missing, without which {of!r} cannot be unpacked",
                at=self.checkpoint.folder,
                fix=DOWNLOAD_AGAIN,
            )
        if info.dtype not in dtypes or (shape is not None and info.shape != shape):
            wanted = " or ".join(dtypes) + (f" {list(shape)}" if shape is not None else "")
            raise wrong(info, f"is {info.dtype} {list(info.shape)}, expected {wanted}")
        return info

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of a tensor seen as 2-D, in its own type (`_NUMPY`)."""
        info = self.checkpoint.tensors[name]
        cols = info.cols
        return self.flat(name, start * cols, stop * cols).reshape(stop - start, cols)

    def flat(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a tensor, in its own type (`_NUMPY`)."""
        info = self.checkpoint.tensors[name]
        out = np.empty(stop - start, _NUMPY[info.dtype])
        size = DTYPE_BITS[info.dtype] // 8
        self.checkpoint.read_bytes(name, start * size, out.view(np.uint8).data)
        return out

    def whole(self, name: str) -> NDArray[Any]:
        """A small tensor in one piece, flat, in its own type."""
        return self.flat(name, 0, math.prod(self.checkpoint.tensors[name].shape))

    def floats(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Elements [start, stop) of a tensor of scales as float32."""
        return widen(self.flat(name, start, stop), self.checkpoint.tensors[name].dtype)

    def scales(self, name: str, lines: NDArray[np.intp], width: int) -> NDArray[np.float32]:
        """Lines of a grid of scales as float32, of which so many stand in a line.

        Args:
            name: the tensor of scales.
            lines: the line that each row of weights has; they rise.
            width: scales in a line.
        """
        first, last = int(lines[0]), int(lines[-1]) + 1
        return self.floats(name, first * width, last * width).reshape(-1, width)[lines - first]

    def bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of a tensor, whatever its type says."""
        out = np.empty(stop - start, np.uint8)
        self.checkpoint.read_bytes(name, start, out.data)
        return out

    def columns(
        self,
        name: str,
        start: int,
        stop: int,
        rows: tuple[int, int] | None = None,
        cols: int | None = None,
    ) -> NDArray[Any]:
        """Some columns of a tensor, in its own type.

        Args:
            name: the tensor.
            start: first column.
            stop: one past the last column.
            rows: the first row and one past the last; all by default.
            cols: columns that the tensor has, if it is to be seen with others than its last dimension.
        """
        info = self.checkpoint.tensors[name]
        cols = info.cols if cols is None else cols
        first, last = (0, math.prod(info.shape) // cols) if rows is None else rows
        kind = np.dtype(_NUMPY[info.dtype])
        out = np.empty((last - first, stop - start), kind)
        width = cols * kind.itemsize
        if width - out.shape[1] * kind.itemsize > SKIP:
            for index, row in enumerate(range(first, last)):
                at = row * width + start * kind.itemsize
                self.checkpoint.read_bytes(name, at, out[index].view(np.uint8).data)
            return out
        step = max(1, _CHUNK // width)
        chunk = np.empty((step, cols), kind)
        for row in range(first, last, step):
            part = chunk[: min(step, last - row)]
            self.checkpoint.read_bytes(name, row * width, part.reshape(-1).view(np.uint8).data)
            out[row - first : row - first + len(part)] = part[:, start:stop]
        return out

    def logical(self, of: str, name: str, shape: tuple[int, ...], dtype: str | None = None) -> TensorInfo:
        """The entry of a tensor of the model.

        Args:
            of: the stored tensor that holds its numbers.
            name: its own name.
            shape: its own shape.
            dtype: its 16-bit type, if the file says it.
        """
        stored, kind = self.checkpoint.tensors[of], dtype or self.dtype
        return TensorInfo(
            name, kind, shape, stored.file, stored.offset, math.prod(shape) * DTYPE_BITS[kind] // 8
        )


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored scales as float32, exactly; `dtype` is safetensors' name."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F8_E8M0", "U8"):
        return power_of_two(stored)
    if dtype in FP8_TABLES:
        return np.take(FP8_TABLES[dtype], stored)
    plain: NDArray[np.float32] = stored.astype(np.float32)
    return plain


def wrong(info: TensorInfo, problem: str, fix: str = DOWNLOAD_AGAIN) -> InputError:
    """A stored tensor that cannot be unpacked."""
    return InputError(f"tensor {info.name!r} {problem}", at=info.file, fix=fix)
