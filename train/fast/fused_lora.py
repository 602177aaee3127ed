"""Computes each LoRA layer in one piece; its parameters stay in peft's modules.

peft computes y = W x + s·B(A(D(x))) in separate steps, in float32 beside a 16-bit base: most of a step's time
is then spent moving activations. Here a layer is one autograd function that reads them as rarely as possible
(`lora_kernels`), keeps only its input, and unpacks a 4-bit base on the way.

Only plain LoRA on linear layers is taken over; every other layer stays peft's own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from types import ModuleType


def fuse(model: Any) -> int:
    """Take over the forward pass of every layer that qualifies.

    Args:
        model: with peft's LoRA modules in place, on a CUDA GPU.

    Returns:
        Number of layers taken over.
    """
    layers = [layer for layer in model.modules() if _qualifies(layer)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer)
    return len(layers)


def _qualifies(layer: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    from lorafold.train.fast import lora_kernels

    if not isinstance(layer, LoraLayer) or len(getattr(layer, "active_adapters", ())) != 1:
        return False
    name, base = layer.active_adapters[0], layer.get_base_layer()
    return (
        type(base).__name__ in ("Linear", "Linear4bit")
        and name in layer.lora_A
        and name not in getattr(layer, "lora_variant", {})  # DoRA and its like
        and not layer.lora_bias.get(name, False)
        and not getattr(layer, "fan_in_fan_out", False)
        and lora_kernels.supports(layer.r[name], 0)
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    from lorafold.train.fast import lora_kernels

    name = layer.active_adapters[0]
    elements = x.numel() // x.shape[-1] * max(x.shape[-1], layer.out_features)
    if layer.disable_adapters or layer.merged or not lora_kernels.supports(layer.r[name], elements):
        return type(layer).forward(layer, x, *args, **kwargs)
    dropout = layer.lora_dropout[name]
    p = float(dropout.p) if layer.training and hasattr(dropout, "p") else 0.0
    # torch's own generator is what a checkpoint holds, and what gradient checkpointing puts back.
    seed = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=x.device) if p else None
    return LoraLinear.apply(
        x,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.get_base_layer(),
        float(layer.scaling[name]),
        p,
        seed,
        lora_kernels,
    )


class LoraLinear(torch.autograd.Function):  # type: ignore[misc]
    """y = W x + bias + s·B A D(x), with W frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        base: Any,
        scale: float,
        p: float,
        seed: torch.Tensor | None,
        products: ModuleType,
    ) -> torch.Tensor:
        """Args:
        x: (..., in), in the base's type.
        a: (rank, in), b: (out, rank), of any floating type.
        base: the frozen layer.
        scale: s.
        p: probability of D to drop.
        seed: of D, None if nothing is dropped.
        products: `lora_kernels`, or functions of the same meaning.
        """
        flat = x.reshape(-1, x.shape[-1])
        y = torch.nn.functional.linear(flat, dense_weight(base, x.dtype), base.bias)
        h = products.project(flat, a, scale, seed, p)  # (tokens, rank)
        products.expand_add(y, h, b, None, 0.0)
        ctx.save_for_backward(flat, a, b, h, seed)
        ctx.base, ctx.scale, ctx.p, ctx.products = base, scale, p, products
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of x, A and B; the base has none."""
        (dy,) = gradients
        flat, a, b, h, seed = ctx.saved_tensors
        products, p = ctx.products, ctx.p
        rows = dy.reshape(-1, dy.shape[-1])
        rows = rows if rows.is_contiguous() else rows.contiguous()
        dh = products.project(rows, b.t(), ctx.scale, None, 0.0)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = rows @ dense_weight(ctx.base, rows.dtype)
            products.expand_add(dx, dh, a.t(), seed, p)
            dx = dx.view(*dy.shape[:-1], dx.shape[-1])
        da = products.gram(dh, flat, seed, p).to(a.dtype)
        db = products.gram(h, rows, None, 0.0).t().to(b.dtype)
        return dx, da, db, None, None, None, None, None


def dense_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The frozen weight (out, in) in a type; a 4-bit one is unpacked."""
    weight: torch.Tensor = base.weight
    state = getattr(weight, "quant_state", None) or getattr(base, "quant_state", None)
    if state is None:
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)
