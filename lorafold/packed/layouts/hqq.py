"""HQQ, as hqq 0.2 and transformers from 4.47 on write it in safetensors: integers of 2, 4 or 8 bits by group.

A weight [out, in] is seen as lines of one group each, (out * in / group_size, group_size): `axis` 1.

    NAME.W_q         U8 (lines * bits / 8, group_size)   the first lines in the highest bits, the next below
    NAME.scale       (lines, 1)
    NAME.zero        (lines, 1)
    NAME.shape       I64 (2)
    NAME.nbits, NAME.group_size, NAME.axis   I32 ()
    NAME.packing     U8: the letters of "8bit_u8", "4bit_u8", "2bit_u8"

    weight = scale * (integer - zero)

With view_as_float W_q has the same bytes under a type of floats. What else stands beside it is HQQ's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.packed.stored import FLOATS, PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

_PACKINGS = {"8bit_u8": 8, "4bit_u8": 4, "2bit_u8": 2}
_NEEDED = ("W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing")
_BESIDE = (
    *("compute_dtype", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "offload_meta"),
    *("encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"),
)
_MOST = 64  # numbers or letters of a part that only describes
_ORIGINAL = "use the 16-bit model that it was made from"


@dataclass(frozen=True, slots=True)
class Hqq:
    """A weight in HQQ.

    Attributes:
        info: what it is in the model.
        parts: the stored tensors: integers, scales, zeros, and what describes them.
        bits: of an integer.
        width: inputs of a group.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    bits: int
    width: int

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        groups = self.info.cols // self.width
        first, last = start * groups, stop * groups
        values = self._integers(stored, first, last).astype(np.float32)
        values -= stored.floats(self.parts[2], first, last)[:, None]
        values *= stored.floats(self.parts[1], first, last)[:, None]
        return values.reshape(stop - start, self.info.cols)

    def _integers(self, stored: Stored, first: int, last: int) -> NDArray[np.uint8]:
        """Lines [first, last) of the integers; a byte holds lines that are far apart."""
        apart = self.info.rows * self.info.cols // self.width * self.bits // 8
        lines = np.empty((last - first, self.width), np.uint8)
        for part in range(first // apart, -(-last // apart)):
            begin, end = max(first, part * apart), min(last, (part + 1) * apart)
            at = (begin - part * apart) * self.width
            read = stored.bytes(self.parts[0], at, at + (end - begin) * self.width)
            shift = np.uint8(8 - self.bits * (part + 1))
            lines[begin - first : end - first] = read.reshape(-1, self.width) >> shift & np.uint8(
                2**self.bits - 1
            )
        return lines


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base; they say themselves how they are packed.

    Raises:
        InputError: a part is missing or does not fit.
    """
    ends = tuple(f".{end}" for end in _NEEDED if end not in ("scale", "shape"))
    for module in dict.fromkeys(name.rpartition(".")[0] for name in stored.tensors if name.endswith(ends)):
        yield _tensor(stored, module)


def _tensor(stored: Stored, module: str) -> Hqq:
    name = f"{module}.W_q"
    packed = stored.find(name, name, ("U8", *FLOATS))
    bits, width, axis = (_number(stored, module, end) for end in ("nbits", "group_size", "axis"))
    letters = stored.find(f"{module}.packing", name, ("U8",))
    packing = bytes(stored.bytes(letters.name, 0, min(letters.nbytes, _MOST))).decode("latin-1")
    if axis != 1 or _PACKINGS.get(packing) != bits:
        raise wrong(
            packed,
            f"has {bits} bits in {packing!r} along axis {axis}; expected {', '.join(_PACKINGS)} along axis 1",
            _ORIGINAL,
        )
    sizes = stored.find(f"{module}.shape", name, ("I64",), (2,))
    rows, cols = (int(size) for size in stored.whole(sizes.name))
    whole = 0 < rows < 2**32 and 0 < cols < 2**32 and 0 < width <= cols and cols % width == 0
    if not whole or rows * cols // width * bits % 8 or packed.nbytes != rows * cols * bits // 8:
        raise wrong(
            packed,
            f"has {packed.nbytes} bytes: {bits} bits in groups of {width} do not make [{rows}, {cols}]",
        )
    for end in ("scale", "zero"):
        stored.find(f"{module}.{end}", name, FLOATS, (rows * cols // width, 1))
    kind = stored.tensors[f"{module}.scale"].dtype
    info = stored.logical(name, f"{module}.weight", (rows, cols), kind if kind != "F32" else None)
    parts = (f"{module}.{end}" for end in (*_NEEDED, *_BESIDE))
    return Hqq(info, tuple(part for part in parts if stored.has(part)), bits, width)


def _number(stored: Stored, module: str, end: str) -> int:
    """One integer of what describes a weight."""
    info = stored.find(f"{module}.{end}", f"{module}.W_q", ("I32", "I64"))
    if info.shape not in ((), (1,)):
        raise wrong(info, f"has shape {list(info.shape)}, expected one number")
    return int(stored.whole(info.name)[0])
