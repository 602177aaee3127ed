"""Rows of unsigned integers with a scale and a zero point for each group of columns: what GPTQ, AWQ and
compressed-tensors have in common once the integers are unpacked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.packed.numbers import Floats, multiply_groups, subtract_groups
from lorafold.packed.stored import Stored, wrong


def scale_rows(codes: Floats, scales: Floats, zeros: Floats | None, groups: NDArray[np.int32] | None) -> None:
    """codes ← (codes - zero) * scale, in place.

    Args:
        codes: (rows, cols).
        scales: (rows, groups) or (1, groups).
        zeros: the same shape, or None.
        groups: the group of each column; None if groups are equal runs of columns.
    """
    if groups is not None:
        # `take` lays its result out by rows; plain indexing by columns, which is many times slower here.
        if zeros is not None:
            codes -= np.take(zeros, groups, axis=1)
        codes *= np.take(scales, groups, axis=1)
        return
    width = -(-codes.shape[1] // scales.shape[1])
    if zeros is not None:
        subtract_groups(codes, zeros, width)
    multiply_groups(codes, scales, width)


def group_index(stored: Stored, name: str, groups: int, width: int) -> NDArray[np.int32] | None:
    """The group of each column, as act-order writes it; None if it is the plain order.

    Args:
        stored: the files.
        name: of the tensor that holds it.
        groups: how many there are.
        width: columns of a group.

    Raises:
        InputError: a group that does not exist.
    """
    index: NDArray[np.int32] = stored.whole(name)
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise wrong(
            stored.tensors[name], f"names groups {index.min()} to {index.max()}, expected 0 to {groups - 1}"
        )
    plain = np.arange(len(index), dtype=np.int32) // np.int32(width)
    return None if np.array_equal(index, plain) else index


def group_width(stored: Stored, scales: str, cols: int, groups: int, said: int | None) -> int:
    """Columns of a group, by the shape of the scales and by the configuration.

    Args:
        stored: the files.
        scales: the tensor of scales.
        cols: columns of the weight.
        groups: groups that the scales have.
        said: the configuration's group size; -1 or None for one group a row.

    Raises:
        InputError: the two differ.
    """
    width = cols if said is None or said < 1 else said
    if groups < 1 or -(-cols // width) != groups:
        raise InputError(
            f"group_size is {said}, which makes {-(-cols // width)} groups of {cols} columns, but "
            f"{scales!r} has {groups}",
            at=f"{stored.config}: quantization_config",
            fix="download the config.json that belongs to these weights",
        )
    return width
