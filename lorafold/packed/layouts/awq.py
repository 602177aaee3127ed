"""AWQ in its GEMM layout: 4-bit integers, eight neighbouring outputs in a word, in an order of their own.

NAME.qweight  I32 (in, out / 8)
NAME.qzeros   I32 (groups, out / 8)
NAME.scales   F16 (groups, out)

weight[out, in] = (qweight[in, out] - qzeros[g, out]) * scales[g, out],  g = in // group_size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.layouts.integers import group_width, scale_rows
from lorafold.packed.numbers import Floats
from lorafold.packed.stored import FLOATS, PackedTensor, Stored, widen, wrong
from lorafold.safetensors_file import TensorInfo

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output, of eight, that lies in each four bits of a word, from the lowest."""


@dataclass(frozen=True, slots=True)
class Awq:
    """A weight in AWQ's GEMM layout.

    Attributes:
        info: what it is in the model.
        module: name of the stored tensors without their ends.
    """

    info: TensorInfo
    module: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""
        return tuple(f"{self.module}.{end}" for end in ("qweight", "qzeros", "scales"))

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`. A row is a column of the stored tensors."""
        weight, zero, scale = self.parts
        codes = _unpack(stored, weight, start, stop)
        scales = widen(stored.columns(scale, start, stop), stored.tensors[scale].dtype)
        scale_rows(codes, np.ascontiguousarray(scales.T), _unpack(stored, zero, start, stop), None)
        return codes


def _unpack(stored: Stored, name: str, start: int, stop: int) -> Floats:
    """Integers of outputs [start, stop), (outputs, stored rows)."""
    first = start // 8
    words = stored.columns(name, first, -(-stop // 8))
    high, wide = words.shape
    # (rows, words, 4 bytes) -> (words, 4 bytes, rows), so that whole rows are written below.
    packed = np.ascontiguousarray(words.view(np.uint8).reshape(high, wide, 4).transpose(1, 2, 0))
    codes = np.empty((wide, 8, high), np.float32)
    for place, output in enumerate(ORDER):
        half = packed[:, place // 2]
        codes[:, output] = half >> 4 if place % 2 else half & 15
    return codes.reshape(wide * 8, high)[start - first * 8 : stop - first * 8]


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or config.json says something else.
    """
    version = str(settings.get("version", "gemm")).lower()
    if version != "gemm" or settings.get("bits", 4) != 4:
        raise InputError(
            f"AWQ in {settings.get('bits', 4)} bits and the layout {version!r} is not read, "
            "expected 4 and gemm",
            at=f"{stored.config}: quantization_config",
            fix="use a copy in the layout gemm, or the model that it was quantized from",
        )
    size = settings.get("group_size")
    for name in stored.tensors:
        if name.endswith(".qweight"):
            yield _tensor(stored, name.removesuffix(".qweight"), size if isinstance(size, int) else None)


def _tensor(stored: Stored, module: str, size: int | None) -> Awq:
    name = f"{module}.qweight"
    packed = stored.find(name, name, ("I32",))
    if len(packed.shape) != 2:
        raise wrong(packed, f"has shape {list(packed.shape)}, expected [in, out / 8]")
    cols, rows = packed.shape[0], packed.shape[1] * 8
    scales = stored.find(f"{module}.scales", name, FLOATS)
    groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if scales.shape != (groups, rows):
        raise wrong(scales, f"has shape {list(scales.shape)}, expected [groups, {rows}]")
    stored.find(f"{module}.qzeros", name, ("I32",), (groups, packed.shape[1]))
    group_width(stored, scales.name, cols, groups, size)
    return Awq(stored.logical(name, f"{module}.weight", (rows, cols)), module)
