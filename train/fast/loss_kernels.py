"""A Triton kernel for the cross entropy of rows of logits: loss and slope in two reads and one write."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK = 8192  # columns that a program takes at a time


@triton.jit
def _cross_entropy(logits, targets, losses, width, BLOCK: tl.constexpr):
    """losses[row] = log sum exp - logit of the target; the row becomes softmax - one-hot, in place."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target = tl.load(targets + row)
    largest = -float("inf")
    total = 0.0
    for start in range(0, width, BLOCK):  # the running form of a stable log sum exp
        cols = start + tl.arange(0, BLOCK)
        block = tl.load(logits + cols, mask=cols < width, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(block, axis=0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(block - new), axis=0)
        largest = new
    tl.store(losses + row, tl.log(total) + largest - tl.load(logits + target).to(tl.float32))
    tl.debug_barrier()  # the target's logit is read before it is written over
    for start in range(0, width, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        block = tl.load(logits + cols, mask=cols < width, other=-float("inf")).to(tl.float32)
        slope = tl.exp(block - largest) / total - tl.where(cols == target, 1.0, 0.0)
        tl.store(logits + cols, slope.to(logits.dtype.element_ty), mask=cols < width)


def cross_entropy_rows(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Loss of each row, and its slope in the place of the logits.

    Args:
        logits: (rows, vocabulary), contiguous; overwritten.
        targets: int64 (rows,).

    Returns:
        float32 (rows,), and the tensor of logits, now softmax - one-hot.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        _cross_entropy[(len(logits),)](logits, targets, losses, logits.shape[1], BLOCK=_BLOCK, num_warps=16)
    return losses, logits
