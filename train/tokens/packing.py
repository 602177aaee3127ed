"""Packing: the examples of a step laid end to end without padding, attention and positions confined to each.

What is packed together is what one optimizer step sees anyway, so the step's loss and gradient are those of
the padded run within rounding: packing changes the speed of training and nothing else. (Packing across steps,
as other trainers do it, would make a few large steps out of many small ones.)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from lorafold.chat.tokenizer import Encoded
from lorafold.train.tokens.collate import IGNORED, Batch, trained_tokens


def pack_step(
    indices: Sequence[int], lengths: Sequence[int], capacity: int, multiple: int = 1
) -> list[list[int]]:
    """Distribute the examples of a step over as few packs as hold them, all about equally long.

    Longest first onto the lightest pack: equal packs mean that GPUs side by side finish together.

    Args:
        indices: examples of the step.
        lengths: tokens of every example, by index.
        capacity: maximum tokens per pack; a longer example gets a pack of its own.
        multiple: the number of packs is a multiple of this (GPUs that share the step).

    Returns:
        Packs of indices, in a deterministic order; packs may be empty if there are too few examples.
    """
    ordered = sorted(indices, key=lambda index: (-lengths[index], index))
    total = sum(lengths[index] for index in indices)
    count = max(1, math.ceil(total / capacity))
    while True:
        count = math.ceil(count / multiple) * multiple
        packs = _fill(ordered, lengths, count)
        if all(len(pack) < 2 or sum(lengths[index] for index in pack) <= capacity for pack in packs):
            return packs
        count += 1


def _fill(ordered: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]  # a heap of (tokens, pack)
    for index in ordered:
        load, number = heapq.heappop(loads)
        packs[number].append(index)
        heapq.heappush(loads, (load + lengths[index], number))
    return packs


def make_pack(sequences: Sequence[Encoded]) -> Batch:
    """Lay sequences end to end in one row.

    Args:
        sequences: at least one.

    Returns:
        A batch of one row; position 0 begins at each sequence, and the last position of one never predicts
        the first token of the next.
    """
    import torch

    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    bounds = [0]
    for sequence in sequences:
        ids += sequence.ids
        following = zip(sequence.ids[1:], sequence.mask[1:], strict=True)
        targets += [token if on else IGNORED for token, on in following]
        targets.append(IGNORED)
        positions += range(len(sequence.ids))
        bounds.append(len(ids))
    return Batch(
        input_ids=torch.tensor([ids], dtype=torch.int64),
        attention_mask=None,
        targets=torch.tensor([targets], dtype=torch.int64),
        tokens=len(ids),
        trained=trained_tokens(sequences),
        position_ids=torch.tensor([positions], dtype=torch.int64),
        bounds=torch.tensor(bounds, dtype=torch.int32),
        longest=max(len(sequence.ids) for sequence in sequences),
    )
