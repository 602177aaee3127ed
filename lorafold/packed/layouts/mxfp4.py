"""MXFP4 as gpt-oss has it: stacks of experts in FP4, 32 weights with one power of two.

`NAME_blocks` (experts, out, in/32, 16) holds 32 numbers in 16 bytes, the first of a pair in the lower half;
`NAME_scales` (experts, out, in/32) their exponents plus 127. The model's own `NAME` is (experts, in, out), so
its rows are columns here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.packed.numbers import FP4, look_up_pairs, multiply_groups, pair_table, power_of_two
from lorafold.packed.stored import PackedTensor, Stored, wrong
from lorafold.safetensors_file import TensorInfo

BLOCKS, SCALES = "_blocks", "_scales"
WEIGHTS, BYTES = 32, 16
LARGEST_EXPONENT = 252
"""The largest exponent, plus 127, at which every number is finite in float32; 255 is NaN."""
_PAIRS = pair_table(FP4, "low")
_LINES = 32  # that are turned at once: so many stay in the first-level cache


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """A stack of experts in MXFP4.

    Attributes:
        info: what it is in the model: (experts, in, out).
        parts: blocks and scales.
    """

    info: TensorInfo
    parts: tuple[str, str]

    def rows(self, stored: Stored, start: int, stop: int) -> NDArray[np.float32]:
        """See `PackedTensor.rows`."""
        _, high, wide = self.info.shape
        out = np.empty((stop - start, wide), np.float32)
        row = start
        while row < stop:
            expert, first = divmod(row, high)
            last = min(high, first + stop - row)
            turned = out[row - start : row - start + last - first]
            columns = self._columns(stored, expert, first, last)
            for line in range(0, wide, _LINES):
                turned[:, line : line + _LINES] = columns[line : line + _LINES].T
            row += last - first
        return out

    def _columns(self, stored: Stored, expert: int, start: int, stop: int) -> NDArray[np.float32]:
        """Inputs [start, stop) of one expert, (out, stop - start)."""
        _, high, wide = self.info.shape
        groups = high // WEIGHTS
        first, last = start // WEIGHTS, -(-stop // WEIGHTS)
        lines = expert * wide, (expert + 1) * wide
        # As a matrix: a line for each output, with all its groups.
        blocks = stored.columns(self.parts[0], first * BYTES, last * BYTES, lines, cols=groups * BYTES)
        scales = power_of_two(stored.columns(self.parts[1], first, last, lines))
        values = look_up_pairs(blocks, _PAIRS)
        multiply_groups(values, scales, WEIGHTS)
        return values[:, start - first * WEIGHTS : stop - first * WEIGHTS]

    def repacked(self, stored: Stored, start: int, stop: int, step: int = 1) -> NDArray[np.uint8]:
        """The same weights as GGUF's MXFP4: bits are moved, none is changed.

        Here byte i of a block holds weight 2i, and 2i + 1 in the upper half. In GGUF (`block_mxfp4` of ggml)
        the exponent is the first byte, and byte i behind it holds weight i, and i + 16 in the upper half.

        Args:
            stored: where the parts are.
            start: the first line; each expert has as many as it has outputs.
            stop: one past the last.
            step: every how-manieth is taken.

        Returns:
            uint8 (lines, bytes of a row).
        """
        groups = self.info.shape[1] // WEIGHTS
        packed = stored.rows(self.parts[0], start * groups, stop * groups).reshape(-1, groups, BYTES)[::step]
        weights = np.empty((len(packed), groups, WEIGHTS), np.uint8)
        weights[..., 0::2], weights[..., 1::2] = packed & 15, packed >> 4
        out = np.empty((len(packed), groups, 1 + BYTES), np.uint8)
        out[..., 0] = stored.rows(self.parts[1], start, stop)[::step]
        out[..., 1:] = weights[..., :BYTES] | weights[..., BYTES:] << 4
        return out.reshape(len(out), -1)


def plan(stored: Stored, settings: Mapping[str, Any]) -> Iterator[PackedTensor]:
    """The packed tensors of a base.

    Raises:
        InputError: blocks without scales, or scales of another shape.
    """
    del settings
    for name, info in stored.tensors.items():
        if not name.endswith(BLOCKS) or info.dtype != "U8":
            continue
        if len(info.shape) != 4 or info.shape[3] != BYTES:
            raise wrong(
                info, f"is {info.dtype} {list(info.shape)}, expected U8 [experts, out, in/32, {BYTES}]"
            )
        own = name.removesuffix(BLOCKS)
        stored.find(own + SCALES, name, ("U8",), info.shape[:3])
        experts, wide, groups, _ = info.shape
        shape = (experts, groups * WEIGHTS, wide)
        yield Mxfp4(stored.logical(name, own, shape), (name, own + SCALES))
