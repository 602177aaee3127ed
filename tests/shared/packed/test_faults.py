"""Packed bases that cannot be read: one line each, with the tensor and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folders import opened
from packed_parts import (
    AWQ,
    FP8,
    GPTQ,
    HQQ,
    INT4,
    INT8,
    METADATA,
    MLX,
    NF4,
    NVFP4,
    TORCHAO,
    WHOLE,
    Tensors,
    awq,
    fp8,
    gptq,
    hqq,
    int4,
    int8,
    mlx,
    mxfp4,
    nf4,
    nvfp4,
    torchao,
    torchao_int4,
)

from lorafold.errors import InputError
from lorafold.packed.formats import FORMATS
from lorafold.packed.source import open_base

pytest.importorskip("torch", reason="the folders are written with it")

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


def told(**changes: Any) -> Tensors:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 64]} | changes
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return nf4() | {"a.weight.quant_state.bitsandbytes__nf4": raw}


WRONG: dict[str, tuple[Any, Tensors, str]] = {
    "absmax of another size": (
        NF4,
        nf4() | {"a.weight.absmax": np.ones(5, np.float32)},
        r"tensor 'a.weight.absmax' is F32 \[5\], expected F32 or F16 or BF16 \[4\]",
    ),
    "a wrong block size": (NF4, told(blocksize=128), r"'a.weight.absmax' is F32 \[4\], expected .* \[2\]"),
    "a wrong shape": (NF4, told(shape=[4, 32]), r"has 128 bytes, but its quant_state says shape \[4, 32\]"),
    "no block size": (NF4, told(blocksize=0), "says shape .* and blocksize 0"),
    "a broken quant_state": (
        NF4,
        nf4() | {"a.weight.quant_state.bitsandbytes__nf4": np.zeros(9, np.uint8)},
        "is no quant_state of bitsandbytes",
    ),
    "a quant_state that is too deep": (
        NF4,
        nf4() | {"a.weight.quant_state.bitsandbytes__nf4": np.full(100_000, ord("["), np.uint8)},
        "is no quant_state of bitsandbytes",
    ),
    "another type than config.json says": (
        NF4 | {"bnb_4bit_quant_type": "fp4"},
        nf4(),
        "bnb_4bit_quant_type is 'fp4', but 'a.weight' is packed as 'nf4'",
    ),
    "other bits than config.json says": (
        INT8,
        nf4(),
        "load_in_8bit is set, but .* belongs to a tensor of 4 bits",
    ),
    "rows of a GPU's layout": (
        INT8,
        int8() | {"a.weight_format": np.array(2, np.uint8)},
        "'a.weight_format' is 2: the weight is in a layout of some GPU",
    ),
    "SCB of another size": (
        INT8,
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
    "HQQ along the other axis": (
        HQQ,
        hqq() | {"a.axis": np.array(0, np.int32)},
        "has 4 bits in '4bit_u8' along axis 0; expected 8bit_u8, 4bit_u8, 2bit_u8 along axis 1.*16-bit",
    ),
    "HQQ in 3 bits": (
        HQQ,
        hqq() | {"a.nbits": np.array(3, np.int32), "a.packing": np.frombuffer(b"3bit_32", np.uint8).copy()},
        "'a.W_q' has 3 bits in '3bit_32' along axis 1; expected",
    ),
    "HQQ of another shape": (
        HQQ,
        hqq() | {"a.shape": np.array([8, 32])},
        r"'a.W_q' has 256 bytes: 4 bits in groups of 32 do not make \[8, 32\]",
    ),
    "HQQ without a group": (
        HQQ,
        hqq() | {"a.group_size": np.array(0, np.int32)},
        r"in groups of 0 do not make \[8, 64\]",
    ),
    "HQQ with several numbers for one": (
        HQQ,
        hqq() | {"a.nbits": np.array([4, 4], np.int32)},
        r"'a.nbits' has shape \[2\], expected one number",
    ),
    "HQQ whose scales are packed too": (
        HQQ,
        hqq() | {"a.scale": np.zeros((8, 1), np.uint8)},
        r"'a.scale' is U8 \[8, 1\], expected F32 or F16 or BF16 \[16, 1\]",
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
        opened(tmp_path, settings, tensors)
    assert caught.value.at is not None and caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if kind not in ("fp8", "mxfp4", "mlx")])
def test_packed_weights_of_which_config_says_nothing(kind: str, tmp_path: Path) -> None:
    settings, make = WHOLE[kind]
    opened(tmp_path, settings, make())
    with pytest.raises(InputError, match="packed, of which quantization_config says nothing; fix: download"):
        open_base(tmp_path, {"model_type": "llama"})


def test_every_format_is_tested_for_missing_parts() -> None:
    assert {str(settings.get("quant_method", "mlx")) for settings, _ in WHOLE.values()} | {
        "fbgemm_fp8"
    } == set(FORMATS)
