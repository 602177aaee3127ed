"""Folders with packed weights for tests: written by the library that is installed, or by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import tiny_chat
from packed_parts import METADATA, key_of

from lorafold.packed.source import PackedCheckpoint, open_base

BNB: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


@cache
def bnb_model(kind: str) -> Path:
    """`tiny_chat.folder()` as transformers saves it after bitsandbytes packed it, for one kind of `BNB`."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source, out = tiny_chat.folder(), Path(mkdtemp(prefix="lorafold-packed-")) / kind
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=BitsAndBytesConfig(**BNB[kind]), device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, out / name)
    return out


def unpacked_by_bitsandbytes(base: Path) -> dict[str, Any]:
    """The model's weights as transformers and bitsandbytes unpack them, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, device_map="cpu", dtype=torch.float32)
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.dtype = torch.float32
    return {name: value.float().numpy() for name, value in model.dequantize().state_dict().items()}


def packed_folder(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Any],
    key: str = "quantization_config",
    metadata: dict[str, str] | None = None,
) -> Path:
    """A folder with a configuration and numpy or torch tensors; no model that could run."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", key: dict(settings)}))
    save_file(
        {
            name: value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
            for name, value in tensors.items()
        },
        folder / "model.safetensors",
        metadata,
    )
    return folder


def open_packed(folder: Path) -> PackedCheckpoint:
    """A folder of packed weights, as a base is opened."""
    base = open_base(folder, json.loads((folder / "config.json").read_text()))
    assert isinstance(base, PackedCheckpoint)
    return base


def opened(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> PackedCheckpoint:
    """Tensors of `packed_parts` with their settings, and a plain norm beside them, as a base is opened."""
    import torch

    stored = {name: value for name, value in tensors.items() if name != METADATA}
    stored["norm.weight"] = torch.ones(64)
    return open_packed(packed_folder(folder, settings, stored, key_of(settings), tensors.get(METADATA)))
