"""What a conversion does to rows of weights, and how a block of a GGUF tensor's rows is read.

Blocks are float32 (rows, cols), in the order in which llama.cpp expects them, ready to be quantized. No
operation looks outside its block, so tensors are never held as a whole.

Rope: Hugging Face keeps the two halves of a rotated pair head_dim/2 apart ("rotate half"), llama.cpp's llama
graph wants them adjacent (ggml's GGML_ROPE_TYPE_NORMAL). Within each head, row i of the first half and row i
of the second become rows 2i and 2i+1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.export.gguf.parts import MappedTensor

Block = NDArray[np.float32]


class RowSource(Protocol):
    """The part of `lorafold.weights.TensorSource` that is needed here."""

    def rows(self, name: str, start: int, stop: int) -> Block:
        """Rows [start, stop) of a tensor seen as 2-D, fresh and writable."""


def interleave_rows(block: Block, head_dim: int | float | None) -> Block:
    """Turn each head's halves into adjacent pairs, along the rows.

    Args:
        block: whole heads, (heads * head_dim, cols).
        head_dim: rows of one head, even.

    Returns:
        The same rows in llama.cpp's order, (heads * head_dim, cols).
    """
    size = int(head_dim or 0)
    assert size > 0 and size % 2 == 0 and block.shape[0] % size == 0
    heads, cols = block.shape[0] // size, block.shape[1]
    # (heads, half, pair, cols) -> (heads, pair, half, cols)
    paired = block.reshape(heads, 2, size // 2, cols).swapaxes(1, 2)
    return np.ascontiguousarray(paired).reshape(block.shape)


def interleave_cols(block: Block, head_dim: int | float | None) -> Block:
    """`interleave_rows` for a bias, which is one row of heads * head_dim columns."""
    return np.ascontiguousarray(interleave_rows(np.ascontiguousarray(block.T), head_dim).T)


def add_one(block: Block, _param: int | float | None) -> Block:
    """Gemma's norms multiply by 1 + weight; llama.cpp multiplies by the weight it is given."""
    return block + np.float32(1.0)


def l2_normalize(block: Block, eps: int | float | None) -> Block:
    """Divide each row by its Euclidean norm, as torch.nn.functional.normalize does: x / max(|x|, eps).

    Args:
        block: rows of an output head, (rows, cols).
        eps: the smallest norm that is divided by; 1e-12 if None.
    """
    norms = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1, keepdims=True))
    unit: Block = (block / np.maximum(norms, 1e-12 if eps is None else eps)).astype(np.float32)
    return unit


ROW_OPS: dict[str, Callable[[Block, int | float | None], Block]] = {
    "interleave_rows": interleave_rows,
    "interleave_cols": interleave_cols,
    "add_one": add_one,
    "l2_normalize": l2_normalize,
}


def read_block(source: RowSource, tensor: MappedTensor, start: int, stop: int) -> Block:
    """Read rows [start, stop) of a GGUF tensor.

    Args:
        source: where the Hugging Face tensors are read from.
        tensor: what the GGUF tensor is made of.
        start: first row, a multiple of `tensor.group`.
        stop: one past the last row, a multiple of `tensor.group`.

    Returns:
        float32 (stop - start, tensor.cols), C-contiguous.
    """
    assert 0 <= start < stop <= tensor.rows
    assert start % tensor.group == 0 and stop % tensor.group == 0
    if tensor.constant is not None:
        whole = np.array(tensor.constant, dtype=np.float32).reshape(tensor.rows, tensor.cols)
        return whole[start:stop]
    if tensor.transpose:
        (stored,) = tensor.sources  # (cols, rows)
        columns = source.rows(stored.source, stored.start, stored.stop)[:, start:stop]
        block = np.ascontiguousarray(columns.T)
    else:
        block = _concatenated(source, tensor, start, stop)
    return block if tensor.op is None else ROW_OPS[tensor.op](block, tensor.param)


def _concatenated(source: RowSource, tensor: MappedTensor, start: int, stop: int) -> Block:
    """Rows [start, stop) of the concatenated sources."""
    parts: list[Block] = []
    first = 0  # the row of the whole at which the current source begins
    for piece in tensor.sources:
        length = piece.stop - piece.start
        begin, end = max(start - first, 0), min(stop - first, length)
        if begin < end:
            parts.append(source.rows(piece.source, piece.start + begin, piece.start + end))
        first += length
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def column_weights(
    weights: Mapping[str, NDArray[np.float32]] | None, tensor: MappedTensor, row: int
) -> NDArray[np.float32] | None:
    """The columns' weights for a block of rows.

    Args:
        weights: as `Imatrix.weights` gives them, or None.
        tensor: the tensor.
        row: a row of the block; in a stack of experts the block lies within one.

    Returns:
        float32 (cols,), or None if the tensor has none.
    """
    found = (weights or {}).get(tensor.name)
    if found is None or found.ndim == 1:
        return found
    own: NDArray[np.float32] = found[row // tensor.shape[-2]] if len(found) > 1 else found[0]
    return own
