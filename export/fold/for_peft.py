"""An adapter as today's PEFT reads it, for whoever loads it there to compare.

PEFT would read some adapters as other ones, without an error; see `lorafold.adapters.peft_reading`. Here the
same numbers get the names and the order that PEFT 0.21 expects, so that it computes with them what the
adapter's author computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.adapters.config import CONFIG
from lorafold.adapters.folder import WEIGHTS
from lorafold.adapters.peft_reading import MLX, UNTARGETED, WRAPPED, is_transposed, peft_key, turned
from lorafold.export.fold.targets import Targets
from lorafold.files.jsonfile import read_object


def differs_for_peft(targets: Targets) -> str | None:
    """Why today's PEFT would read another adapter from this folder; None if it reads this one.

    Args:
        targets: the adapter, as it was planned for its base; see `Folded.plans`.
    """
    adapter = targets.adapter
    if adapter.config.mlx:
        return MLX
    if any(_turned(targets, key) for key in targets.experts):
        return turned(adapter.config)
    if any(name != key for name, key in _names(targets)):
        return WRAPPED
    if targets.told and not adapter.config.target_modules:
        return UNTARGETED
    return None


def write_for_peft(targets: Targets, folder: Path) -> None:
    """Write the adapter so that today's PEFT reads it.

    Args:
        targets: the adapter, as it was planned for its base; see `Folded.plans`.
        folder: an empty folder.
    """
    from safetensors.numpy import save_file

    source = targets.adapter.source
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, key in _names(targets):
        info = source.tensors[key]
        tensors[name] = source.rows(key, 0, info.rows).reshape(info.shape)
    for module in targets.adapter.modules:
        key = module.parts.get("lora_A", "")
        if _turned(targets, key):
            a, b = (_name(targets, module.parts[part]) for part in ("lora_A", "lora_B"))
            tensors[a], tensors[b] = _swap(tensors[a], tensors[b], targets.experts[key][1])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_config(targets)), encoding="utf-8")


def empty_products(targets: Targets) -> int:
    """How many of the adapter's products are zero, because their B is."""
    source, count = targets.adapter.source, 0
    for module in targets.adapter.modules:
        for key in (module.parts.get("lora_B"), module.parts.get("lora_embedding_B")):
            if key is not None:
                count += not source.rows(key, 0, source.tensors[key].rows).any()
    return count


def _names(targets: Targets) -> Iterator[tuple[str, str]]:
    """Every tensor's name in PEFT, and its key in the file."""
    for module in targets.adapter.modules:
        for key in module.parts.values():
            yield _name(targets, key), key
    for entry in targets.adapter.saved:
        key = entry.copy or entry.key  # of two names for one tensor PEFT reads the plain one
        yield _name(targets, key), key


def _name(targets: Targets, key: str) -> str:
    return peft_key(key, targets.adapter.config.peft_type)


def _turned(targets: Targets, key: str) -> bool:
    """Whether an A and its B are of experts, and lie in another way than today's PEFT stores them."""
    swapped = targets.experts.get(key)
    return swapped is not None and swapped[0] == is_transposed(targets.names.config)


def _swap(
    a: NDArray[np.float32], b: NDArray[np.float32], experts: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factors of the transposed products: A (E · r, a), B (b, r · E) become (E · r, b), (a, r · E)."""
    rank = a.shape[0] // experts
    by_expert = b.reshape(len(b), rank, experts).transpose(2, 1, 0)  # (E, r, b)
    by_rank = a.reshape(experts, rank, -1).transpose(2, 1, 0)  # (a, r, E)
    return (
        np.ascontiguousarray(by_expert.reshape(experts * rank, -1)),
        np.ascontiguousarray(by_rank.reshape(-1, rank * experts)),
    )


def _config(targets: Targets) -> dict[str, Any]:
    config = targets.adapter.config
    if not config.mlx:
        said = read_object(config.path)
        return said | {"target_modules": list(targets.told)} if targets.told else said
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_dora": config.use_dora,
        "target_modules": [module.module for module in targets.adapter.modules],
        "base_model_name_or_path": config.base_model_name_or_path,
    }
