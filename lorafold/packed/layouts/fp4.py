"""FP4 with two levels of scales, or with powers of two, as compressed-tensors packs it.

nvfp4-pack-quantized   NAME.weight_packed U8 (out, in / 2), the first of a pair in the lower half,
                       NAME.weight_scale F8_E4M3 (out, in / 16), NAME.weight_global_scale F32 (1)
mxfp4-pack-quantized   the same with NAME.weight_scale U8 (out, in / 32), exponents plus 127

weight = number * (scale / global scale)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafold.packed.numbers import FP4, look_up_pairs, multiply_groups, pair_table
from lorafold.packed.stored import Stored, wrong
from lorafold.safetensors_file import TensorInfo

_WIDTHS = {"F8_E4M3": 16, "U8": 32, "F8_E8M0": 32}
"""How many weights share a scale of each type."""
_PAIRS = pair_table(FP4, "low")


@dataclass(frozen=True, slots=True)
class Fp4:
    """A weight in FP4.

    Attributes:
        info: what it is in the model.
        parts: numbers, scales, and the scale of the scales if there is one.
        width: weights that share a scale.
        doubled: whether the scales have a scale.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    width: int
    doubled: bool

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        groups = self.info.cols // self.width
        values = look_up_pairs(stored.rows(self.parts[0], start, stop), _PAIRS)
        scales = stored.floats(self.parts[1], start * groups, stop * groups).reshape(-1, groups)
        with np.errstate(divide="ignore", invalid="ignore"):  # what is no number is refused later
            if self.doubled:
                scales = scales / stored.floats(self.parts[2], 0, 1)
            multiply_groups(values, scales, self.width)
        return values


def tensor(stored: Stored, module: str) -> Fp4:
    """One tensor, from headers.

    Raises:
        InputError: a part is missing or does not fit.
    """
    name = f"{module}.weight_packed"
    packed = stored.find(name, name, ("U8",))
    scales = stored.find(f"{module}.weight_scale", name, tuple(_WIDTHS))
    width = _WIDTHS[scales.dtype]
    rows, half = packed.shape if len(packed.shape) == 2 else (0, 0)
    if not rows or 2 * half % width or scales.shape != (rows, 2 * half // width):
        raise wrong(
            scales,
            f"has shape {list(scales.shape)}, which does not fit {name!r} of {list(packed.shape)} in groups "
            f"of {width} weights",
        )
    parts, doubled = [name, scales.name], scales.dtype == "F8_E4M3"
    if doubled:
        parts.append(stored.find(f"{module}.weight_global_scale", name, ("F32",), (1,)).name)
    if stored.has(of_inputs := f"{module}.input_global_scale"):
        parts.append(of_inputs)
    info = stored.logical(name, f"{module}.weight", (rows, 2 * half))
    return Fp4(info, tuple(parts), width, doubled)
