"""What an export reads of adapters, packed bases and GGUFs beyond their headers, as `targets` has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hostile.targets import Parse, Target, dumped, gguf_bytes


def _fold(folder: Path) -> Parse:
    """An adapter's configuration, held against its tensors and a base: targets by name or by pattern."""
    from adapter_folders import adapter_folder, base_folder

    from lorafold.adapters.folder import Adapter
    from lorafold.export.fold.folded import Folded

    base, adapter = base_folder(folder / "base"), adapter_folder(folder / "adapter")

    def parse(data: bytes) -> None:
        (adapter / "adapter_config.json").write_bytes(data)
        fold = Folded(base, [(Adapter.open(adapter), 1.0)])
        for name in fold.touched:
            fold.rows(name, 0, 1)

    return parse


_PACKED: tuple[tuple[dict[str, Any], Callable[[], dict[str, Any]]], ...] = (
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}},
        lambda: {
            "a.qweight": np.zeros((8, 32), np.int32),
            "a.qzeros": np.zeros((2, 4), np.int32),
            "a.scales": np.ones((2, 32), np.float16),
            "a.g_idx": np.arange(64, dtype=np.int32) // 32,
        },
    ),
    (
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}},
        lambda: {
            "a.qweight": np.zeros((64, 4), np.int32),
            "a.qzeros": np.zeros((2, 4), np.int32),
            "a.scales": np.ones((2, 32), np.float16),
        },
    ),
    (
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "group_size": 32, "strategy": "group"},
                    }
                },
            }
        },
        lambda: {
            "a.weight_packed": np.zeros((8, 8), np.int32),
            "a.weight_scale": np.ones((8, 2), np.float32),
            "a.weight_shape": np.array([8, 64]),
        },
    ),
    (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        lambda: {"a.weight": np.ones((4, 64), np.int8), "a.SCB": np.ones(4, np.float32)},
    ),
    (
        {"quantization": {"bits": 4, "group_size": 32}},
        lambda: {
            "a.weight": np.zeros((8, 8), np.uint32),
            "a.scales": np.ones((8, 2), np.float16),
            "a.biases": np.ones((8, 2), np.float16),
        },
    ),
)


def _packed(folder: Path) -> Parse:
    """The settings of a packed base; the first byte chooses whose weights lie beside them."""
    from safetensors.numpy import save_file

    from lorafold.packed.source import open_base

    folders = [folder / str(number) for number in range(len(_PACKED))]
    for place, (_, tensors) in zip(folders, _PACKED, strict=True):
        place.mkdir()
        save_file({**tensors(), "norm.weight": np.ones(64, np.float16)}, place / "model.safetensors")

    def parse(data: bytes) -> None:
        from lorafold.models import read_config

        place = folders[data[0] % len(folders)] if data else folders[0]
        (place / "config.json").write_bytes(data[1:])
        base = open_base(place, read_config(place))
        for name in base.tensors:
            base.rows(name, 0, 1)
        base.close()

    return parse


def _packed_seeds() -> list[bytes]:
    shared = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    return [bytes([number]) + json.dumps(shared | told).encode() for number, (told, _) in enumerate(_PACKED)]


def _mmproj(folder: Path) -> Parse:
    from lorafold.export.onto.model import BaseGguf

    path = folder / "mmproj.gguf"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        BaseGguf.open(path, projector=True)

    return parse


def _mmproj_seeds() -> list[bytes]:
    told = {
        "general__type": "mmproj",
        "architecture": "clip",
        "clip__has_vision_encoder": True,
        "clip__vision__projection_dim": 8,
        "clip__vision__block_count": 1,
    }
    row = np.ones((3, 8), np.float32)
    return [gguf_bytes({"v.blk.0.attn_q.weight": row, "mm.0.weight": row.astype(np.float16)}, **told)]


def _fold_seeds() -> list[bytes]:
    plain: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "x"}
    targets = (["q_proj"], ".*q_proj", r"model\.layers\.\d+\.self_attn\.(q|k)_proj", "all-linear")
    more = {"rank_pattern": {"^.*layers.0": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 8}}
    return [dumped(plain | {"target_modules": each}) for each in targets] + [
        dumped(plain | {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]} | more)
    ]


FOLDS: Sequence[Target] = (
    Target("fold", _fold, _fold_seeds, "json", slow=True),  # a pattern is matched in a child
    Target("packed", _packed, _packed_seeds, "json", chosen=True),
    Target("mmproj", _mmproj, _mmproj_seeds, "gguf"),
)
