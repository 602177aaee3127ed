"""Computes each LoRA layer in one piece; its parameters stay in peft's modules.

peft computes y = W x + s·B(A(D(x))) in separate steps, in float32 beside a 16-bit base: most of a step's time
is then spent moving activations. Here a layer is one autograd function that reads them as rarely as possible
(`lora_kernels`), keeps only its input, and unpacks a 4-bit base on the way.

Only plain LoRA on linear layers is taken over; every other layer stays peft's own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorafold.train.fast.forward import causal_model

if TYPE_CHECKING:
    from types import ModuleType

_ALIGNED = 4  # numbers a seed takes: Triton compiles a kernel again for an address that 16 does not divide


@dataclass(slots=True)
class Seeds:
    """What the dropout of each fused layer is seeded with in a forward pass.

    All are drawn at once when the decoder is entered, from torch's own generator. A layer that gradient
    checkpointing computes again finds the seed of the first time, without the generator being put back.

    Attributes:
        count: layers.
        drawn: int32 (count, `_ALIGNED`) on the GPU; None before the first pass.
    """

    count: int
    drawn: torch.Tensor | None = None

    def draw(self, decoder: Any, *inputs: Any) -> None:
        """Draw for one pass; a hook of the decoder."""
        if decoder.training:
            device = next(p for p in decoder.parameters() if p.is_cuda).device
            shape = (self.count, _ALIGNED)
            self.drawn = torch.randint(2**31 - 1, shape, dtype=torch.int32, device=device)


def fuse(model: Any) -> int:
    """Take over the forward pass of every layer that qualifies.

    Args:
        model: with peft's LoRA modules in place, on a CUDA GPU.

    Returns:
        Number of layers taken over.
    """
    layers = [layer for layer in model.modules() if _qualifies(layer)]
    seeds = Seeds(len(layers))
    for number, layer in enumerate(layers):
        layer.forward = functools.partial(_forward, layer, seeds, number)
    _share_room([layer.get_base_layer() for layer in layers])
    if any(_dropout(layer) for layer in layers):
        causal_model(model).base_model.register_forward_pre_hook(seeds.draw)
    return len(layers)


def _share_room(bases: list[Any]) -> None:
    """Give all 4-bit layers one place to unpack into: each weight is there for one product.

    Blocks of that size, taken and given back between the activations', left a fifth more memory held than
    used.
    """
    packed = {base: state for base in bases if (state := _packed(base)) is not None}
    kinds = {(state.dtype, base.weight.device) for base, state in packed.items()}
    if len(kinds) == 1:
        ((dtype, device),) = kinds
        room = torch.empty(max(state.shape.numel() for state in packed.values()), dtype=dtype, device=device)
        for base in packed:
            base.room = room


def _packed(base: Any) -> Any:
    """How the weight of a 4-bit layer is packed; None for another layer."""
    return getattr(base.weight, "quant_state", None)


def drops_elsewhere(decoder: Any) -> bool:
    """Whether anything but a fused layer drops in training, and so draws from torch's generator."""
    fused = [layer for layer in decoder.modules() if _is_fused(layer)]
    ours = {id(part) for layer in fused for part in layer.lora_dropout.modules()}
    return any(
        isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0 and id(part) not in ours
        for part in decoder.modules()
    )


def _is_fused(layer: Any) -> bool:
    return getattr(vars(layer).get("forward"), "func", None) is _forward


def _dropout(layer: Any) -> float:
    """The probability with which a LoRA layer drops its input in training."""
    return float(getattr(layer.lora_dropout[layer.active_adapters[0]], "p", 0.0))


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


def _forward(
    layer: Any, seeds: Seeds, number: int, x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    from lorafold.train.fast import lora_kernels

    name = layer.active_adapters[0]
    elements = x.numel() // x.shape[-1] * max(x.shape[-1], layer.out_features)
    if layer.disable_adapters or layer.merged or not lora_kernels.supports(layer.r[name], elements):
        return type(layer).forward(layer, x, *args, **kwargs)
    p = _dropout(layer) if layer.training else 0.0
    seed = None
    if p:
        assert seeds.drawn is not None, "the decoder was entered"
        seed = seeds.drawn[number].to(x.device)
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
    """The frozen weight (out, in) in a type; a 4-bit one is unpacked, until the next one is."""
    weight: torch.Tensor = base.weight
    state = _packed(base)
    if state is None:
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    room: torch.Tensor | None = getattr(base, "room", None)
    out = None if room is None else room[: state.shape.numel()].view(state.shape)
    return dequantize_4bit(weight.data, state, out=out).to(dtype)
