"""What an export reads of adapters, packed bases and GGUFs beyond their headers, as `targets` has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from packed_parts import AWQ, GPTQ, HQQ, INT4, INT8, MLX, awq, gptq, hqq, int4, int8, key_of, mlx

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


_PACKED = (
    (GPTQ | {"desc_act": False}, gptq),
    (AWQ, awq),
    (INT4, int4),
    (INT8, int8),
    (MLX, mlx),
    (HQQ, hqq),
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
    configs = [dumped(shared | {key_of(settings): settings}) for settings, _ in _PACKED]
    return [bytes([number]) + config for number, config in enumerate(configs)]


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
