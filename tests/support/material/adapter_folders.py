"""Adapter folders and bases written tensor by tensor, for tests of what is read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError, LorafoldError
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

Q = "model.layers.{}.self_attn.q_proj"


PREFIX = "base_model.model."


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def lora(module: str, rank: int = 2, rows: int = 8, cols: int = 6) -> dict[str, Any]:
    return {
        f"{PREFIX}{module}.lora_A.weight": np.ones((rank, cols), np.float32),
        f"{PREFIX}{module}.lora_B.weight": np.ones((rows, rank), np.float32),
    }


def adapter_folder(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = lora(Q.format(0)) | lora(Q.format(1)) if tensors is None else tensors
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def base_folder(folder: Path, layers: int = 2) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    tensors = {f"{Q.format(i)}.weight": zeros(8, 6) for i in range(layers)}
    tensors |= {f"model.layers.{i}.mlp.up_proj.weight": zeros(8, 6) for i in range(layers)}
    tensors |= {"model.embed_tokens.weight": zeros(10, 6), "lm_head.weight": zeros(10, 6)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 10}')
    return Checkpoint.open(folder)


def fold(folder: Path, tensors: dict[str, Any] | None = None, layers: int = 2, **config: Any) -> Folded:
    """A base with an adapter folded in, both written to `folder`."""
    adapter = Adapter.open(adapter_folder(folder / "adapter", tensors, **config))
    return Folded(base_folder(folder / "base", layers), [(adapter, 1.0)])


def refused(action: Callable[[], Any], problem: str, kind: type[LorafoldError] = InputError) -> LorafoldError:
    """The error that an action ends with: one line, a place, a cure (or what was expected, which is one)."""
    with pytest.raises(kind, match=problem) as caught:
        action()
    error = caught.value
    assert "\n" not in str(error) and error.at and (error.fix or "expected" in error.problem)
    return error
