"""Optimizers and learning-rate schedules, by the names of TrainingArguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorafold.models import require
from lorafold.train.config import TrainConfig

if TYPE_CHECKING:
    import torch

# name -> (class in its module, extra keywords)
_TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_torch": ("AdamW", {}),
    "adamw_torch_fused": ("AdamW", {"fused": True}),
    "sgd": ("SGD", {}),
    "adafactor": ("Adafactor", {}),
}
_BITSANDBYTES: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_bnb_8bit": ("AdamW", {"optim_bits": 8}),
    "paged_adamw_32bit": ("AdamW", {"optim_bits": 32, "is_paged": True}),
    "paged_adamw_8bit": ("AdamW", {"optim_bits": 8, "is_paged": True}),
    "lion_32bit": ("Lion", {"optim_bits": 32}),
    "lion_8bit": ("Lion", {"optim_bits": 8}),
    "paged_lion_32bit": ("Lion", {"optim_bits": 32, "is_paged": True}),
    "paged_lion_8bit": ("Lion", {"optim_bits": 8, "is_paged": True}),
}


def resolve_optimizer(name: str, device: torch.device) -> tuple[str, str]:
    """The optimizer that runs on this device, and a note if it is not the one that was asked for.

    "auto" is AdamW, fused into one kernel on a GPU.

    bitsandbytes pages an optimizer's state between GPU and CPU memory; without a GPU there is nothing to
    page, and torch's AdamW does the same sums as the 32-bit one. An 8-bit one rounds its state: AdamW without
    that rounding takes its place.
    """
    if name == "auto":
        return ("adamw_torch_fused" if device.type == "cuda" else "adamw_torch"), ""
    if device.type != "cuda" and name.startswith(("paged_adamw", "adamw_bnb")):
        same = (
            "does the same sums here" if name.endswith("32bit") else "takes its place, its state in 32 bits"
        )
        return "adamw_torch", f"{name} needs a CUDA GPU; adamw_torch {same}"
    return name, ""


def build_optimizer(model: Any, config: TrainConfig, device: torch.device) -> Any:
    """An optimizer over the model's trainable parameters.

    Raises:
        SystemFault: bitsandbytes is needed and not installed.
    """
    name, _ = resolve_optimizer(config.optim, device)
    if name in _TORCH:
        import torch

        kind, options = _TORCH[name]
        factory: Callable[..., Any] = getattr(torch.optim, kind)
    else:
        require("bitsandbytes", extra="train")
        import bitsandbytes

        kind, options = _BITSANDBYTES[name]
        factory = _waiting_once(getattr(bitsandbytes.optim, kind))
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay, **options}
    if kind == "AdamW":
        options |= {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}
    elif kind == "Lion":
        options |= {"betas": (config.adam_beta1, config.adam_beta2)}
    if config.method == "loraplus":
        from peft.optimizers import create_loraplus_optimizer

        # peft reads the decay of each group under a name of its own, and takes 0 without it.
        return create_loraplus_optimizer(
            model,
            factory,
            loraplus_lr_ratio=config.loraplus_lr_ratio,
            loraplus_weight_decay=config.weight_decay,
            **options,
        )
    return factory([p for p in model.parameters() if p.requires_grad], **options)


def _waiting_once(kind: Any) -> Any:
    """A class of bitsandbytes whose step waits for the GPU once instead of after each of its tensors.

    Its kernels run one after the other in any case. What is paged must be in its place when the step is over.
    """
    import torch
    from bitsandbytes.optim import optimizer

    if not hasattr(optimizer, "sync_gpu"):  # before 0.47 it waited through torch.cuda itself
        return kind

    class WaitingOnce(kind):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            waits = optimizer.sync_gpu
            optimizer.sync_gpu = lambda tensor: None
            try:
                loss = super().step(closure)
            finally:
                optimizer.sync_gpu = waits
            if self.is_paged and torch.cuda.is_available():
                torch.cuda.synchronize()
            return loss

    return WaitingOnce


def build_schedule(optimizer: Any, config: TrainConfig, total_steps: int) -> Any:
    """The learning-rate schedule; its state is the number of the step."""
    from transformers import get_scheduler

    return get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=config.warmup_steps or math.ceil(total_steps * config.warmup_ratio),
        num_training_steps=total_steps,
    )
