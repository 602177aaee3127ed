"""Rows of packed bases: numbers that cannot be are errors, and a group index puts inputs in order."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from packed_folders import opened
from packed_parts import AWQ, GPTQ, INT4, NF4, NVFP4, awq, gptq, int4, mxfp4, nf4, nvfp4

from lorafold.errors import InputError, NumericError

pytest.importorskip("torch", reason="the folders are written with it")


def test_zero_points_out_of_range(tmp_path: Path) -> None:
    """Version 1 stores one less; 0 - 1 is written by GPTQModel alone in a way that can be undone."""
    dice = np.random.default_rng(0)
    zeros = dice.integers(0, 16, (2, 32))
    zeros[0, :3] = 0
    words = sum(zeros.reshape(2, 4, 8)[:, :, at] << 4 * at for at in range(8)).astype(np.uint32)
    codes = dice.integers(-(2**31), 2**31, (8, 32)).astype(np.int32)
    tensors = gptq() | {"a.qweight": codes, "a.qzeros": words.view(np.int32)}
    right = opened(tmp_path / "v2", GPTQ | {"checkpoint_format": "gptq_v2"}, tensors)
    less = tensors | {"a.qzeros": (words - np.uint32(0x11111111)).view(np.int32)}
    borrowed = opened(tmp_path / "v1", GPTQ | {"meta": {"quantizer": ["gptqmodel:2.0"]}}, less)
    borrowed_too = opened(tmp_path / "v1s", GPTQ | {"meta": {"quantizer": "gptqmodel:2.0"}}, less)
    for base in (borrowed, borrowed_too):
        np.testing.assert_array_equal(base.rows("a.weight", 0, 32), right.rows("a.weight", 0, 32))
    other = opened(tmp_path / "other", GPTQ, less)
    with pytest.raises(InputError, match=r"'a.qzeros' holds the zero point 16, out of the range of 4 bits"):
        other.rows("a.weight", 0, 32)


def test_a_group_that_does_not_exist(tmp_path: Path) -> None:
    base = opened(tmp_path, GPTQ, gptq() | {"a.g_idx": np.full(64, 2, np.int32)})
    with pytest.raises(InputError, match=r"'a.g_idx' names groups 2 to 2, expected 0 to 1"):
        base.rows("a.weight", 0, 4)


def test_a_scale_that_is_no_number(tmp_path: Path) -> None:
    scales = np.ones((2, 32), np.float16)
    scales[1, 5] = np.nan
    base = opened(tmp_path, AWQ, awq() | {"a.scales": scales, "a.qweight": np.ones((64, 4), np.int32)})
    with pytest.raises(NumericError, match=r"NaN or infinity in tensor 'a.weight', row 5"):
        base.rows("a.weight", 0, 32)


@pytest.mark.parametrize("exponent", [253, 255])
def test_an_exponent_that_makes_no_number(exponent: int, tmp_path: Path) -> None:
    """In rows, and in the blocks that go into a file as they are."""
    tensors = mxfp4()
    tensors["e.down_proj_blocks"][1, 3] = 0x77
    tensors["e.down_proj_scales"][1, 3, 2] = exponent
    base = opened(tmp_path, {"quant_method": "mxfp4"}, tensors)
    assert base.repacked("e.down_proj", 0, 11).shape == (11, 3 * 17)
    for read, rows in ((base.rows, 2 * 96), (base.repacked, 2 * 8)):
        with pytest.raises(NumericError, match=r"NaN or infinity in tensor 'e\.down_proj', row"):
            read("e.down_proj", 0, rows)


def test_a_scale_that_is_infinite_is_an_error_and_no_warning(tmp_path: Path) -> None:
    base = opened(tmp_path, NF4, nf4() | {"a.weight.absmax": np.full(4, np.inf, np.float32)})
    with warnings.catch_warnings(), pytest.raises(NumericError, match=r"in tensor 'a\.weight', row 0"):
        warnings.simplefilter("error")
        base.rows("a.weight", 0, 4)


def test_a_scale_of_scales_that_is_zero(tmp_path: Path) -> None:
    parts = {
        "a.weight_packed": np.full((8, 32), 1, np.uint8),
        "a.weight_global_scale": np.zeros(1, np.float32),
    }
    base = opened(tmp_path, NVFP4, nvfp4() | parts)
    with pytest.raises(NumericError, match=r"NaN or infinity in tensor 'a.weight', row 0"):
        base.rows("a.weight", 0, 8)


def test_the_group_index_of_compressed_tensors(tmp_path: Path) -> None:
    """Version 0.20 no longer writes it; the rows are those of the inputs put in order."""
    dice = np.random.default_rng(0)
    order = dice.permutation(64)
    codes = dice.integers(0, 256, (8, 32), dtype=np.uint8)
    scales = dice.random((8, 2), np.float32)
    plain = opened(
        tmp_path / "plain",
        INT4,
        int4() | {"a.weight_packed": codes.view(np.int32), "a.weight_scale": scales},
    )
    nibbles = np.stack([codes & 15, codes >> 4], axis=2).reshape(8, 64)[:, order]
    moved = np.ascontiguousarray(nibbles[:, ::2] | nibbles[:, 1::2] << 4)
    parts = {"a.weight_packed": moved.view(np.int32), "a.weight_g_idx": (order // 32).astype(np.int32)}
    act = opened(tmp_path / "act", INT4, int4() | parts | {"a.weight_scale": scales})
    np.testing.assert_array_equal(act.rows("a.weight", 0, 8), plain.rows("a.weight", 0, 8)[:, order])
