"""Measures how many tokens fit into the GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorafold.chat.tokenizer import Encoded
from lorafold.train.fast.allocator import free_bytes
from lorafold.train.fast.forward import Forward
from lorafold.train.model.adapter import trainable
from lorafold.train.tokens.packing import make_pack
from lorafold.train.workers import Workers

if TYPE_CHECKING:
    import torch

MOST_PACKED = 16_384  # tokens in a pack; beyond it nothing gets faster (docs/log.md)
LEAST = 2_048  # tokens in a pack under which gradient checkpointing pays
ON_CPU = 2_048  # a pack on the CPU, whose attention looks at a whole mask
_PROBES = (1_024, 3_072)  # tokens of the two passes that are measured
_SHARE = 0.85  # of the free memory; the rest is for fragments
_STATE = 12  # bytes a trained parameter: gradient and two moments in float32


def tokens_that_fit(forward: Forward, sequences: Sequence[Encoded], workers: Workers) -> int:
    """Most tokens of one forward and backward pass on every worker, from two passes of different size.

    Args:
        forward: the way to compute, on a CUDA GPU.
        sequences: of the run.
        workers: all measure, and agree.

    Returns:
        Tokens, limited by memory alone; 0 if not even the smaller pass fits.
    """
    import torch

    device = forward.device
    before = torch.cuda.memory_allocated(device)
    sizes: list[int] = []
    peaks: list[int] = []
    for size in _PROBES:
        # All or none: a worker that shares layers (`--fsdp`) is not left alone in the middle of a pass.
        if not workers.least(not sizes or peaks[0] * size < _room(device) * sizes[0]):
            break
        try:
            count, peak = _pass(forward, _about(sequences, size), device)
        except torch.OutOfMemoryError:
            count, peak = 0, 0
        if not workers.least(count):
            break
        sizes.append(count)
        peaks.append(peak - before)
    forward.model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    if not sizes:
        return 0
    each = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0]) if sizes[-1] > sizes[0] else peaks[0] / sizes[0]
    fixed = max(0.0, peaks[0] - each * sizes[0])
    state = _STATE * sum(value.numel() for value in trainable(forward.model).values())
    free = free_bytes(device)
    return workers.least(max(0, int((_SHARE * free - state - fixed) / max(each, 1.0))))


def _room(device: torch.device) -> int:
    """Bytes that a pass may take: free ones, and those that torch holds and does not use."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_bytes(device) + int(unused)


def _about(sequences: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """Sequences of so many tokens together, taken again from the beginning if there are too few."""
    chosen: list[Encoded] = []
    total = 0
    while total < tokens:
        for sequence in sequences:
            chosen.append(sequence)
            total += len(sequence.ids)
            if total >= tokens:
                break
    return chosen


def _pass(forward: Forward, sequences: Sequence[Encoded], device: torch.device) -> tuple[int, int]:
    """Tokens of a training pass, and the peak of allocated bytes in it."""
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    batch = make_pack(sequences)
    forward.loss(batch).backward()
    return batch.tokens, int(torch.cuda.max_memory_allocated(device))
