"""The output head of a base whose embeddings are tied: which steps it gets, and whether it is still tied.

PEFT wraps the two sides of a tied embedding one by one, and while the adapter is active each side sees its
own changes alone; only trained tokens and an embedding that was resized before the training hold for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorafold.export.fold.changes import AddLowRank, Change, Replace, ReplaceRows
from lorafold.export.fold.names import same_blocks, same_rows
from lorafold.export.fold.targets import Targets


def settle_head(targets: Targets) -> list[Change]:
    """The steps of the output head.

    Args:
        targets: an adapter's steps.

    Returns:
        Those that the adapter has for the head, and those of a tied embedding that hold for both.
    """
    names = targets.names
    own = list(targets.changes.get(names.head or "", ()))
    if not names.tied:
        return own
    shared: list[Change] = [
        step for step in targets.changes.get(names.embedding or "", ()) if step in targets.shared
    ]
    if any(isinstance(step, Replace) for step in own):
        shared = [step for step in shared if not isinstance(step, Replace)]
    if any(isinstance(step, ReplaceRows) for step in own):
        shared = [step for step in shared if not isinstance(step, ReplaceRows)]
    replaced = [step for step in (*own, *shared) if isinstance(step, Replace)]
    return [*replaced, *(step for step in (*shared, *own) if not isinstance(step, Replace))]


def settle_embedding(targets: Targets) -> list[Change]:
    """The steps of the input embedding.

    Args:
        targets: an adapter's steps.

    Returns:
        Those that the adapter has for it; before them the resized embedding, if an adapter of the head
        alone brings it under the head's name.
    """
    names = targets.names
    own = list(targets.changes.get(names.embedding or "", ()))
    if names.embedding is None or not names.tied or any(isinstance(step, Replace) for step in own):
        return own
    shape = names.tensors[names.embedding].shape
    resized = [
        step
        for step in targets.changes.get(names.head or "", ())
        if isinstance(step, Replace) and step in targets.shared and step.shape != shape
    ]
    return [*resized, *own]


def same_steps(a: Sequence[Change], b: Sequence[Change]) -> bool:
    """Whether two lists of steps do the same to the embedding that two names share."""
    return len(a) == len(b) and all(x is y or _same(x, y) for x, y in zip(a, b, strict=True))


def _same(a: Change, b: Change) -> bool:
    if isinstance(a, Replace) and isinstance(b, Replace):
        return a.shape == b.shape and same_rows(a.source, a.key, b.source, b.key)
    if isinstance(a, ReplaceRows) and isinstance(b, ReplaceRows):
        return np.array_equal(a.numbers, b.numbers) and same_rows(a.source, a.key, b.source, b.key)
    if isinstance(a, AddLowRank) and isinstance(b, AddLowRank):
        # An embedding's factors are stored transposed; both deliver them in the same shape here.
        return (
            (a.scale, a.start, a.stop) == (b.scale, b.start, b.stop)
            and np.array_equal(a.right(), b.right())
            and same_blocks(a.left, b.left, a.stop)
        )
    return False
