"""What a conversion does to rows of weights, and how a block of a GGUF tensor's rows is read.

Blocks are float32 (rows, cols), in the order in which llama.cpp expects them, ready to be quantized. No
operation looks outside its block, so tensors are never held as a whole.

Rope: Hugging Face keeps the two halves of a rotated pair head_dim/2 apart ("rotate half"), llama.cpp's llama
graph wants them adjacent (ggml's GGML_ROPE_TYPE_NORMAL). Within each head, row i of the first half and row i
of the second become rows 2i and 2i+1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.changes import Block
from lorafold.export.gguf.parts import ColumnRange, MappedTensor


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


def negative_exp(block: Block, _param: int | float | None) -> Block:
    """State space models store the logarithm of a decay; llama.cpp takes the decay itself, negative."""
    return (-np.exp(block, dtype=np.float64)).astype(np.float32)


ROW_OPS: dict[str, Callable[[Block, int | float | None], Block]] = {
    "interleave_rows": interleave_rows,
    "interleave_cols": interleave_cols,
    "add_one": add_one,
    "l2_normalize": l2_normalize,
    "negative_exp": negative_exp,
}

# Rows of a stored matrix that are transposed at once.
_STRIP = 256


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
        block = _transposed(source, tensor, start, stop)
    elif tensor.flat:
        whole = np.concatenate([source.rows(piece.source, 0, 1) for piece in tensor.sources])
        block = np.ascontiguousarray(whole.reshape(tensor.rows, tensor.cols)[start:stop])
    else:
        block = _concatenated(source, tensor, start, stop)
        if tensor.columns:
            block = take_columns(block, tensor.columns)
    return block if tensor.op is None else ROW_OPS[tensor.op](block, tensor.param)


def _concatenated(source: RowSource, tensor: MappedTensor, start: int, stop: int) -> Block:
    """Rows [start, stop) of the concatenated sources."""
    parts: list[Block] = []
    first = 0  # the row of the whole at which the current source begins
    for piece in tensor.sources:
        length = piece.stop - piece.start
        begin, end = max(start - first, 0), min(stop - first, length)
        if begin < end:
            rows = source.rows(piece.source, piece.start + begin, piece.start + end)
            parts.append(rows if piece.scale == 1 else rows * np.float32(piece.scale))
        first += length
    if stop > max(first, start):  # padding
        parts.append(np.zeros((stop - max(first, start), tensor.cols), np.float32))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _transposed(source: RowSource, tensor: MappedTensor, start: int, stop: int) -> Block:
    """Rows [start, stop) of the stacked transposes of the sources."""
    block = np.empty((stop - start, tensor.cols), np.float32)
    for matrix in range(start // tensor.height, -(-stop // tensor.height)):
        top = matrix * tensor.height  # the stack's row at which this matrix begins
        first, last = max(start, top), min(stop, top + tensor.height)
        _transpose(source, tensor, matrix, first - top, block[first - start : last - start])
    return block


def _transpose(source: RowSource, tensor: MappedTensor, matrix: int, first: int, block: Block) -> None:
    """Fill a block with rows of one matrix's transpose, from row `first` on."""
    stored, last = tensor.sources[matrix], first + len(block)
    # The columns of the stored matrix that are these rows.
    chosen = column_numbers(tensor.columns)[first:last] if tensor.columns else np.arange(first, last)
    step = int(chosen[1] - chosen[0]) if len(chosen) > 1 else 1
    even = step > 0 and bool((np.diff(chosen) == step).all())
    columns = slice(int(chosen[0]), int(chosen[-1]) + 1, step) if even else chosen
    for row in range(stored.start, stored.stop, _STRIP):
        strip = source.rows(stored.source, row, min(row + _STRIP, stored.stop))
        block[:, row - stored.start : row - stored.start + len(strip)] = strip[:, columns].T


def column_numbers(columns: Sequence[ColumnRange]) -> NDArray[np.int64]:
    """The numbers of the columns that are taken, in order."""
    return np.concatenate([np.arange(*part) for part in columns])


def take_columns(block: Block, columns: Sequence[ColumnRange]) -> Block:
    """The chosen columns of a block, in order."""
    return np.concatenate([block[:, start:stop:step] for start, stop, step in columns], axis=1)


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
