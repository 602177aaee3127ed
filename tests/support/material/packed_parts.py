"""One tensor packed in each format, by hand, and the settings that say so: folders that can be opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Tensors = dict[str, Any]
METADATA = "__metadata__"
"""What a file says beside its tensors."""
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
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
HQQ = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32}}}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}


def key_of(settings: Mapping[str, Any]) -> str:
    """Where a config.json has such settings: MLX alone writes no method, under a name of its own."""
    return "quantization" if settings.get("quant_method") is None else "quantization_config"


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


def hqq() -> Tensors:
    """A weight (8, 64) in groups of 32: sixteen lines, two to a byte."""
    return {
        "a.W_q": np.zeros((8, 32), np.uint8),
        "a.scale": np.ones((16, 1), np.float16),
        "a.zero": np.ones((16, 1), np.float16),
        "a.shape": np.array([8, 64]),
        "a.nbits": np.array(4, np.int32),
        "a.group_size": np.array(32, np.int32),
        "a.axis": np.array(1, np.int32),
        "a.packing": np.frombuffer(b"4bit_u8", np.uint8).copy(),
    }


WHOLE: dict[str, tuple[Any, Callable[[], Tensors]]] = {
    "nf4": (NF4, nf4),
    "nf4 nested": (NF4, lambda: nf4(nested=True)),
    "int8": (INT8, int8),
    "fp8": (FP8, fp8),
    "mxfp4": ({"quant_method": "mxfp4"}, mxfp4),
    "gptq": (GPTQ, gptq),
    "awq": (AWQ, awq),
    "int4": (INT4, int4),
    "nvfp4": (NVFP4, nvfp4),
    "mlx": (MLX, mlx),
    "hqq": (HQQ, hqq),
    "torchao": (TORCHAO, torchao),
    "torchao fp8": (TORCHAO, torchao_fp8),
    "torchao int4": (TORCHAO, torchao_int4),
}
