"""The model that an export is held against: the base in transformers with the adapter active beside it.

In: `Inputs`. Out: torch modules, or the reason why there is none here. Needs the [train] extra and the memory
for the whole model; everything else of an export does without both.
"""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

from lorafold.export.inputs import Inputs
from lorafold.machine import memory_available

if TYPE_CHECKING:
    import torch


def why_no_reference(inputs: Inputs) -> str | None:
    """Why the reference cannot be run here, or None."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (pip install 'lorafold[train]')"
    if inputs.config.get("auto_map"):
        return "the base brings its own Python code, which an export does not run"
    if any(weight != 1.0 for _, weight in inputs.adapters) or len(inputs.adapters) > 1:
        return "several weighted adapters have no reference in one model"
    weights = sum(math.prod(info.shape) for info in inputs.source.tensors.values())
    free = memory_available()
    if free and 4 * weights > 0.7 * free:
        return f"the reference needs {4 * weights / 1e9:.0f} GB in float32 and {free / 1e9:.0f} GB are free"
    return None


def load_base(inputs: Inputs) -> torch.nn.Module:
    """The base alone, in float32 and in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(inputs.base.folder, dtype=torch.float32)
    return model.eval()


def with_adapter(model: torch.nn.Module, inputs: Inputs) -> torch.nn.Module:
    """The base with the adapter beside it, not merged; the base itself where there is none."""
    if not inputs.adapters:
        return model
    from peft import PeftModel

    tuned: torch.nn.Module = PeftModel.from_pretrained(model, inputs.adapters[0][0].folder)
    return tuned.eval()
