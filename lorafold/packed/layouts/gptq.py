"""GPTQ, as AutoGPTQ and GPTQModel write it: integers of 2, 3, 4 or 8 bits, packed along the inputs.

    NAME.qweight  I32 (in * bits / 32, out)       the first input in the lowest bits
    NAME.qzeros   I32 (groups, out * bits / 32)   zero points, less one in version 1
    NAME.scales   F16 (groups, out)
    NAME.g_idx    I32 (in)                        the group of each input; any order with desc_act

    weight[out, in] = scales[g, out] * (qweight[in, out] - zero[g, out]),  g = g_idx[in]

Version 1 stores zero - 1. If a zero point is 0, that does not fit: GPTQModel borrows from the next number of
the word and pays it back, other programs read the number in different ways. So it is refused unless GPTQModel
wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.layouts.integers import group_index, group_width, scale_rows
from lorafold.packed.numbers import Floats, unpack
from lorafold.packed.stored import FLOATS, PackedTensor, Stored, widen, wrong
from lorafold.safetensors_file import TensorInfo

_BITS = (2, 3, 4, 8)
RUN = 32
"""So many integers fill whole words, whatever their bits."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """A weight in GPTQ.

    Attributes:
        info: what it is in the model.
        module: name of the stored tensors without their ends.
        bits: of an integer.
        width: inputs of a group, if they are in order.
        offset: what a stored zero point lacks.
        borrows: whether zero points of 0 were stored by borrowing.
        ordered: whether there is no g_idx.
    """

    info: TensorInfo
    module: str
    bits: int
    width: int
    offset: int
    borrows: bool
    ordered: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""
        ends = ("qweight", "qzeros", "scales") + (() if self.ordered else ("g_idx",))
        return tuple(f"{self.module}.{end}" for end in ends)

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`. A row is a column of the stored tensors."""
        name = f"{self.module}.scales"
        stored_scales = stored.columns(name, start, stop)
        scales = np.ascontiguousarray(widen(stored_scales, stored.tensors[name].dtype).T)
        words = np.ascontiguousarray(stored.columns(f"{self.module}.qweight", start, stop).T)
        codes = unpack(words.view(np.uint8), self.bits)
        groups = None
        if not self.ordered:
            groups = group_index(stored, f"{self.module}.g_idx", scales.shape[1], self.width)
        scale_rows(codes, scales, self._zeros(stored, start, stop), groups)
        return codes

    def _zeros(self, stored: Stored, start: int, stop: int) -> Floats:
        """Zero points of rows [start, stop), (rows, groups)."""
        name = f"{self.module}.qzeros"
        first = start // RUN * RUN
        last = min(-(-stop // RUN) * RUN, self.info.rows)
        words = stored.columns(name, first * self.bits // 32, -(-last * self.bits // 32))
        if self.borrows:
            one = sum(1 << at for at in range(0, 32, self.bits))
            words = (words.view(np.uint32) + np.uint32(one)).view(np.int32)
        zeros = unpack(np.ascontiguousarray(words).view(np.uint8), self.bits)[:, start - first : stop - first]
        offset = 0 if self.borrows else self.offset
        if offset and zeros.max(initial=0) == 2**self.bits - 1:
            raise wrong(
                stored.tensors[name],
                f"holds the zero point {2**self.bits}, out of the range of {self.bits} bits: programs read "
                "it in different ways",
                "save the model again with GPTQModel, or use the model that it was quantized from",
            )
        return np.ascontiguousarray(zeros.T) + np.float32(offset)


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or config.json says something else.
    """
    default = _number(stored, settings, "bits")
    version = str(settings.get("checkpoint_format", settings.get("format", "gptq")))
    if version not in ("gptq", "gptq_v2"):
        raise InputError(
            f"checkpoint_format {version!r} is not read, expected gptq or gptq_v2",
            at=f"{stored.config}: quantization_config",
            fix="save the model again with GPTQModel in the format gptq, or use its 16-bit original",
        )
    meta = settings.get("meta") or {}
    writer = str(meta.get("quantizer") or "") if isinstance(meta, Mapping) else ""
    # Three bits do not divide a word, and GPTQModel's versions differ there.
    borrows = version == "gptq" and default != 3 and "gptqmodel" in writer.lower()
    for name in stored.tensors:
        if name.endswith(".qweight"):
            yield _tensor(stored, name.removesuffix(".qweight"), default, settings, version, borrows)


def _number(stored: Stored, settings: Mapping[str, Any], key: str) -> int:
    bits = settings.get(key)
    if bits not in _BITS:
        raise InputError(
            f"{key} is {bits!r}, expected {', '.join(map(str, _BITS))}",
            at=f"{stored.config}: quantization_config",
            fix="download the config.json that belongs to these weights",
        )
    return int(bits)


def _tensor(
    stored: Stored, module: str, bits: int, settings: Mapping[str, Any], version: str, borrows: bool
) -> Gptq:
    name = f"{module}.qweight"
    packed = stored.find(name, name, ("I32",))
    if len(packed.shape) != 2 or packed.shape[0] * 32 % bits:
        raise wrong(packed, f"has shape {list(packed.shape)}, expected [in * {bits} / 32, out]")
    cols, rows = packed.shape[0] * 32 // bits, packed.shape[1]
    scales = stored.find(f"{module}.scales", name, FLOATS)
    groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if scales.shape != (groups, rows):
        raise wrong(scales, f"has shape {list(scales.shape)}, expected [groups, {rows}]")
    stored.find(f"{module}.qzeros", name, ("I32",), (groups, rows * bits // 32))
    ordered = not stored.has(f"{module}.g_idx")
    if not ordered and (index := stored.find(f"{module}.g_idx", name, ("I32",))).shape != (cols,):
        raise wrong(
            index,
            f"has shape {list(index.shape)}, but {bits} bits (quantization_config) make {cols} inputs of "
            f"{name!r}",
        )
    size = settings.get("group_size")
    width = group_width(stored, scales.name, cols, groups, size if isinstance(size, int) else None)
    info = stored.logical(name, f"{module}.weight", (rows, cols))
    return Gptq(info, module, bits, width, 1 if version == "gptq" else 0, borrows, ordered)
