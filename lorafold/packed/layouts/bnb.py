"""bitsandbytes: NF4 and FP4 with or without double quantization, and int8 with a scale for each row.

4 bits: `NAME` holds the flattened weights, two in a byte with the first in the upper half. 64 (`blocksize`)
weights share one `NAME.absmax`, and `NAME.quant_map` lists the 16 values from -1 to 1:

    weight = quant_map[code] * absmax[index // blocksize]

Double quantization packs absmax in turn: `absmax = nested_quant_map[code] * nested_absmax[index // 256] +
nested_offset`. Shape, block sizes and offset stand as JSON in `NAME.quant_state.bitsandbytes__nf4` (or fp4).

8 bits: `weight = NAME * SCB[row] / 127`, with SCB the largest absolute weight of the row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.numbers import look_up_pairs, pair_table
from lorafold.packed.stored import FLOATS, PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

STATE = ".quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")
DTYPES = {"bfloat16": "BF16", "float16": "F16"}
INT8_STEP = np.float32(7.874015718698502e-3)
"""1/127 as bitsandbytes has it."""


@dataclass(frozen=True, slots=True)
class FourBit:
    """A tensor in NF4 or FP4.

    Attributes:
        info: what it is in the model.
        weight: name of the stored tensor.
        state: name of its quant_state.
        blocksize: weights that share an absmax.
        nested: block size and offset of the packed absmax; None if absmax is stored as it is.
    """

    info: TensorInfo
    weight: str
    state: str
    blocksize: int
    nested: tuple[int, float] | None

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it is made of."""
        names = [self.weight, self.state, f"{self.weight}.absmax", f"{self.weight}.quant_map"]
        if self.nested is not None:
            names += [f"{self.weight}.nested_absmax", f"{self.weight}.nested_quant_map"]
        return tuple(names)

    @property
    def aligned(self) -> bool:
        """Whether every row begins with a block. bitsandbytes 0.50 unpacks the others wrongly on a CPU."""
        return self.info.cols % self.blocksize == 0

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`. Whole blocks are unpacked: a row may begin inside one."""
        size, count = self.blocksize, math.prod(self.info.shape)
        first, last = start * self.info.cols, stop * self.info.cols
        block, end = first // size, -(-last // size)
        packed = stored.bytes(self.weight, block * size // 2, (min(end * size, count) + 1) // 2)
        table = pair_table(stored.whole(f"{self.weight}.quant_map"), "high")
        values = look_up_pairs(packed, table)
        scales = self._absmax(stored, block, end)
        whole = len(values) // size
        inside = values[: whole * size].reshape(whole, size)
        inside *= scales[:whole, None]
        if whole < len(scales):
            values[whole * size :] *= scales[whole]
        return np.ascontiguousarray(values[first - block * size : last - block * size]).reshape(
            stop - start, self.info.cols
        )

    def _absmax(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """The scales of blocks [start, stop)."""
        name = f"{self.weight}.absmax"
        if self.nested is None:
            return stored.floats(name, start, stop)
        size, offset = self.nested
        codes = stored.flat(name, start, stop)
        first = start // size
        outer = stored.floats(f"{self.weight}.nested_absmax", first, -(-stop // size))
        inner = stored.whole(f"{self.weight}.nested_quant_map")[codes]
        scales: NDArray[np.float32] = inner * outer[np.arange(start, stop) // size - first]
        scales += np.float32(offset)
        return scales


@dataclass(frozen=True, slots=True)
class Int8:
    """A tensor in 8 bits with a scale for each row.

    Attributes:
        info: what it is in the model.
        parts: weight, SCB and, if the file has it, weight_format.
    """

    info: TensorInfo
    parts: tuple[str, ...]

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        values: NDArray[np.float32] = stored.rows(self.parts[0], start, stop).astype(np.float32)
        values *= stored.floats(self.parts[1], start, stop)[:, None]
        values *= INT8_STEP
        return values


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: a part is missing or does not fit, or config.json says something else.
    """
    for name in stored.tensors:
        if STATE in name:
            _refuse_other(stored, name, settings, "load_in_8bit", "4")
            yield _four_bit(stored, name, settings)
        elif name.endswith(".SCB"):
            _refuse_other(stored, name, settings, "load_in_4bit", "8")
            yield _int8(stored, name)


def _refuse_other(stored: Stored, name: str, settings: Mapping[str, Any], flag: str, bits: str) -> None:
    if settings.get(flag):
        raise InputError(
            f"{flag} is set, but {name!r} belongs to a tensor of {bits} bits",
            at=f"{stored.config}: quantization_config",
            fix="download the config.json that belongs to these weights",
        )


def _four_bit(stored: Stored, state: str, settings: Mapping[str, Any]) -> FourBit:
    weight, _, kind = state.partition(STATE)
    info = stored.find(state, weight, ("U8",))
    said = settings.get("bnb_4bit_quant_type", kind)
    if kind not in _TYPES or said != kind:
        raise InputError(
            f"bnb_4bit_quant_type is {said!r}, but {weight!r} is packed as {kind!r}",
            at=f"{stored.config}: quantization_config",
            fix="download the config.json that belongs to these weights",
        )
    try:
        told = json.loads(stored.whole(state).tobytes())
        shape = tuple(int(size) for size in told["shape"])
        size = int(told["blocksize"])
        nested = None
        if "nested_blocksize" in told:
            nested = int(told["nested_blocksize"]), float(told["nested_offset"])
        dtype = DTYPES.get(str(told.get("dtype")))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise wrong(info, f"is no quant_state of bitsandbytes ({type(error).__name__}: {error})") from None
    count = math.prod(shape)
    if size < 2 or size % 2 or min(shape, default=0) < 1 or (nested and nested[0] < 1):
        raise wrong(info, f"says shape {list(shape)} and blocksize {size}")
    packed = stored.find(weight, state, tuple(stored_dtypes()))
    if packed.nbytes != (count + 1) // 2:
        raise wrong(packed, f"has {packed.nbytes:,} bytes, but its quant_state says shape {list(shape)}")
    blocks = -(-count // size)
    stored.find(f"{weight}.quant_map", weight, ("F32",), (16,))
    if nested is None:
        stored.find(f"{weight}.absmax", weight, FLOATS, (blocks,))
    else:
        stored.find(f"{weight}.absmax", weight, ("U8",), (blocks,))
        stored.find(f"{weight}.nested_absmax", weight, FLOATS, (-(-blocks // nested[0]),))
        stored.find(f"{weight}.nested_quant_map", weight, ("F32",), (256,))
    return FourBit(stored.logical(weight, weight, shape, dtype), weight, state, size, nested)


def stored_dtypes() -> Iterator[str]:
    """bnb_4bit_quant_storage may call the same bytes by any of these types."""
    yield from ("U8", "I8", "BF16", "F16", "F32")


def _int8(stored: Stored, scales: str) -> Int8:
    module = scales.removesuffix(".SCB")
    weight = f"{module}.weight"
    info = stored.find(weight, scales, ("I8",))
    stored.find(scales, weight, FLOATS, info.shape[:1])
    parts = [weight, scales]
    if stored.has(layout := f"{module}.weight_format"):
        stored.find(layout, weight, ("U8",))
        if (number := int(stored.whole(layout)[0])) != 0:
            raise wrong(
                stored.tensors[layout],
                f"is {number}: the weight is in a layout of some GPU, expected 0 (rows)",
                "load the model with bitsandbytes 0.45 or later and save it again",
            )
        parts.append(layout)
    return Int8(stored.logical(weight, weight, info.shape), tuple(parts))
