"""The summed cross entropy of hidden states, without the logits of all positions in memory.

The logits of a vocabulary of 150,000 tokens are most of the memory of a training step and all of them are
used once. Here the positions that are trained are taken out first, and a few thousand of them at a time go
through the output head; for a frozen head the gradient of the hidden states is computed in the same pass
(d loss / d logits = softmax - one-hot), so a chunk's logits are never needed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lorafold.train.tokens.collate import IGNORED

if TYPE_CHECKING:
    from types import ModuleType

_CHUNK_BYTES = 2**29  # of a chunk's logits in 16 bit; smaller re-reads the head more often
# Fields of a config by which a model changes its logits after the head.
_CHANGES_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "norm_head", "mup_width_scale")


def plain_head(model: Any) -> Any:
    """The output head, if the logits are nothing but its product with the last hidden states; else None."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    changed = any(getattr(config, name, None) for name in _CHANGES_LOGITS)
    return head if type(head) is torch.nn.Linear and not changed else None


def head_loss(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross entropy over the trained positions.

    Args:
        hidden: (rows, cols, width), the decoder's output.
        head: the output layer: weight (vocabulary, width).
        targets: (rows, cols) in the CPU's memory, `IGNORED` if nothing is trained; a single row may be
            shorter than `hidden`, whose rest is then filling.

    Returns:
        A float32 scalar.
    """
    # Counted here and not on the GPU, which would have to finish the decoder first.
    flat = targets.flatten()
    kept = (flat != IGNORED).nonzero().flatten()
    wanted = flat[kept].to(hidden.device, non_blocking=True)
    chosen = hidden.flatten(0, -2).index_select(0, kept.to(hidden.device, non_blocking=True))
    if not (torch.is_grad_enabled() and (chosen.requires_grad or head.weight.requires_grad)):
        return _summed(chosen, head, wanted)
    if head.weight.requires_grad:
        return _recomputed(chosen, head, wanted)
    return _FrozenHead.apply(chosen, head.weight, head.bias, wanted)


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(256, _CHUNK_BYTES // (2 * vocabulary))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _summed(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The sum in chunks, of which nothing is to be derived: no more than a chunk's logits in 16 bit."""
    total = hidden.new_zeros((), dtype=torch.float32)
    rows_of = _rows_kernel(hidden)
    for rows in _chunks(len(targets), head.weight.shape[0]):
        losses, _ = rows_of(head(hidden[rows]), targets[rows])
        total += losses.sum()
    return total


def _recomputed(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """The sum in chunks, for a head that is trained: the gradient computes a chunk's logits again."""
    from torch.utils.checkpoint import checkpoint

    def loss(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for rows in _chunks(len(targets), head.weight.shape[0]):
        total = total + checkpoint(loss, hidden[rows], targets[rows], use_reentrant=False)
    return total


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]
    """Loss and gradient of the hidden states in one pass over chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        rows_of = _rows_kernel(hidden)
        for rows in _chunks(len(targets), weight.shape[0]):
            logits = torch.nn.functional.linear(hidden[rows], weight, bias)  # (chunk, vocabulary)
            losses, slopes = rows_of(logits, targets[rows])
            total += losses.sum()
            torch.mm(slopes, weight, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None


def _rows_kernel(hidden: torch.Tensor) -> Any:
    if hidden.is_cuda:
        kernels = _loss_kernels()
        if kernels is not None:
            return kernels.cross_entropy_rows
    return _rows_plain


def _loss_kernels() -> ModuleType | None:
    try:
        from lorafold.train.fast import loss_kernels
    except ImportError:  # no Triton
        return None
    return loss_kernels


def _rows_plain(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each row, and softmax - one-hot in the logits' type."""
    wide = logits.float()
    chances = torch.log_softmax(wide, dim=-1)
    losses = -chances.gather(1, targets[:, None]).flatten()
    slopes = chances.exp()
    slopes[torch.arange(len(targets), device=targets.device), targets] -= 1
    return losses, slopes.to(logits.dtype)
