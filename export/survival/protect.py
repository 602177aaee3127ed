"""Raises the types of tensors in which too little of the adapter's change survives, and of no others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from gguf import GGMLQuantizationType as Type

from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.ladder import bits, bytes_of, fitting, measure
from lorafold.export.survival.rows import TunedSource
from lorafold.export.survival.share import Survival, is_kept
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Raised:
    """A tensor that got another type.

    Attributes:
        tensor: what it is made of.
        before: the recipe's type.
        after: the cheapest type that keeps enough.
        survived: what survived in the recipe's type.
        survives: what survives now.
    """

    tensor: MappedTensor
    before: Type
    after: Type
    survived: Survival
    survives: Survival

    @property
    def more(self) -> int:
        """Bytes that it costs in a file, padding included."""
        return bytes_of(self.tensor, self.after) - bytes_of(self.tensor, self.before)


def raise_types(
    model: TypedModel,
    source: TunedSource,
    keep: float,
    *,
    fixed: Sequence[str] = (),
    exact: TunedSource | None = None,
    imatrix: Importance | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> tuple[TypedModel, list[Raised]]:
    """Give each tensor that keeps less than a share of its change, or that much too much, the cheapest type
    that keeps it.

    A type of the same size counts as well, if its rounding error is not larger: on a grid of 4 bits, Q4_0 may
    keep what Q4_K rounds away.

    Args:
        model: tensors with their types.
        source: what they are made from.
        keep: the share of the change that must survive in each tensor, 0 to 1.
        fixed: names of tensors whose types stay.
        exact: see `Survey`.
        imatrix: importance weights by tensor.
        threads: how many tensors are measured at once.
        progress: told the tensors.

    Returns:
        The model with its new types, and what was raised.
    """
    measured = Survey({"": model}, source, weights=0).measured
    asked = [(tensor, kind) for tensor, kind in model if tensor.name in measured and tensor.name not in fixed]

    def settle(one: tuple[MappedTensor, Type]) -> Raised | None:
        tensor, kind = one
        now = measure(tensor, [kind], source, border=keep, exact=exact, imatrix=imatrix).get(kind)
        if now is None or is_kept(now.share, keep):
            return None
        found = _cheapest(tensor, kind, now, source, keep, exact, imatrix)
        return None if found is None else Raised(tensor, kind, found[0], now, found[1])

    raised: dict[str, Raised] = {}
    with ThreadPoolExecutor(threads) as pool:
        for number, one in enumerate(pool.map(settle, asked)):
            progress("measure what survives", number, len(asked))
            if one is not None:
                raised[one.tensor.name] = one
    progress("measure what survives", len(asked), len(asked))
    types = [(tensor, raised[tensor.name].after if tensor.name in raised else kind) for tensor, kind in model]
    return types, list(raised.values())


def _cheapest(
    tensor: MappedTensor,
    kind: Type,
    now: Survival,
    source: TunedSource,
    keep: float,
    exact: TunedSource | None,
    imatrix: Importance | None,
) -> tuple[Type, Survival] | None:
    """The smallest type that keeps enough, of several as small the most exact one; None if none is larger."""
    larger = [other for other in fitting(tensor) if other != kind and bits(other) >= bits(kind)]
    for size, group in groupby(larger, key=bits):
        found = measure(tensor, list(group), source, border=keep, exact=exact, imatrix=imatrix)
        most = now.error if size == bits(kind) else math.inf
        enough = [item for item in found.items() if is_kept(item[1].share, keep) and item[1].error <= most]
        if enough:
            return min(enough, key=lambda item: item[1].error)
    return None
