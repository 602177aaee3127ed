"""Saves a trained model: as PEFT's adapter folder, or as a whole model after full fine-tuning.

PiSSA and OLoRA train a part of the base that they first took out of it. What they add to the untouched base
is s·(B·A - B0·A0), which is again a LoRA, of rank 2r: B' = [B, -B0], A' = [A; A0], and alpha' such that the
scale s stays (peft's `subtract_mutated_init` does the same). It is saved so, and merges like any other.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.artifacts import write_atomic
from lorafold.models import Base
from lorafold.tokenizer.folder import copy_files, find_files, tokenizer_files
from lorafold.train.methods import Method
from lorafold.train.model.tensorfiles import save_tensors

if TYPE_CHECKING:
    import torch


def initial_adapter(model: Any) -> dict[str, Any]:
    """A copy of the adapter as it is before the first step."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def save_adapter(
    model: Any, folder: Path, base: Base, method: Method, initial: dict[str, Any], dtype: Any = None
) -> None:
    """Write PEFT's two files, or the whole model after full fine-tuning.

    Args:
        model: as trained.
        folder: to write into.
        base: named in the config, so that other tools find it.
        method: the row of the method.
        initial: of `initial_adapter`, for methods that mutate the base.
        dtype: for a whole model, the type of the weights on disk.
    """
    if method.peft is None:
        model.save_pretrained(folder, state_dict=_converted(model.state_dict(), dtype))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"dtype": str(dtype).removeprefix("torch."), "use_cache": True}
        write_atomic(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        return
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    settings = model.peft_config["default"].to_dict()
    settings |= {
        "base_model_name_or_path": base.id,
        "revision": base.revision,
        "inference_mode": True,
    }
    if method.mutates_base:
        state, settings = _as_plain_lora(state, initial, settings)
    save_tensors(folder / "adapter_model.safetensors", state)
    plain = json.dumps(settings, indent=2, default=_json, sort_keys=True) + "\n"
    write_atomic(folder / "adapter_config.json", plain)


def _converted(state: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Weights in another type on the CPU; what shares memory still does, so a tied head is written once."""
    copies: dict[tuple[Any, ...], Any] = {}
    found = {}
    for name, value in state.items():
        memory = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        if memory not in copies:
            copies[memory] = value.to("cpu", dtype)
        found[name] = copies[memory]
    return found


def _json(value: Any) -> Any:
    """Sets and enumerations of peft's configs as JSON."""
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))


def _as_plain_lora(
    state: dict[str, Any], initial: dict[str, Any], settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    merged = {}
    for name, value in state.items():
        before = initial[name].to(value)
        if "lora_A" in name:  # (r, in)
            merged[name] = torch.cat([value, before], dim=0)
        elif "lora_B" in name:  # (out, r)
            merged[name] = torch.cat([value, -before], dim=1)
        else:
            merged[name] = value
    growth = math.sqrt(2) if settings.get("use_rslora") else 2
    return merged, settings | {
        "r": 2 * settings["r"],
        "lora_alpha": growth * settings["lora_alpha"],
        "init_lora_weights": True,
    }


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files, so that the result is complete without its base's folder."""
    copy_files(tokenizer_files(source) | find_files(source, ["generation_config.json"]), folder)


def keep_in_float32(model: Any) -> int:
    """Hold every trained parameter in float32, in place; its module still computes in the base's type.

    Steps are smaller than a 16-bit weight can tell apart.

    Args:
        model: with peft's adapter, on its device.

    Returns:
        The number of modules that now compute in another type than they hold.
    """
    import torch

    narrow: dict[Any, torch.dtype] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                narrow[module] = parameter.dtype
    # Only now: of two modules that share a weight both have to be found.
    for module, dtype in narrow.items():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        module.forward = functools.partial(_forward, module, dtype)
    return len(narrow)


def _forward(module: Any, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    import torch

    device = next(module.parameters()).device.type
    # No cache of the cast weights: it would outlive the capture of a CUDA graph.
    with torch.autocast(device, dtype=dtype, cache_enabled=False):
        found = type(module).forward(module, *args, **kwargs)
    return found.to(dtype) if isinstance(found, torch.Tensor) else found


def trainable(model: Any) -> dict[str, Any]:
    """The parameters that are trained, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
