"""Row operations and the reading of blocks: by hand, against torch, and for any way of cutting a tensor."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.export.gguf.rows import (
    ROW_OPS,
    add_one,
    interleave_cols,
    interleave_rows,
    l2_normalize,
    negative_exp,
    read_block,
)

Floats = NDArray[np.float32]


class Matrices:
    """A source of rows that holds its tensors in memory."""

    def __init__(self, **tensors: Floats) -> None:
        self.tensors = tensors

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows of a tensor, fresh."""
        return self.tensors[name].reshape(-1, self.tensors[name].shape[-1])[start:stop].copy()


def numbered(rows: int, cols: int) -> Floats:
    """A matrix whose every element is different."""
    return np.arange(rows * cols, dtype=np.float32).reshape(rows, cols)


def test_interleave_by_hand() -> None:
    """Two heads of six rows: the halves 0 1 2 and 3 4 5 become the pairs 0 3, 1 4, 2 5."""
    block = numbered(12, 1)
    assert interleave_rows(block, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert interleave_cols(block.T, 6)[0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_interleaved_rope_rotates_as_before() -> None:
    """Rotating adjacent pairs of the interleaved head equals rotating halves of the original one."""
    rng = np.random.default_rng(1)
    head = rng.standard_normal((8, 5)).astype(np.float32)
    angle = rng.standard_normal(4)
    low, high = head[:4], head[4:]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    halves = np.concatenate([low * cos - high * sin, high * cos + low * sin]).astype(np.float32)
    pairs = interleave_rows(head, 8).reshape(4, 2, 5)
    rotated = np.stack([pairs[:, 0] * cos - pairs[:, 1] * sin, pairs[:, 1] * cos + pairs[:, 0] * sin], axis=1)
    assert np.allclose(rotated.reshape(8, 5), interleave_rows(halves, 8))


def test_add_one_by_hand() -> None:
    """Gemma's norms, exact where float32 is."""
    assert add_one(np.float32([[0.5, -1.0]]), None).tolist() == [[1.5, 0.0]]


def test_l2_normalize() -> None:
    """By hand for a 3-4-5 row and a row of zeros; against torch for random ones."""
    assert l2_normalize(np.float32([[3.0, 4.0], [0.0, 0.0]]), None).tolist() == pytest.approx(
        np.array([[0.6, 0.8], [0.0, 0.0]])
    )
    torch = pytest.importorskip("torch")
    block = np.random.default_rng(2).standard_normal((7, 300)).astype(np.float32)
    expected = torch.nn.functional.normalize(torch.from_numpy(block)).numpy()
    assert np.allclose(l2_normalize(block, None), expected, rtol=1e-6, atol=0)


@given(
    heads=st.integers(1, 5),
    half=st.integers(1, 6),
    cols=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 4), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_reads_the_same(heads: int, half: int, cols: int, cuts: list[int]) -> None:
    """Blocks of whole groups, however they are cut, from however many sources, join to the whole tensor."""
    size = 2 * half
    source = Matrices(a=numbered(3 * heads * size, cols), b=-numbered(heads * size, cols) - 1)
    tensor = MappedTensor(
        "t",
        (2 * heads * size, cols),
        (RowRange("a", heads * size, 2 * heads * size), RowRange("b", 0, heads * size)),
        op="interleave_rows",
        group=size,
        param=size,
    )
    whole = read_block(source, tensor, 0, tensor.rows)
    expected = np.concatenate([source.tensors["a"][heads * size : 2 * heads * size], source.tensors["b"]])
    assert np.array_equal(whole, interleave_rows(expected, size))
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, expected.tolist()))
    ends = sorted({0, tensor.rows, *(min(cut * size, tensor.rows) for cut in np.cumsum([0, *cuts]).tolist())})
    blocks = [read_block(source, tensor, start, stop) for start, stop in pairwise(ends)]
    assert all(block.flags.c_contiguous and block.dtype == np.float32 for block in blocks)
    assert np.array_equal(np.concatenate(blocks), whole)


def test_transposed_source() -> None:
    """A Conv1D's columns are the tensor's rows."""
    source = Matrices(w=numbered(3, 4))
    tensor = MappedTensor("t", (4, 3), (RowRange("w", 0, 3),), transpose=True)
    assert np.array_equal(read_block(source, tensor, 0, 4), source.tensors["w"].T)
    assert np.array_equal(read_block(source, tensor, 1, 3), source.tensors["w"].T[1:3])
    assert read_block(source, tensor, 1, 3).flags.c_contiguous


def test_constant() -> None:
    """Generated values are one row, in float32."""
    tensor = MappedTensor("rope_freqs.weight", (3,), constant=(1.0, 2.5, 8.0))
    assert (tensor.rows, tensor.cols) == (1, 3)
    assert read_block(Matrices(), tensor, 0, 1).tolist() == [[1.0, 2.5, 8.0]]


def test_a_stack_of_three_dimensions() -> None:
    """Rows of stacked matrices run through all of them."""
    source = Matrices(w=numbered(6, 2))
    tensor = MappedTensor("t", (2, 3, 2), (RowRange("w", 0, 3), RowRange("w", 3, 6)))
    assert np.array_equal(read_block(source, tensor, 2, 5), source.tensors["w"][2:5])


def test_every_operation_keeps_its_shape() -> None:
    """No op changes rows or columns."""
    for name, operation in ROW_OPS.items():
        block = np.ones((8, 8), dtype=np.float32)
        result = operation(block, 4 if name.startswith("interleave") else None)
        assert result.shape == block.shape and result.dtype == np.float32, name


def test_negative_exp_by_hand() -> None:
    """The logarithm of a decay becomes the decay, negative."""
    assert negative_exp(np.float32([[0.0, np.log(2.0)]]), None).tolist() == [[-1.0, -2.0]]


@given(
    matrices=st.integers(1, 3),
    height=st.integers(1, 300),
    width=st.integers(2, 9),
    columns=st.sampled_from([(), ((0, 9, 2),), ((1, 9, 2),), ((4, 9, 1), (0, 4, 1)), ((2, 3, 1),)]),
    step=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_stack_of_transposed_matrices(
    matrices: int, height: int, width: int, columns: tuple[tuple[int, int, int], ...], step: int
) -> None:
    """Each matrix is transposed by itself, some of its columns taken as rows, however it is cut."""
    width = 9 if columns else width
    stored = numbered(matrices * height, width).reshape(matrices, height, width)
    taken = [number for part in columns for number in range(*part)] or list(range(width))
    expected = stored[:, :, taken].transpose(0, 2, 1)
    ranges = tuple(RowRange("a", at * height, (at + 1) * height) for at in range(matrices))
    tensor = MappedTensor("t", expected.shape, ranges, columns=columns, transpose=True)
    source = Matrices(a=stored)
    assert np.array_equal(read_block(source, tensor, 0, tensor.rows), expected.reshape(tensor.rows, height))
    for matrix in range(matrices):
        first = matrix * len(taken)
        for start in range(0, len(taken), step):
            stop = min(start + step, len(taken))
            block = read_block(source, tensor, first + start, first + stop)
            assert np.array_equal(block, expected[matrix, start:stop])
            assert block.flags.c_contiguous


def test_columns_scales_and_vectors() -> None:
    """Columns in another order, rows times a constant, a vector that fills rows."""
    source = Matrices(a=numbered(3, 6), v=np.arange(6, dtype=np.float32))
    pieces = (RowRange("a", 2, 3), RowRange("a", 0, 1, 0.5))
    tensor = MappedTensor("t", (2, 5), pieces, columns=((1, 6, 2), (0, 4, 2)))
    assert read_block(source, tensor, 0, 2).tolist() == [[13, 15, 17, 12, 14], [0.5, 1.5, 2.5, 0, 1]]
    assert read_block(source, tensor, 1, 2).tolist() == [[0.5, 1.5, 2.5, 0, 1]]
    flat = MappedTensor("t", (3, 2), (RowRange("v", 0, 1),), flat=True)
    assert read_block(source, flat, 1, 3).tolist() == [[2, 3], [4, 5]]


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 10))
def test_rows_beyond_the_source_are_zeros(held: int, more: int, cut: int) -> None:
    """Wherever a padded tensor is cut, its blocks are the source's rows, times a factor, and then zeros."""
    source = Matrices(a=numbered(held, 3) + 1)
    tensor = MappedTensor("a", (held + more, 3), (RowRange("a", 0, held, 2.0),))
    whole = np.concatenate([2 * source.tensors["a"], np.zeros((more, 3), np.float32)])
    middle = min(max(cut, 1), tensor.rows)
    parts = [
        read_block(source, tensor, start, stop)
        for start, stop in ((0, middle), (middle, tensor.rows))
        if start < stop
    ]
    assert np.array_equal(np.concatenate(parts), whole)
