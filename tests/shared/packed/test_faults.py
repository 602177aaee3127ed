"""Packed bases that cannot be read: one line each, with the tensor and the way out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folders import packed_folder

from lorafold.errors import InputError, NumericError
from lorafold.packed.formats import FORMATS
from lorafold.packed.originals import original_of
from lorafold.packed.source import PackedCheckpoint, open_base

pytest.importorskip("torch", reason="the folders are written with it")

Tensors = dict[str, Any]
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "strategy": "group"}}
    },
}
NVFP4 = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"},
        }
    },
}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}
MLX = {"bits": 4, "group_size": 32}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}
METADATA = "__metadata__"
"""What a file says beside its tensors."""


def nf4(nested: bool = False) -> Tensors:
    """(4, 64) with zeros: four blocks."""
    told = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]}
    if nested:
        told |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    tensors: Tensors = {
        "a.weight": np.zeros((128, 1), np.uint8),
        "a.weight.absmax": np.ones(4, np.uint8 if nested else np.float32),
        "a.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(told).encode(), np.uint8).copy(),
    }
    if nested:
        tensors["a.weight.nested_absmax"] = np.ones(1, np.float32)
        tensors["a.weight.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    return tensors


def int8() -> Tensors:
    return {"a.weight": np.ones((4, 64), np.int8), "a.SCB": np.ones(4, np.float32)}


def fp8() -> Tensors:
    import torch

    return {
        "a.weight": torch.ones(64, 96).to(torch.float8_e4m3fn),
        "a.weight_scale_inv": np.ones((2, 3), np.float32),
    }


def mxfp4() -> Tensors:
    return {
        "e.down_proj_blocks": np.zeros((2, 8, 3, 16), np.uint8),
        "e.down_proj_scales": np.full((2, 8, 3), 127, np.uint8),
    }


def gptq() -> Tensors:
    return {
        "a.qweight": np.zeros((8, 32), np.int32),
        "a.qzeros": np.zeros((2, 4), np.int32),
        "a.scales": np.ones((2, 32), np.float16),
        "a.g_idx": np.arange(64, dtype=np.int32) // 32,
    }


def awq() -> Tensors:
    return {
        "a.qweight": np.zeros((64, 4), np.int32),
        "a.qzeros": np.zeros((2, 4), np.int32),
        "a.scales": np.ones((2, 32), np.float16),
    }


def int4() -> Tensors:
    return {
        "a.weight_packed": np.zeros((8, 8), np.int32),
        "a.weight_scale": np.ones((8, 2), np.float32),
        "a.weight_shape": np.array([8, 64]),
    }


def nvfp4() -> Tensors:
    import torch

    return {
        "a.weight_packed": np.zeros((8, 32), np.uint8),
        "a.weight_scale": torch.ones(8, 4).to(torch.float8_e4m3fn),
        "a.weight_global_scale": np.ones(1, np.float32),
    }


def mlx() -> Tensors:
    scales = np.ones((8, 2), np.float16)
    return {"a.weight": np.zeros((8, 8), np.uint32), "a.scales": scales, "a.biases": scales.copy()}


def torchao(kind: str = "Int8Tensor", block: Any = (1, 64), **changes: Any) -> Tensors:
    """A weight (8, 64) with what the file's metadata says of it."""
    parts = ["zero_point", "qdata", "scale"]
    told = {"_type": kind, "_data": {"block_size": block}, "_tensor_data_names": parts}
    return {
        "a._weight_qdata": np.ones((8, 64), np.int8),
        "a._weight_scale": np.ones((8, 1), np.float32),
        "a._weight_zero_point": np.zeros((8, 1), np.int8),
        METADATA: {"a.weight": json.dumps(told)},
        **changes,
    }


def torchao_fp8() -> Tensors:
    import torch

    told = {"_type": "Float8Tensor", "_data": {"block_size": [1, 64]}}
    return {
        "a._weight_qdata": torch.ones(8, 64).to(torch.float8_e4m3fn),
        "a._weight_scale": np.ones((8, 1), np.float32),
        METADATA: {"a.weight": json.dumps(told)},
    }


def torchao_int4(width: int = 32) -> Tensors:
    told = {"_type": "Int4Tensor", "_data": {"block_size": [1, width], "shape": [8, 64]}}
    return {
        "a._weight_qdata": np.zeros((8, 32), np.int8),
        "a._weight_scale": np.ones((2, 8), np.float32),
        "a._weight_zero_point": np.zeros((2, 8), np.float32),
        METADATA: {"a.weight": json.dumps(told)},
    }


def opened(folder: Path, settings: Any, tensors: Tensors) -> PackedCheckpoint:
    import torch

    key = "quantization" if settings.get("quant_method") is None else "quantization_config"
    stored = {name: value for name, value in tensors.items() if name != METADATA}
    packed_folder(folder, settings, {**stored, "norm.weight": torch.ones(64)}, key, tensors.get(METADATA))
    base = open_base(folder, json.loads((folder / "config.json").read_text()))
    assert isinstance(base, PackedCheckpoint)
    return base


WHOLE: dict[str, tuple[Any, Callable[[], Tensors]]] = {
    "nf4": (NF4, nf4),
    "nf4 nested": (NF4, lambda: nf4(nested=True)),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8),
    "fp8": (FP8, fp8),
    "mxfp4": ({"quant_method": "mxfp4"}, mxfp4),
    "gptq": (GPTQ, gptq),
    "awq": (AWQ, awq),
    "int4": (INT4, int4),
    "nvfp4": (NVFP4, nvfp4),
    "mlx": (MLX, mlx),
    "torchao": (TORCHAO, torchao),
    "torchao fp8": (TORCHAO, torchao_fp8),
    "torchao int4": (TORCHAO, torchao_int4),
}
OPTIONAL = ("a.g_idx",)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_missing_part_is_named(kind: str, tmp_path: Path) -> None:
    settings, make = WHOLE[kind]
    whole = opened(tmp_path / "whole", settings, make())
    for name, info in whole.tensors.items():
        assert np.isfinite(whole.rows(name, 0, info.rows)).all()
    for number, missing in enumerate(name for name in make() if name not in OPTIONAL):
        rest = {name: value for name, value in make().items() if name != missing}
        with pytest.raises(InputError) as caught:
            opened(tmp_path / str(number), settings, rest)
        line = str(caught.value)
        assert "missing" in line and "download the folder again" in line and "\n" not in line


def replaced(tensors: Tensors, **changes: Any) -> Tensors:
    return tensors | {name.replace("__", "."): value for name, value in changes.items()}


def told(**changes: Any) -> Tensors:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]} | changes
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return nf4() | {"a.weight.quant_state.bitsandbytes__nf4": raw}


WRONG: dict[str, tuple[Any, Tensors, str]] = {
    "absmax of another size": (
        NF4,
        replaced(nf4(), a__weight__absmax=np.ones(5, np.float32)),
        r"tensor 'a.weight.absmax' is F32 \[5\], expected F32 or F16 or BF16 \[4\]",
    ),
    "a wrong block size": (NF4, told(blocksize=128), r"'a.weight.absmax' is F32 \[4\], expected .* \[2\]"),
    "a wrong shape": (NF4, told(shape=[4, 32]), r"has 128 bytes, but its quant_state says shape \[4, 32\]"),
    "no block size": (NF4, told(blocksize=0), "says shape .* and blocksize 0"),
    "a broken quant_state": (
        NF4,
        replaced(nf4(), a__weight__quant_state__bitsandbytes__nf4=None)
        | {"a.weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8)},
        "is no quant_state of bitsandbytes",
    ),
    "a quant_state that is too deep": (
        NF4,
        replaced(nf4(), a__weight__quant_state__bitsandbytes__nf4=None)
        | {"a.weight.quant_state.bitsandbytes__nf4": np.full(100_000, ord("["), np.uint8)},
        "is no quant_state of bitsandbytes",
    ),
    "another type than config.json says": (
        NF4 | {"bnb_4bit_quant_type": "fp4"},
        nf4(),
        "bnb_4bit_quant_type is 'fp4', but 'a.weight' is packed as 'nf4'",
    ),
    "other bits than config.json says": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        nf4(),
        "load_in_8bit is set, but .* belongs to a tensor of 4 bits",
    ),
    "rows of a GPU's layout": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        int8() | {"a.weight_format": np.array(2, np.uint8)},
        "'a.weight_format' is 2: the weight is in a layout of some GPU",
    ),
    "SCB of another size": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        int8() | {"a.SCB": np.ones(3, np.float32)},
        r"'a.SCB' is F32 \[3\], expected",
    ),
    "blocks that config.json does not say": (
        FP8 | {"weight_block_size": [64, 32]},
        fp8(),
        r"has shape \[2, 3\], which does not fit \[64, 96\] in blocks of 64 × 32",
    ),
    "scales that fit nothing": (
        {"quant_method": "fp8"},
        fp8() | {"a.weight_scale_inv": np.ones((5, 3), np.float32)},
        r"has shape \[5, 3\], which does not fit \[64, 96\]",
    ),
    "MXFP4 without its last dimension": (
        {"quant_method": "mxfp4"},
        mxfp4() | {"e.down_proj_blocks": np.zeros((2, 8, 48), np.uint8)},
        "expected U8 .experts, out, in/32, 16.",
    ),
    "GPTQ in other bits than config.json says": (
        GPTQ | {"bits": 8},
        gptq(),
        r"'a.qzeros' is I32 \[2, 4\], expected I32 \[2, 8\]",
    ),
    "GPTQ in bits that do not exist": (GPTQ | {"bits": 5}, gptq(), "bits is 5, expected 2, 3, 4, 8"),
    "GPTQ in a group size that does not fit": (
        GPTQ | {"group_size": 16},
        gptq(),
        "group_size is 16, which makes 4 groups of 64 columns, but 'a.scales' has 2",
    ),
    "GPTQ's group index of another size": (
        GPTQ,
        gptq() | {"a.g_idx": np.zeros(32, np.int32)},
        r"'a.g_idx' has shape \[32\], but 4 bits \(quantization_config\) make 64 inputs",
    ),
    "GPTQ in another format": (
        GPTQ | {"checkpoint_format": "marlin"},
        gptq(),
        "checkpoint_format 'marlin' is not read, expected gptq or gptq_v2",
    ),
    "AWQ in another layout": (AWQ | {"version": "gemv"}, awq(), "the layout 'gemv' is not read"),
    "AWQ in a group size that does not fit": (
        AWQ | {"group_size": 64},
        awq(),
        "group_size is 64, which makes 1 groups of 64 columns, but 'a.scales' has 2",
    ),
    "a shape that the packed integers do not have": (
        INT4,
        int4() | {"a.weight_shape": np.array([8, 128])},
        r"has shape \[8, 8\] and weight_shape \[8, 128\]; num_bits in config.json says 4",
    ),
    "another format of compressed-tensors": (
        INT4 | {"format": "marlin-24"},
        int4(),
        "the format 'marlin-24' of compressed-tensors is not read",
    ),
    "NVFP4 with scales of another width": (
        NVFP4,
        nvfp4() | {"a.weight_packed": np.zeros((8, 64), np.uint8)},
        r"has shape \[8, 4\], which does not fit 'a.weight_packed' of \[8, 64\] in groups of 16 weights",
    ),
    "NVFP4 with two scales of the scales": (
        NVFP4,
        nvfp4() | {"a.weight_global_scale": np.ones(2, np.float32)},
        r"'a.weight_global_scale' is F32 \[2\], expected F32 \[1\]",
    ),
    "MLX in bits that do not exist": (MLX | {"bits": 7}, mlx(), "a has bits 7, group_size 32"),
    "MLX in another group size": (
        MLX | {"group_size": 64},
        mlx(),
        r"'a.scales' is F16 \[8, 2\], expected .* \[8, 1\]",
    ),
    "torchao without its metadata": (
        TORCHAO,
        torchao(**{METADATA: {"b.weight": "{}"}}),
        "its metadata does not say what 'a.weight' is",
    ),
    "torchao with damaged metadata": (
        TORCHAO,
        torchao(**{METADATA: {"a.weight": "[1"}}),
        "its metadata of 'a.weight' makes no sense",
    ),
    "torchao with metadata that is too deep": (
        TORCHAO,
        torchao(**{METADATA: {"a.weight": "[" * 100_000}}),
        "its metadata of 'a.weight' makes no sense",
    ),
    "torchao's layout of a GPU": (
        TORCHAO,
        torchao("Int4TilePackedTo4dTensor"),
        "'a.weight' is a Int4TilePackedTo4dTensor of torchao, which cannot be read; these can: Int8Tensor, ",
    ),
    "torchao in blocks that do not fit": (
        TORCHAO,
        torchao(block=[1, 32]),
        r"'a._weight_scale' has shape \[8, 1\], which blocks of \[1, 32\] .* do not make of \[8, 64\]",
    ),
    "torchao in blocks that are no numbers": (TORCHAO, torchao(block=["a", -1]), "which blocks of .* do not"),
    "torchao with other zero points": (
        TORCHAO,
        torchao(**{"a._weight_zero_point": np.zeros((8, 2), np.int8)}),
        r"'a._weight_zero_point' is I8 \[8, 2\], expected .* \[8, 1\]",
    ),
    "torchao with scaled activations": (
        TORCHAO,
        torchao(**{"a._weight_act_pre_scale": np.ones(64, np.float32)}),
        "'a.weight' belongs to activations that are scaled first",
    ),
    "torchao's int4 in groups that do not fit": (
        TORCHAO,
        torchao_int4(48),
        r"has shape \[8, 32\], expected two dimensions and blocks of \[1, 48\]",
    ),
    "packed numbers that belong to nothing": (
        NF4,
        nf4() | {"b.weight": np.zeros((128, 1), np.uint8)},
        "'b.weight' is U8, and what unpacks it is missing .quant_state and absmax, or SCB.",
    ),
    "plain weights that are said to be packed": (
        NF4,
        {},
        "it says that the weights are packed by bitsandbytes, but all of them are plain numbers",
    ),
    "packed and plain at once": (
        GPTQ,
        gptq() | {"a.weight": np.zeros((32, 64), np.float32)},
        "tensor 'a.weight' is there both packed and plain",
    ),
    "a block size that is no number": (
        NF4,
        nf4()
        | {
            "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
                b'{"quant_type": "nf4", "blocksize": 1e999, "shape": [4, 64]}', np.uint8
            ).copy()
        },
        "is no quant_state of bitsandbytes .OverflowError",
    ),
    "a method that is not read": (
        {"quant_method": "aqlm"},
        {},
        r"the base is quantized \(aqlm\), which cannot be read; these can: bitsandbytes, .*16-bit original",
    ),
    "settings of another type": (GPTQ | {"bits": [4]}, gptq(), "bits is \\[4\\]|make no sense"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_contradicts_itself_is_refused(fault: str, tmp_path: Path) -> None:
    settings, tensors, message = WRONG[fault]
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, settings, {name: value for name, value in tensors.items() if value is not None})
    assert caught.value.at is not None and caught.value.fix
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind not in ("fp8", "mxfp4", "mlx")])
def test_packed_weights_of_which_config_says_nothing(kind: str, tmp_path: Path) -> None:
    settings, make = WHOLE[kind]
    opened(tmp_path, settings, make())
    with pytest.raises(InputError, match="packed, of which quantization_config says nothing; fix: download"):
        open_base(tmp_path, {"model_type": "llama"})


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


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("TheBloke/Mistral-7B-v0.1-AWQ", None),
        ("mlx-community/Qwen3-4B-4bit", None),
        ("unsloth/Qwen3-4B", None),
        ("/home/me/unsloth/Qwen3-4B-bnb-4bit", None),
    ],
)
def test_the_original_by_the_name(name: str, original: str | None, tmp_path: Path) -> None:
    assert original_of(name, tmp_path) == original


def test_the_original_by_the_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(
        "---\nlicense: mit\nbase_model:\n- org/Model-7B\nbase_model_relation: quantized\n---\nText"
    )
    assert original_of("mlx-community/Model-7B-4bit", tmp_path) == "org/Model-7B"
    card.write_text("---\nbase_model: org/Model-7B\nbase_model_relation: finetune\n---\n")
    assert original_of("mlx-community/Model-7B-4bit", tmp_path) is None


def test_every_format_is_tested_for_missing_parts() -> None:
    assert {str(settings.get("quant_method", "mlx")) for settings, _ in WHOLE.values()} | {
        "fbgemm_fp8"
    } == set(FORMATS)
