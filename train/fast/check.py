"""Holds the fast way to compute against the plain one, before the first step, on the run's own examples.

The plain way is peft's layers, transformers' attention, padding, all logits. Loss and gradient of a few
examples are compared, with noise added to the adapter meanwhile. If they differ by more than rounding, the
run takes the plain way. So a model whose logits are more than a product costs speed and never correctness.
Whether packed examples reach each other is asked apart, since the answer is exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafold.chat.tokenizer import Encoded
from lorafold.train.fast.forward import Forward, causal_model
from lorafold.train.model.adapter import trainable
from lorafold.train.tokens.collate import Batch
from lorafold.train.tokens.packing import make_pack

if TYPE_CHECKING:
    import torch

_SAMPLE = 8  # examples of the check
_SAMPLE_TOKENS = 2048  # and most tokens of them together
_LOSS_OFF = 0.01  # relative difference of the losses; 16-bit rounding gives about 0.001
_COSINE = 0.98  # of the angle between the gradients; 16-bit rounding gives about 0.9995
_NOISE = 0.02  # standard deviation that moves an adapter off zero


def sample(sequences: Sequence[Encoded]) -> list[Encoded]:
    """A few short examples of different length, for the check."""
    ordered = sorted(sequences, key=lambda sequence: len(sequence.ids))
    chosen: list[Encoded] = []
    step = max(1, len(ordered) // (2 * _SAMPLE))
    for sequence in ordered[: step * _SAMPLE : step]:
        if sum(len(one.ids) for one in chosen) + len(sequence.ids) <= _SAMPLE_TOKENS or not chosen:
            chosen.append(sequence)
    return chosen


@contextlib.contextmanager
def moved(model: Any) -> Iterator[None]:
    """Add noise to the adapter for the length of the block: at zero, half of its arithmetic shows nothing."""
    import torch

    saved = {name: value.detach().clone() for name, value in trainable(model).items()}
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in trainable(model).values():
            value += _NOISE * torch.randn(value.shape, generator=draw).to(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in trainable(model).items():
                value.copy_(saved[name])
                value.grad = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Loss of a batch, and the gradient of all trained parameters in one float32 vector on the CPU."""

    loss: float
    gradient: torch.Tensor


def measure(forward: Forward, batch: Batch) -> Measured:
    """Loss and gradient of a batch, without dropout, with the adapter off zero.

    Layers that are to be computed twice are so here: without that a small card has no room for the plain way.
    """
    import torch

    model = forward.model
    with moved(model):
        model.eval()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # of the layer alone: what drops in it does not
        try:
            loss = forward.loss(batch)
            loss.backward()
            parts = [
                torch.zeros_like(value) if value.grad is None else value.grad
                for value in trainable(model).values()
            ]
            gradient = torch.cat([part.flatten().float().cpu() for part in parts])
        finally:
            model.train()
            model.zero_grad(set_to_none=True)
    return Measured(loss.item(), gradient)


def leaks(forward: Forward, sequences: Sequence[Encoded]) -> bool:
    """Whether an example feels what lies before it in a pack.

    The derivative of its loss by the other's embeddings is exactly zero if nothing leads from one to the
    other, in any type and whatever rounding does; a small leak would hide in a difference of losses.

    Args:
        forward: packed.
        sequences: at least one; two of them, or one twice, make the pack.
    """
    import torch

    model, last = forward.model, sequences[-1]
    silent = Encoded(sequences[0].ids, [False] * len(sequences[0].ids))
    batch = make_pack([silent, Encoded(last.ids, [True] * len(last.ids))])
    found: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1].clone()  # some models scale it in place

    hook = causal_model(model).get_input_embeddings().register_forward_hook(keep)
    model.eval()
    try:
        (slope,) = torch.autograd.grad(forward.loss(batch), found[-1:])
    finally:
        model.train()
        hook.remove()
    return bool((slope[:, : len(silent.ids)] != 0).any())


def difference(plain: Measured, fast: Measured) -> str:
    """By how much the fast way is off, in words; empty if it is only rounding."""
    import torch

    off = abs(fast.loss - plain.loss) / max(abs(plain.loss), 1e-9)
    if not off <= _LOSS_OFF:
        return f"its loss is off by {off:.1%}"
    cosine = float(torch.nn.functional.cosine_similarity(plain.gradient, fast.gradient, dim=0))
    return "" if cosine >= _COSINE else f"its gradient has a cosine of {cosine:.3f} with the plain one's"
