"""MLX's affine quantization: unsigned integers of 2 to 8 bits, a scale and a bias for each group of inputs.

    NAME.weight  U32 (…, out, in * bits / 32)   the first input in the lowest bits, across the words
    NAME.scales  (…, out, in / group_size)
    NAME.biases  (…, out, in / group_size)

    weight = scales * integer + biases

config.json has "quantization": {"group_size": 64, "bits": 4, "mode": "affine"}, and under the name of a
module what is different there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.numbers import multiply_groups, subtract_groups, unpack
from lorafold.packed.stored import FLOATS, PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Affine:
    """A weight in MLX's affine quantization.

    Attributes:
        info: what it is in the model.
        parts: weight, scales and biases.
        bits: of an integer.
        width: inputs of a group.
    """

    info: TensorInfo
    parts: tuple[str, str, str]
    bits: int
    width: int

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        weight, scale, bias = self.parts
        groups = self.info.cols // self.width
        values = unpack(stored.rows(weight, start, stop).view(np.uint8), self.bits)
        scales = stored.floats(scale, start * groups, stop * groups).reshape(-1, groups)
        biases = stored.floats(bias, start * groups, stop * groups).reshape(-1, groups)
        multiply_groups(values, scales, self.width)
        subtract_groups(values, -biases, self.width)
        return values


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or config.json says something else.
    """
    for name, info in stored.tensors.items():
        if name.endswith(".weight") and info.dtype == "U32":
            yield _tensor(stored, name.removesuffix(".weight"), settings)


def _tensor(stored: Stored, module: str, settings: Mapping[str, Any]) -> Affine:
    own = settings.get(module)
    said = {**settings, **own} if isinstance(own, Mapping) else settings
    bits, width, mode = said.get("bits"), said.get("group_size"), said.get("mode", "affine")
    if bits not in _BITS or not isinstance(width, int) or width < 1 or width % 8 or mode != "affine":
        raise InputError(
            f"{module} has bits {bits}, group_size {width} and mode {mode!r}; expected affine with "
            f"{', '.join(map(str, _BITS))} bits",
            at=f"{stored.config}: quantization",
            fix="use the 16-bit model that it was made from, or `mlx_lm.convert --dequantize`",
        )
    name = f"{module}.weight"
    packed = stored.tensors[name]
    *lead, words = packed.shape
    cols = words * 32 // bits
    if not lead or words * 32 % bits or cols % width:
        raise wrong(
            packed, f"has shape {list(packed.shape)}, which {bits} bits in groups of {width} do not make"
        )
    for end in ("scales", "biases"):
        stored.find(f"{module}.{end}", name, FLOATS, (*lead, cols // width))
    info = stored.logical(name, name, (*lead, cols), _dtype(stored, f"{module}.scales"))
    return Affine(info, (name, f"{module}.scales", f"{module}.biases"), int(bits), width)


def _dtype(stored: Stored, scales: str) -> str | None:
    """The type that MLX itself would unpack to."""
    dtype = stored.tensors[scales].dtype
    return dtype if dtype in ("F16", "BF16") else None
