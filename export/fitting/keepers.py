"""Which types keep the adapter's change in a tensor, measured for those that a choice asks about.

A type may come very near to a base on a grid, and just therefore round the change away. What all tensors lose
together is more than the sum of what each loses, so such a type is barred, however little it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from gguf import GGMLQuantizationType as Type

from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.ladder import measure
from lorafold.export.survival.rows import TunedSource
from lorafold.export.survival.share import ENOUGH, distance, is_kept
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.progress import Progress, silent


class Keepers:
    """Bars the types that lose the change.

    Args:
        model: tensors with the recipe's types.
        source: what they are made from.
        keep: the share of the change that must survive in each tensor; None: `ENOUGH`, or what survives
            in the recipe's type.
        imatrix: importance weights by tensor.
        threads: how many tensors are measured at once.
        progress: told the tensors.
    """

    def __init__(
        self,
        model: TypedModel,
        source: TunedSource,
        keep: float | None,
        imatrix: Importance | None = None,
        threads: int = 1,
        progress: Progress = silent,
    ) -> None:
        changed = Survey({"": model}, source, weights=0).measured
        self._tensors = {tensor.name: (tensor, kind) for tensor, kind in model if tensor.name in changed}
        self._source, self._keep, self._imatrix = source, keep, imatrix
        self._threads, self._progress = threads, progress
        self._shares: dict[tuple[str, Type], float] = {}  # NaN for a type that cannot hold the values

    def lost(self, types: Mapping[str, Type]) -> list[str]:
        """The tensors that lose the change in the types that they are to have."""
        asked = [(name, kind) for name, kind in types.items() if self._is_asked(name, kind)]
        needed = list(asked)
        if self._keep is None:  # the recipe's type is the yardstick
            needed += [(name, self._tensors[name][1]) for name, _ in asked]
        self._measure([item for item in dict.fromkeys(needed) if item not in self._shares])
        return [name for name, kind in asked if self._loses(name, kind)]

    def nearest(self, name: str) -> Type:
        """Of the types that were measured on a tensor the one that keeps most nearly all of the change."""
        found = {kind: distance(share) for (own, kind), share in self._shares.items() if own == name}
        return min(found, key=lambda kind: math.inf if math.isnan(found[kind]) else found[kind])

    def _is_asked(self, name: str, kind: Type) -> bool:
        if name not in self._tensors:
            return False
        return self._keep is not None or kind != self._tensors[name][1]

    def _loses(self, name: str, kind: Type) -> bool:
        share = self._shares[name, kind]
        if self._keep is not None:
            return not is_kept(share, self._keep)
        own = distance(self._shares[name, self._tensors[name][1]])
        return not distance(share) <= max(1 - ENOUGH, 0.0 if math.isnan(own) else own)

    def _measure(self, items: list[tuple[str, Type]]) -> None:
        border = math.inf if self._keep is None else self._keep

        def share(item: tuple[str, Type]) -> float:
            tensor, kind = self._tensors[item[0]][0], item[1]
            found = measure(tensor, [kind], self._source, border=border, imatrix=self._imatrix)
            return found[kind].share if kind in found else math.nan

        with ThreadPoolExecutor(self._threads) as pool:
            for number, (item, found) in enumerate(zip(items, pool.map(share, items), strict=True)):
                self._progress("measure what survives", number, len(items))
                self._shares[item] = found
        if items:
            self._progress("measure what survives", len(items), len(items))
