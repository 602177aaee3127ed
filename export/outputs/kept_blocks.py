"""Experts of a base in MXFP4 that no adapter touches: they stay in MXFP4, bit by bit.

Unpacked weights lie on MXFP4's grid, so any other type of four bits would lose something, and a larger one
would gain nothing. llama.cpp's converter keeps them too, whatever type it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.parts import MappedTensor
from lorafold.packed.layouts.mxfp4 import Mxfp4
from lorafold.packed.source import PackedCheckpoint


class KeptBlocks:
    """Hands out the rows that are kept; a `gguf.writer.Packed`.

    Args:
        tensors: what each GGUF tensor is made of.
        source: the fold.

    Attributes:
        types: MXFP4 for each GGUF tensor that is kept.
    """

    def __init__(self, tensors: Sequence[MappedTensor], source: Folded) -> None:
        self._base = source.base
        kept = [tensor for tensor in tensors if _is_kept(tensor, source)]
        self._tensors: Mapping[str, MappedTensor] = {tensor.name: tensor for tensor in kept}
        self.types = dict.fromkeys(self._tensors, Type.MXFP4)

    def __call__(
        self, name: str, type_: Type, start: int, stop: int, weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8] | None:
        """See `gguf.writer.Packed`; rows of one expert."""
        tensor = self._tensors.get(name)
        if type_ != Type.MXFP4 or tensor is None:
            return None
        assert isinstance(self._base, PackedCheckpoint)
        matrix, first = divmod(start, tensor.height)
        rows = tensor.sources[matrix]
        _, high, wide = self._base.tensors[rows.source].shape
        begin, _, step = tensor.columns[0] if tensor.columns else (0, wide, 1)
        line = rows.start // high * wide + begin + first * step
        return self._base.repacked(rows.source, line, line + (stop - start - 1) * step + 1, step)


def _is_kept(tensor: MappedTensor, source: Folded) -> bool:
    """Whether a tensor is made of whole experts in MXFP4, and of nothing else."""
    base = source.base
    if not (isinstance(base, PackedCheckpoint) and tensor.transpose and tensor.op is None):
        return False
    return len(tensor.columns) <= 1 and all(
        isinstance(packed := base.packed.get(rows.source), Mxfp4)
        and rows.source not in source.touched
        and rows.scale == 1
        and rows.start % packed.info.shape[1] == 0
        and rows.stop - rows.start == packed.info.shape[1] == tensor.cols
        for rows in tensor.sources
    )
