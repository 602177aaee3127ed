"""The order of the examples of an epoch, and padded batches of them.

The order of an epoch follows from seed and epoch alone, so a resumed run needs no stored position but the
number of its step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafold.chat.tokenizer import Encoded

if TYPE_CHECKING:
    import torch

IGNORED = -100  # cross_entropy's ignore_index: no loss at this position
_POOL = 32  # batches that are sorted by length together; larger saves more padding and mixes less


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass.

    Attributes:
        input_ids: int64 (rows, cols), padded on the right; a packed batch has one row and no padding.
        attention_mask: int64 (rows, cols), 0 at padding; None if packed.
        targets: int64 (rows, cols): the token to predict at each position, `IGNORED` if none is trained.
        tokens: number of tokens that are not padding.
        trained: number of targets.
        position_ids: int64 (1, cols), from 0 in each example of a packed batch; None if padded.
        bounds: int32 (examples + 1,): where each example of a packed batch begins and the last one ends.
        longest: tokens of the longest example.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    targets: torch.Tensor
    tokens: int
    trained: int
    position_ids: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    longest: int = 0


def plan_epoch(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, group: bool
) -> list[list[int]]:
    """Order the examples of an epoch and cut them into batches.

    Args:
        lengths: tokens of each example.
        batch_size: examples in a batch; the last one may be smaller.
        seed: of the run.
        epoch: number of the epoch from 0.
        group: put examples of similar length into one batch.

    Returns:
        Indices, each exactly once; the number of batches is the same in every epoch.
    """
    order = list(range(len(lengths)))
    draw = random.Random(f"{seed}:{epoch}")  # a text seeds by its sha512: the same on every platform
    draw.shuffle(order)
    if group:
        pool = batch_size * _POOL
        order = [
            index
            for start in range(0, len(order), pool)
            for index in sorted(order[start : start + pool], key=lambda index: -lengths[index])
        ]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if group:
        draw.shuffle(batches)
    return batches


def plain_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for evaluation: longest first, no randomness."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def make_batch(sequences: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad sequences into one batch.

    Args:
        sequences: ids and masks.
        pad_id: id for padded positions; they are masked, so any will do.
    """
    import torch

    longest = max(len(sequence.ids) for sequence in sequences)
    shape = (len(sequences), longest)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    targets = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        count = len(sequence.ids)
        ids = torch.tensor(sequence.ids, dtype=torch.int64)
        input_ids[row, :count] = ids
        attention_mask[row, :count] = 1
        # Position i predicts token i + 1, so the targets are the ids moved one to the left.
        trained = torch.tensor(sequence.mask[1:], dtype=torch.bool)
        targets[row, : count - 1] = torch.where(trained, ids[1:], IGNORED)
    tokens = sum(len(sequence.ids) for sequence in sequences)
    return Batch(input_ids, attention_mask, targets, tokens, trained_tokens(sequences), longest=longest)


def trained_tokens(sequences: Sequence[Encoded]) -> int:
    """Number of targets in sequences; the first token of a sequence is never one."""
    return sum(sum(sequence.mask[1:]) for sequence in sequences)
