"""torchao as transformers saves it: integers of 4 or 8 bits, and FP8, with a scale for each block.

A weight `M.weight` is stored as `M._weight_qdata`, `M._weight_scale` and, for some, `M._weight_zero_point`.
Which class of torchao they belong to, and its blocks, stand as JSON in the file's own metadata, under the
name of the weight (torchao/prototype/safetensors):

    Int8Tensor, IntxUnpackedToInt8Tensor   (qdata - zero_point) * scale, a byte for each integer
    Float8Tensor                           qdata * scale
    Int4Tensor                             code * scale + zero_point, codes from -8 to 7

Scales stand in the order of their blocks, those of an Int4Tensor as (groups, rows); two of its codes lie in a
byte, the first in the lower half (FBGEMM's `int4_row_quantize_zp` and `pack_int4`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.layouts.fp8 import Fp8
from lorafold.packed.numbers import look_up_pairs, multiply_groups, pair_table, subtract_groups
from lorafold.packed.stored import DOWNLOAD_AGAIN, FLOATS, PackedTensor, Stored, widen, wrong
from lorafold.safetensors_file import TensorInfo, read_metadata

_QDATA = re.compile(r"(?P<module>.*)\._(?P<own>\w+)_qdata")
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}
_SIGNED = pair_table(np.array([*range(8), *range(-8, 0)], np.float32), "low")
# Scales of activations, which say nothing of the weights.
_ACTIVATIONS = ("act_quant_scale", "act_quant_zero_point")


@dataclass(frozen=True, slots=True)
class BlockedIntegers:
    """A tensor of 8-bit integers.

    Attributes:
        info: what it is in the model.
        parts: the integers, the scales, and the zero points if there are some.
        grid: rows and columns of scales that each matrix has.
        block: rows and columns of weights that share a scale.
        shifted: whether there are zero points.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    grid: tuple[int, int]
    block: tuple[int, int]
    shifted: bool

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        values: NDArray[np.float32] = stored.rows(self.parts[0], start, stop).astype(np.float32)
        lines = np.arange(start, stop) // self.block[0]
        if self.shifted:
            subtract_groups(values, stored.scales(self.parts[2], lines, self.grid[1]), self.block[1])
        multiply_groups(values, stored.scales(self.parts[1], lines, self.grid[1]), self.block[1])
        return values


@dataclass(frozen=True, slots=True)
class GroupedInt4:
    """A tensor of 4-bit integers.

    Attributes:
        info: what it is in the model.
        parts: the integers, the scales, the zero points.
        width: columns that share a scale.
    """

    info: TensorInfo
    parts: tuple[str, str, str]
    width: int

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        values = look_up_pairs(stored.rows(self.parts[0], start, stop).view(np.uint8), _SIGNED)
        scales, zeros = (
            np.ascontiguousarray(widen(stored.columns(name, start, stop), stored.tensors[name].dtype).T)
            for name in self.parts[1:]
        )
        multiply_groups(values, scales, self.width)
        subtract_groups(values, -zeros, self.width)
        return values


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or a class of torchao that is not read.
    """
    del settings  # they say how it was quantized, the file how it is stored
    told: dict[str, str] = {}
    for file in dict.fromkeys(info.file for info in stored.tensors.values()):
        told |= read_metadata(file)
    for name in stored.tensors:
        if (found := _QDATA.fullmatch(name)) is not None:
            yield _tensor(stored, name, f"{found['module']}.{found['own']}", told)


def _tensor(stored: Stored, name: str, own: str, told: Mapping[str, str]) -> PackedTensor:
    kind, data = _description(stored, name, own, told)
    if (make := _KINDS.get(kind)) is None:
        raise InputError(
            f"{own!r} is a {kind} of torchao, which cannot be read; these can: {', '.join(_KINDS)}",
            at=stored.tensors[name].file,
            fix="use its 16-bit original",
        )
    prefix = name.removesuffix("qdata")
    if stored.has(f"{prefix}act_pre_scale"):
        raise InputError(
            f"{own!r} belongs to activations that are scaled first, which no GGUF does",
            at=stored.tensors[name].file,
            fix="use its 16-bit original",
        )
    return make(stored, prefix, own, data)


def _description(
    stored: Stored, name: str, own: str, told: Mapping[str, str]
) -> tuple[str, Mapping[str, Any]]:
    """Class, attributes and parts of a weight, from the file's metadata."""
    info = stored.tensors[name]
    try:
        found = json.loads(told[own])
        return str(found["_type"]), {"parts": found.get("_tensor_data_names"), **found["_data"]}
    except KeyError:
        problem = f"its metadata does not say what {own!r} is"
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"its metadata of {own!r} makes no sense ({error})"
    raise InputError(problem, at=info.file, fix=DOWNLOAD_AGAIN)


def _dtype(data: Mapping[str, Any]) -> str | None:
    """The 16-bit type that torchao unpacks to, if the file says it."""
    said = data.get("dtype")
    return _DTYPES.get(str(said.get("_data"))) if isinstance(said, Mapping) else None


def _parts(stored: Stored, prefix: str, *needed: str) -> tuple[str, ...]:
    """Names of the stored parts: those that are needed, and others that say nothing of the weights."""
    others = (f"{prefix}{end}" for end in _ACTIVATIONS)
    return (*(f"{prefix}{end}" for end in needed), *(name for name in others if stored.has(name)))


def _blocks(info: TensorInfo, scales: TensorInfo, data: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of weights that share a scale."""
    said = data.get("block_size")
    sizes = said if isinstance(said, list) and all(type(each) is int and each > 0 for each in said) else []
    fits = len(info.shape) == len(sizes) > 1 and all(
        size % each == 0 for size, each in zip(info.shape, sizes, strict=True)
    )
    if fits and len(sizes) == 3 and sizes[0] != 1:
        fits = False
    if not fits or math.prod(scales.shape) * math.prod(sizes) != math.prod(info.shape):
        raise wrong(
            scales,
            f"has shape {list(scales.shape)}, which blocks of {said} (the file's metadata) do not make of "
            f"{list(info.shape)}",
        )
    return sizes[-2], sizes[-1]


def _integers(stored: Stored, prefix: str, own: str, data: Mapping[str, Any]) -> PackedTensor:
    info = stored.find(f"{prefix}qdata", own, ("I8",))
    scales = stored.find(f"{prefix}scale", own, FLOATS)
    block = _blocks(info, scales, data)
    needed = ["qdata", "scale"]
    listed = data["parts"] if isinstance(data["parts"], list) else []
    if shifted := "zero_point" in listed or stored.has(f"{prefix}zero_point"):
        stored.find(f"{prefix}zero_point", own, ("I8", *FLOATS), scales.shape)
        needed.append("zero_point")
    grid = info.shape[-2] // block[0], info.shape[-1] // block[1]
    logical = stored.logical(info.name, own, info.shape, _dtype(data))
    return BlockedIntegers(logical, _parts(stored, prefix, *needed), grid, block, shifted)


def _float8(stored: Stored, prefix: str, own: str, data: Mapping[str, Any]) -> PackedTensor:
    info = stored.find(f"{prefix}qdata", own, ("F8_E4M3", "F8_E5M2"))
    scales = stored.find(f"{prefix}scale", own, FLOATS)
    block = _blocks(info, scales, data)
    grid = info.shape[-2] // block[0], info.shape[-1] // block[1]
    logical = stored.logical(info.name, own, info.shape, _dtype(data))
    return Fp8(logical, _parts(stored, prefix, "qdata", "scale"), grid, block)


def _int4(stored: Stored, prefix: str, own: str, data: Mapping[str, Any]) -> PackedTensor:
    info = stored.find(f"{prefix}qdata", own, ("I8", "U8"))
    said = data.get("block_size")
    sizes = said if isinstance(said, list) and len(said) == 2 else [0, 0]
    width = sizes[1] if type(sizes[1]) is int else 0
    if len(info.shape) != 2 or width < 2 or sizes[0] != 1 or info.shape[1] * 2 % width:
        raise wrong(
            info,
            f"has shape {list(info.shape)}, expected two dimensions and blocks of {said} (the file's "
            "metadata)",
        )
    rows, cols = info.shape[0], info.shape[1] * 2
    scales = stored.find(f"{prefix}scale", own, FLOATS, (cols // width, rows))
    stored.find(f"{prefix}zero_point", own, FLOATS, scales.shape)
    logical = stored.logical(info.name, own, (rows, cols), scales.dtype if scales.dtype != "F32" else None)
    return GroupedInt4(logical, (info.name, scales.name, f"{prefix}zero_point"), width)


_KINDS: dict[str, Callable[[Stored, str, str, Mapping[str, Any]], PackedTensor]] = {
    "Int8Tensor": _integers,
    "IntxUnpackedToInt8Tensor": _integers,
    "Float8Tensor": _float8,
    "Int4Tensor": _int4,
}
