"""Weights trained whole beside a 16-bit base (`modules_to_save`, new tokens): float32, 16-bit arithmetic.

peft makes the small matrices of an adapter float32, but copies such a module in the base's own type. There a
step of 1e-5 is lost in rounding (bfloat16 has 8 bits), and float16 gradients cannot be unscaled. So these
weights are held in float32, as those of full fine-tuning are, and their module multiplies in the base's type,
which is also what it gives to the next one. The rest of the model is left alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def widen_trained(model: Any) -> int:
    """Make every trained parameter float32, in place.

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
