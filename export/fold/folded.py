"""A base with its adapters folded in, read row block by row block: `Folded`, a `TensorSource` like the base.

Nothing is computed before a block is asked for, and nothing of it is kept after.

Several adapters are folded in one after the other, W ← W + weight · (fold(W) - W), which is what the base
computes with all of them active, in this order. For LoRA that is the weighted sum of the products, and the
same as PEFT's `add_weighted_adapter(combination_type="cat")`.

A base with tied embeddings is untied if an adapter changes one side alone: then the output head appears as a
tensor of its own. PEFT's merge changes both sides there, and with them what the model answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.changes import (
    AddLowRank,
    Change,
    Dora,
    Replace,
    ReplaceRows,
    Scale,
    read_through,
    round_to,
)
from lorafold.export.fold.collect import plan_adapter
from lorafold.export.fold.factors import FactorCache
from lorafold.export.fold.names import BaseNames, same_blocks
from lorafold.export.fold.targets import Targets
from lorafold.export.fold.tied import same_steps, settle_embedding, settle_head
from lorafold.files.jsonfile import read_object
from lorafold.safetensors_file import DTYPE_BITS
from lorafold.stopwatch import doing
from lorafold.weights import TensorInfo, TensorSource, item_size

_Rounding = Literal["exact", "peft"]


@dataclass(frozen=True, slots=True)
class Edit:
    """What one adapter does to one tensor: its steps in order, and how much of their effect counts."""

    changes: tuple[Change, ...]
    weight: float
    adapter: Path
    words: str


class Folded:
    """A base with adapters folded in; a `TensorSource`.

    Args:
        base: the base's weights.
        adapters: adapters with their weights.
        rounding: "exact": float32 sums; "peft": after every step rounded to the base's own type, as PEFT's
            `merge_and_unload` leaves them.
        config: the base's config.json; read from the base's folder if it has one.

    Attributes:
        tensors: every tensor of the result. Shapes differ from the base's if the vocabulary was resized.
        config: the base's configuration with `vocab_size` and `tie_word_embeddings` as they are now.
        touched: what was folded into each changed tensor, in words.
        plans: what each adapter does, in the order of the adapters.

    Raises:
        InputError: an adapter does not belong to this base, or not all of it can be folded.
        NumericError: an adapter holds NaN or infinity.
    """

    def __init__(
        self,
        base: TensorSource,
        adapters: Sequence[tuple[Adapter, float]] = (),
        rounding: _Rounding = "exact",
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.base = base
        self.rounding = rounding
        self._adapters = tuple(adapters)
        self.config: dict[str, Any] = dict(_base_config(base) if config is None else config)
        self._cache = FactorCache()
        self._edits: dict[str, list[Edit]] = {}
        self._origin: dict[str, str] = {}
        tensors, plans = dict(base.tensors), list[Targets]()
        if adapters:
            names = BaseNames.of(tensors, self.config, base, self._says_tied())
            for adapter, weight in adapters:
                plan = plan_adapter(adapter, base, names, self._cache, rounding)
                self._fold_in(weight, plan)
                plans.append(plan)
            self._settle_tie(names)
            tensors = {name: names.tensors[name] for name in names.tensors if self._is_there(name, names)}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {name: self._resized(info) for name, info in tensors.items()}
        )
        self.plans: Sequence[Targets] = tuple(plans)
        self.touched: Mapping[str, str] = {
            name: "; ".join(edit.words for edit in edits) for name, edits in self._edits.items()
        }
        self._note_vocabulary()

    @cached_property
    def exact(self) -> Folded:
        """The same without a rounding on the way: itself, if it has none."""
        return self if self.rounding == "exact" else Folded(self.base, self._adapters)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor with everything folded in; see `TensorSource.rows`."""
        with doing("fold"):
            return self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        origin = self._origin.get(name, name)
        edits = self._edits.get(name, ())
        rounding = self.base.tensors[origin].dtype if self.rounding == "peft" else ""
        if edits and edits[0].weight == 1.0:
            block = read_through(self.base, origin, edits[0].changes, start, stop, rounding)
            edits = edits[1:]
        else:
            block = self.base.rows(origin, start, stop)
        for edit in edits:
            before = block if edit.weight == 1.0 else block.copy()
            for change in edit.changes:
                block = round_to(rounding, change.apply(block, start))
            if edit.weight != 1.0:
                block = round_to(rounding, before + np.float32(edit.weight) * (block - before))
        return block

    def origin(self, name: str) -> str:
        """The base's tensor that one of the result begins as; another one for a head that was tied."""
        return self._origin.get(name, name)

    def exact_rows(self, name: str, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """The same rows by the slow, independent path: float64 throughout, plain numpy, never rounded.

        Args:
            name: the tensor.
            rows: row numbers of the tensor seen as 2-D, any and in any order.

        Returns:
            float64 (len(rows), cols).
        """
        numbers = np.asarray(rows, dtype=np.int64)
        edits = self._edits.get(name, ())
        origin = self._origin.get(name, name)
        block = np.zeros((len(numbers), self.tensors[name].cols), np.float64)
        if not (edits and isinstance(edits[0].changes[0], Replace) and edits[0].weight == 1.0):
            done = 0
            for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
                if len(run):  # consecutive rows, read at once
                    block[done : done + len(run)] = self.base.rows(origin, int(run[0]), int(run[-1]) + 1)
                    done += len(run)
        for edit in edits:
            before = block.copy()
            for change in edit.changes:
                block = change.exact(block, numbers)
            block = before + edit.weight * (block - before)
        return block

    def low_rank(self, name: str) -> list[AddLowRank] | None:
        """The products that are added to a tensor, if nothing else is done to it.

        Returns:
            The products with the adapters' weights in their scales; empty for an unchanged tensor; None if
            something else than adding low-rank products is done. A copy of the base's own values, which PEFT
            saves beside an adapted embedding, is nothing.
        """
        products: list[AddLowRank] = []
        for edit in self._edits.get(name, ()):
            for change in edit.changes:
                if isinstance(change, Replace) and self._is_copy(name, change):
                    continue
                if not isinstance(change, AddLowRank):
                    return None
                products.append(change)
        return products

    def _is_copy(self, name: str, change: Replace) -> bool:
        """Whether a replacement brings just what the base has already."""
        origin = self._origin.get(name, name)
        info = self.base.tensors[origin]
        return change.shape == info.shape and same_blocks(
            change.read, lambda start, stop: self.base.rows(origin, start, stop), info.rows
        )

    # What the constructor is made of.

    def _says_tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    def _fold_in(self, weight: float, targets: Targets) -> None:
        """Take over one adapter's steps."""
        targets.factors.check_finite()
        changes: dict[str, Sequence[Change]] = dict(targets.changes)
        if targets.names.embedding is not None and targets.names.head is not None:
            changes[targets.names.embedding] = settle_embedding(targets)
            changes[targets.names.head] = settle_head(targets)
        for name, steps in changes.items():
            if steps:
                # Else a merged folder would copy the tensor as it is, without the fold.
                item_size(targets.names.tensors[name])
                edits = self._edits.setdefault(name, [])
                edits.append(_ready(targets, steps, weight, later=bool(edits)))

    def _settle_tie(self, names: BaseNames) -> None:
        """Keep a tied head tied if both sides changed alike, else give it its own tensor."""
        if names.embedding is None or names.head is None or not names.tied:
            return
        embedding, head = self._edits.get(names.embedding, []), self._edits.get(names.head, [])
        if len(embedding) == len(head) and all(
            a.weight == b.weight and same_steps(a.changes, b.changes)
            for a, b in zip(embedding, head, strict=True)
        ):
            self._edits.pop(names.head, None)
            return
        self._origin[names.head] = names.embedding
        self.config["tie_word_embeddings"] = False

    def _is_there(self, name: str, names: BaseNames) -> bool:
        return name != names.head or not names.tied or name in self._origin

    def _resized(self, info: TensorInfo) -> TensorInfo:
        """The tensor's entry with the shape that its steps give it."""
        shape = info.shape
        for edit in self._edits.get(info.name, ()):
            first = edit.changes[0]
            if isinstance(first, Replace) and first.shape != info.shape:
                if len(self._edits[info.name]) > 1 or edit.weight != 1.0:
                    raise InputError(
                        f"it resizes {info.name}, so it cannot be mixed with other adapters",
                        at=edit.adapter,
                        fix="fold it in alone, with weight 1, then the others into the result",
                    )
                shape = first.shape
        nbytes = int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[info.dtype] // 8
        return replace(info, shape=shape, nbytes=nbytes)

    def _note_vocabulary(self) -> None:
        """Write a new vocabulary size into the configuration; both sides of it must agree."""
        resized = {
            name: info.shape[0]
            for name, info in self.tensors.items()
            if info.shape != self.base.tensors[self._origin.get(name, name)].shape
        }
        sizes = set(resized.values())
        if not sizes:
            return
        names = BaseNames.of(self.tensors, {}, self.base, tied=False)
        for side in (names.embedding, names.head):
            if side is not None and sizes != {names.tensors[side].shape[0]}:
                raise InputError(
                    f"{side} has {names.tensors[side].shape[0]} rows, but the adapter brings "
                    f"{', '.join(f'{name} with {rows}' for name, rows in resized.items())}",
                    at=self._edits[next(iter(resized))][0].adapter,
                    fix="save it with `save_embedding_layers=True`, so that it brings both sides; if "
                    "one is in target_modules, PEFT brings the other only if that is there too",
                )
        holder = self.config.get("text_config")
        if isinstance(holder, dict) and "vocab_size" in holder:
            self.config["text_config"] = {**holder, "vocab_size": sizes.pop()}
        else:
            self.config["vocab_size"] = sizes.pop()


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """The number of tokens by a config.json; that of a multimodal model's text part."""
    text = config.get("text_config")
    size = (text if isinstance(text, Mapping) and "vocab_size" in text else config).get("vocab_size")
    return size if isinstance(size, int) else None


def _base_config(base: TensorSource) -> Mapping[str, Any]:
    folder = getattr(base, "folder", None)
    if isinstance(folder, Path) and (folder / "config.json").exists():
        return read_object(folder / "config.json")
    return {}


def _ready(targets: Targets, changes: Sequence[Change], weight: float, later: bool) -> Edit:
    """One adapter's steps for one tensor, as they are carried out.

    A weight goes into the scale if steps only add. A DoRA norm is always that of the base, so behind
    another adapter it cannot be taken from the block.
    """
    adapter = targets.adapter.folder
    kinds = dict.fromkeys(_WORDS.get(type(change), "bias") for change in changes)
    words = f"{' + '.join(kinds)} from {adapter.name}" + ("" if weight == 1.0 else f" × {weight:g}")
    if all(isinstance(change, AddLowRank) for change in changes):
        products = [change for change in changes if isinstance(change, AddLowRank)]
        changes, weight = [replace(step, scale=step.scale * weight) for step in products], 1.0
    if later:
        changes = [replace(step, alone=False) if isinstance(step, Dora) else step for step in changes]
    return Edit(tuple(changes), weight, adapter, words)


_WORDS = {
    AddLowRank: "LoRA",
    Dora: "DoRA",
    Replace: "replaced",
    ReplaceRows: "trained tokens",
    Scale: "(IA)³",
}
