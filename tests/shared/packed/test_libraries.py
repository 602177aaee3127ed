"""Packed weights are unpacked as the libraries that packed them do it, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from packed_folders import open_packed
from packers import VERSIONS, packed_by

from lorafold.packed.source import PackedCheckpoint
from lorafold.weights import Checkpoint


def in_blocks(base: PackedCheckpoint, name: str, step: int) -> NDArray[np.float32]:
    rows = base.tensors[name].rows
    return np.concatenate([base.rows(name, start, min(start + step, rows)) for start in range(0, rows, step)])


def rounded(rows: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Float32 numbers in a library's own type, to the nearest and half to even."""
    if dtype == "F16":
        return rows.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        bits = rows.view(np.uint32)
        return ((bits + (bits >> 16 & 1) + 0x7FFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("library", VERSIONS)
def test_as_its_library_unpacks_it(library: str) -> None:
    cases = packed_by(library)
    assert cases
    for case, folder in cases.items():
        base = open_packed(folder)
        expected = Checkpoint.of_files(folder, [folder / "unpacked.safetensors"])
        assert base.tensors.keys() == expected.tensors.keys(), case
        for name, info in expected.tensors.items():
            assert base.tensors[name].shape == info.shape, (case, name)
            right = expected.rows(name, 0, info.rows)
            assert np.abs(right).max() > 0
            for step in (1, 5, 32, 1000):
                got = in_blocks(base, name, step)
                if library in ("mlx", "hqq") and info.dtype != "F32":
                    # They multiply and add in their own type, which rounds twice.
                    step_size = 2.0 ** (-8 if info.dtype == "BF16" else -11)
                    reach = np.abs(got).max(axis=1, keepdims=True)
                    assert np.all(np.abs(got - right) <= 2 * step_size * reach), (case, name)
                else:
                    np.testing.assert_array_equal(rounded(got, info.dtype), right, err_msg=f"{case} {name}")
