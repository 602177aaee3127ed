"""Numbers of a checkpoint as a GGUF of plain numbers stores them, bit by bit.

llama.cpp's converter widens every number to float32 and rounds it, half to even, to the type of the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.fold.changes import round_to

AS_BITS = {Type.F32: "<u4", Type.F16: "<u2", Type.BF16: "<u2"}
# Types that hold every number of a checkpoint's type: nothing is rounded.
HOLDS: dict[str, tuple[Type, ...]] = {
    "BF16": (Type.BF16, Type.F32),
    "F16": (Type.F16, Type.F32),
    "F32": (Type.F32,),
    "F64": (),
}


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored numbers as float32, fresh; `dtype` is safetensors' name."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        wide: NDArray[np.float32] = stored.astype(np.float32)
    return wide


def rounding(dtype: str, type_: Type) -> str:
    """What numbers of a checkpoint's type are rounded to in a file's type; "" if they stay as they are."""
    return "" if type_ in HOLDS[dtype] or type_ == Type.F32 else type_.name


def file_bits(stored: NDArray[Any], dtype: str, type_: Type) -> NDArray[Any]:
    """The bits of stored numbers in a file of a plain type: uint16 or uint32, of the same shape."""
    if dtype == type_.name:
        return stored.view(AS_BITS[type_])
    return float_bits(widen(stored, dtype), type_)


def float_bits(values: NDArray[np.float32], type_: Type) -> NDArray[Any]:
    """The bits of float32 numbers in a file of a plain type; `values` may be changed."""
    if type_ == Type.F32:
        return values.view(np.uint32)
    if type_ == Type.BF16:
        return (round_to("BF16", values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


def bit_floats(bits: NDArray[Any], type_: Type) -> NDArray[np.float32]:
    """The numbers that a plain type's bits stand for."""
    if type_ == Type.F32:
        return bits.view(np.float32)
    return widen(bits.view("<f2") if type_ == Type.F16 else bits, type_.name)
