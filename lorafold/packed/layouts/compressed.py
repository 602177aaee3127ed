"""compressed-tensors, as llm-compressor writes it: packed integers, plain int8, or FP8.

    pack-quantized   NAME.weight_packed I32 (out, in * bits / 32), first input in the lowest bits,
                     NAME.weight_shape I64 [out, in]; integers are signed, stored with half their range added
    int-quantized    NAME.weight I8 (out, in)
    float-quantized  NAME.weight F8_E4M3 (out, in): see `fp8`
    nvfp4-pack-quantized, mxfp4-pack-quantized: see `fp4`

Scales: NAME.weight_scale (out, groups), (out, 1) or one number. Zero points: NAME.weight_zero_point, which
beside packed integers is packed along the outputs. NAME.weight_g_idx: the group of each input (act-order).

    weight = (integer - zero point) * scale
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.layouts import fp4, fp8
from lorafold.packed.layouts.integers import group_index, group_width, scale_rows
from lorafold.packed.numbers import FP8_TABLES, Floats, unpack
from lorafold.packed.stored import FLOATS, PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

_BITS = (2, 4, 8)
"""Other sizes are packed differently by different versions."""
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
    "dense",
)


@dataclass(frozen=True, slots=True)
class Integers:
    """A weight in integers.

    Attributes:
        info: what it is in the model.
        module: name of the stored tensors without their ends.
        bits: of a packed integer; 0 if they are I8, one by one.
        groups: scales of a row; 0 if there is one for all rows.
        width: inputs of a group, if they are in order.
        parts: the stored tensors that it is made of.
    """

    info: TensorInfo
    module: str
    bits: int
    groups: int
    width: int
    parts: tuple[str, ...]

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        weight, scale = self.parts[:2]
        half = 2 ** (self.bits - 1)
        zeros = self._zeros(stored, start, stop)
        if self.bits:
            codes = unpack(stored.rows(weight, start, stop).view(np.uint8), self.bits)
            codes = np.ascontiguousarray(codes[:, : self.info.cols])
            if zeros is None:
                codes -= np.float32(half)
        else:
            codes = stored.rows(weight, start, stop).astype(np.float32)
        if self.groups:
            scales = stored.floats(scale, start * self.groups, stop * self.groups)
            scales = scales.reshape(-1, self.groups)
        else:
            scales = stored.floats(scale, 0, 1).reshape(1, 1)
        index = None
        if (name := f"{self.module}.weight_g_idx") in self.parts:
            index = group_index(stored, name, scales.shape[1], self.width)
        scale_rows(codes, scales, zeros, index)
        return codes

    def _zeros(self, stored: Stored, start: int, stop: int) -> Floats | None:
        """Zero points, with the same half range added as the integers have; None if there are none."""
        name = f"{self.module}.weight_zero_point"
        if name not in self.parts:
            return None
        if stored.tensors[name].dtype == "I8":
            count = self.groups or 1
            first, last = (start * count, stop * count) if self.groups else (0, 1)
            zeros: Floats = stored.flat(name, first, last).astype(np.float32).reshape(-1, count)
            return zeros + np.float32(2 ** (self.bits - 1)) if self.bits else zeros
        each = 32 // self.bits
        first = start // each
        words = stored.rows(name, first, -(-stop // each))
        across = unpack(np.ascontiguousarray(words.T).view(np.uint8), self.bits)
        return np.ascontiguousarray(across[:, start - first * each : stop - first * each].T)


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or config.json says something else.
    """
    schemes = [
        scheme["weights"]
        for scheme in (settings.get("config_groups") or {}).values()
        if isinstance(scheme, Mapping) and isinstance(scheme.get("weights"), Mapping)
    ]
    formats = {str(settings.get("format", "dense"))} | {
        str(scheme["format"])
        for scheme in (settings.get("config_groups") or {}).values()
        if isinstance(scheme, Mapping) and scheme.get("format")
    }
    if unknown := sorted(formats - {*_FORMATS}):
        raise _other(stored, f"the format {unknown[0]!r} of compressed-tensors is not read")
    if (settings.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _other(stored, "compressed sparse weights are not read")
    for name, info in stored.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" and info.dtype == "U8":
            yield fp4.tensor(stored, module)
        elif leaf == "weight_packed":
            yield _packed(stored, module, schemes)
        elif leaf == "weight" and info.dtype == "I8":
            yield _plain(stored, module, schemes)
        elif leaf == "weight" and info.dtype in FP8_TABLES:
            yield fp8.tensor(stored, name, _block(schemes))


def _other(stored: Stored, problem: str) -> InputError:
    return InputError(
        problem,
        at=f"{stored.config}: quantization_config",
        fix="use the 16-bit model that it was made from, or decompress it with compressed-tensors",
    )


def _block(schemes: list[Mapping[str, Any]]) -> tuple[int, int] | None:
    for scheme in schemes:
        size = scheme.get("block_structure")
        if isinstance(size, list) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def _packed(stored: Stored, module: str, schemes: list[Mapping[str, Any]]) -> Integers:
    name = f"{module}.weight_packed"
    packed = stored.find(name, name, ("I32",))
    told = stored.find(f"{module}.weight_shape", name, ("I64", "I32"), (2,))
    rows, cols = map(int, stored.whole(told.name))
    fitting = [
        (int(scheme["num_bits"]), scheme)
        for scheme in schemes
        if scheme.get("num_bits") in _BITS
        and packed.shape == (rows, -(-cols * int(scheme["num_bits"]) // 32))
    ]
    if not fitting or rows < 1 or cols < 1:
        said = ", ".join(str(scheme.get("num_bits")) for scheme in schemes) or "nothing"
        raise wrong(
            packed,
            f"has shape {list(packed.shape)} and weight_shape [{rows}, {cols}]; num_bits in config.json "
            f"says {said}, expected one of {', '.join(map(str, _BITS))} that fits",
        )
    bits, scheme = fitting[0]
    return _integers(stored, name, module, (rows, cols), bits, scheme)


def _plain(stored: Stored, module: str, schemes: list[Mapping[str, Any]]) -> Integers:
    name = f"{module}.weight"
    shape = stored.tensors[name].shape
    return _integers(stored, name, module, shape, 0, next(iter(schemes), {}))


def _integers(
    stored: Stored, name: str, module: str, shape: tuple[int, ...], bits: int, scheme: Mapping[str, Any]
) -> Integers:
    rows, cols = shape
    scales = stored.find(f"{module}.weight_scale", name, FLOATS)
    if math.prod(scales.shape) == 1:
        groups = 0
    elif scales.shape in ((rows,), (rows, *scales.shape[1:2])):
        groups = scales.shape[1] if len(scales.shape) == 2 else 1
    else:
        raise wrong(scales, f"has shape {list(scales.shape)}, expected [{rows}, groups]")
    size = scheme.get("group_size") if scheme.get("strategy") == "group" else None
    width = group_width(stored, scales.name, cols, groups or 1, size if isinstance(size, int) else None)
    parts = [name, scales.name]
    if bits:
        parts.append(f"{module}.weight_shape")
    parts += _zero_point(stored, name, module, (rows, groups), bits, scheme)
    if stored.has(index := f"{module}.weight_g_idx"):
        parts.append(stored.find(index, name, ("I32",), (cols,)).name)
    parts += [end for end in (f"{module}.input_scale", f"{module}.input_zero_point") if stored.has(end)]
    return Integers(
        stored.logical(name, f"{module}.weight", (rows, cols)), module, bits, groups, width, tuple(parts)
    )


def _zero_point(
    stored: Stored, name: str, module: str, shape: tuple[int, int], bits: int, scheme: Mapping[str, Any]
) -> list[str]:
    """The zero points' name, if there are any."""
    zero, (rows, groups) = f"{module}.weight_zero_point", shape
    if not stored.has(zero) and scheme.get("symmetric", True):
        return []
    info = stored.find(zero, name, ("I8", "I32"))
    wanted = (rows, groups) if groups else (1,)
    if info.dtype == "I32" and bits and groups:
        wanted = (-(-rows * bits // 32), groups)
    elif info.dtype == "I32":
        raise wrong(info, "is I32, expected I8")
    if math.prod(info.shape) != math.prod(wanted) or info.shape[:1] != wanted[:1]:
        raise wrong(info, f"has shape {list(info.shape)}, expected {list(wanted)}")
    return [zero]
