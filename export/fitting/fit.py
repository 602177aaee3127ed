"""`--fit`: the best mixture of types in a size, tested against llama.cpp's own of that size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type

from lorafold.errors import InputError, UsageError
from lorafold.export.fitting.choose import Option, Options, choose, least, most
from lorafold.export.fitting.losses import Losses
from lorafold.export.fitting.model import MeasuredModel
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.calibration import Calibration, calibration
from lorafold.export.inputs import Inputs
from lorafold.export.proof.sample import AskedChat
from lorafold.export.quant.mixture import Importance, is_quantizable
from lorafold.export.quant.recipes import block_width
from lorafold.export.survival.ladder import bytes_of, bytes_together, fitting, measure
from lorafold.export.survival.share import ENOUGH, distance, is_kept
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.progress import Progress, silent

_TOKENS = 1500  # that are measured; half as many test the result
_LOGITS = 40_000_000  # that are held at once
_STEPS = 6  # of the search for the smallest mixture: to about a hundredth of its size


@dataclass(frozen=True, slots=True)
class Tried:
    """A mixture that was measured.

    Attributes:
        name: what it is.
        size: bytes of the file.
        kl: mean KL from base + adapter on the chats that test it.
    """

    name: str
    size: int
    kl: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """What became of a recipe.

    Attributes:
        recipe: its name.
        tried: the recipe, and what was chosen instead of it; empty if the model could not be asked.
        changed: how many tensors got another type, by (before, after).
        taken: whether the choice was better.
        why: what it rests on, or why nothing was chosen.
        types: of every tensor that has a choice, as they are now; empty if the recipe stays.
        unmeasured: how many quantized tensors keep the recipe's type because nothing is known of their cost
            (stacks of experts, transposed ones).
    """

    recipe: str
    tried: tuple[Tried, ...] = ()
    changed: Mapping[tuple[Type, Type], int] = field(default_factory=dict)
    taken: bool = False
    why: str = ""
    types: Mapping[str, Type] = field(default_factory=dict)
    unmeasured: int = 0


class Fitting:
    """Chooses types for one model.

    Args:
        inputs: base and adapters.
        data: the user's chats, or None.
        keep: the share of the adapter's change that must survive in each tensor; None: `ENOUGH`, or what
            survives in the recipe's type.
        imatrix: importance weights by tensor.
        threads: how many tensors are measured at once.
        progress: told how far it is.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        data: Path | None = None,
        keep: float | None = None,
        imatrix: Importance | None = None,
        threads: int = 1,
        progress: Progress = silent,
    ) -> None:
        self._inputs = inputs
        self._data = data
        self._keep = keep
        self._imatrix = imatrix
        self._threads = threads
        self._progress = progress

    def fit(
        self, recipe: str, model: TypedModel, size: int, header: int, fixed: Sequence[str] = ()
    ) -> tuple[TypedModel, Fitted]:
        """The best mixture in a size; the recipe itself if nothing better is found.

        Args:
            recipe: the name of what is known to fit.
            model: the same: tensors with their types.
            size: bytes that the file may have.
            header: bytes of its header.
            fixed: tensors whose types stay.

        Returns:
            The model with its types, and what was found.

        Raises:
            UsageError: no mixture that keeps enough of the change is that small.
        """
        try:
            costs = self._costs(model, header, fixed)
        except InputError as error:
            return model, Fitted(recipe, why=error.problem)
        if costs.least > size:
            raise UsageError(
                f"no mixture that keeps enough of the adapter's change is as small as {size:,} bytes: the "
                f"least is {costs.least:,}",
                at="--fit",
                fix="give at least that, or a smaller --keep-delta",
            )
        chosen = costs.chosen(size)
        tried = self._tried(costs, {recipe: model, f"{recipe}, fitted": chosen})
        plain, better = (each.kl for each in tried)
        taken = better < plain or self._keep is not None
        return (chosen if taken else model), _fitted(recipe, tried, costs, chosen, taken, fixed)

    def within(
        self, recipe: str, model: TypedModel, most: float, header: int, fixed: Sequence[str] = ()
    ) -> tuple[TypedModel, Fitted]:
        """The smallest mixture whose measured KL is at most a figure.

        Args:
            recipe: the name of what is compared with it.
            model: the same: tensors with their types.
            most: nats.
            header: bytes of the header.
            fixed: tensors whose types stay.

        Raises:
            InputError: the model cannot be measured here.
            UsageError: no mixture comes that near to base + adapter; the message tells the least.
        """
        costs = self._costs(model, header, fixed)
        low, high = costs.least, costs.most
        best = costs.chosen(high)
        tried = self._tried(costs, {recipe: model, "the largest": best})
        nearest = tried[-1].kl
        if nearest > most:
            raise UsageError(
                f"no mixture comes as near as {most:g} nats: the least is {nearest:.2g} in {high:,} bytes",
                at="--max-kl",
                fix="give at least that" + (", or leave out --tensor-type" if fixed else ""),
            )
        for number in range(_STEPS):
            size = int(math.sqrt(low * high))
            chosen = costs.chosen(size)
            (one,) = self._tried(costs, {f"step {number + 1}": chosen})
            tried.append(one)
            if one.kl <= most:
                best, high = chosen, min(size, one.size)
            else:
                low = size
        return best, _fitted(recipe, tried, costs, best, True, fixed)

    def _costs(self, model: TypedModel, header: int, fixed: Sequence[str]) -> _Costs:
        """What each type costs in each tensor.

        Raises:
            InputError: the model cannot be measured here.
        """
        measured = MeasuredModel(self._inputs, self._imatrix)
        texts = calibration_texts(self._inputs, self._data, measured.vocabulary)
        options = self._options(measured, texts.measured, model, fixed)
        if not options:
            raise InputError("none of its tensors could be measured", fix="choose a type with --quant")
        return _Costs(measured, texts, options, model, header)

    def _options(
        self, measured: MeasuredModel, texts: Sequence[AskedChat], model: TypedModel, fixed: Sequence[str]
    ) -> Options:
        """What each type of each tensor costs."""
        now = {tensor.name: kind for tensor, kind in model}
        asked = [(tensor, kind) for tensor, kind in model if block_width(kind) > 1]
        kinds = self._allowed([item for item in asked if item[0].name not in fixed])
        losses = Losses(
            kinds, self._inputs.source, measured.exact, len(texts), self._imatrix, threads=self._threads
        )
        self._progress("measure what types cost", 0, 1)
        tokens = measured.gradients(texts, losses.watch)
        self._progress("measure what types cost", 1, 1)
        return {
            name: {
                kind: Option(loss, bytes_of(kinds[name][0], kind))
                for kind, loss in found.items()
                if math.isfinite(loss) or kind == now[name]
            }
            for name, found in losses.found(tokens).items()
        }

    def _allowed(self, asked: TypedModel) -> dict[str, tuple[MappedTensor, Sequence[Type]]]:
        """The types that each tensor may have, by its name: of a changed one not those that lose the change.

        A type may come very near to a base on a grid, and just therefore round the change away. What all
        tensors lose together is more than the sum of what each loses.
        """
        changed = Survey({"": asked}, self._inputs.source, weights=0).measured
        allowed: dict[str, tuple[MappedTensor, Sequence[Type]]] = {}

        def kept(item: tuple[MappedTensor, Type]) -> list[Type]:
            tensor, kind = item
            kinds = [other for other in fitting(tensor) if other != Type.F32]
            if kind not in kinds:
                kinds.append(kind)
            if tensor.name not in changed:
                return kinds
            border = math.inf if self._keep is None else self._keep
            found = measure(tensor, kinds, self._inputs.source, border=border, imatrix=self._imatrix)
            if not found:
                return kinds
            if self._keep is None:  # the recipe's own type is at hand, if it is the best of its size
                most = max(1 - ENOUGH, distance(found[kind].share) if kind in found else 0.0)
                return [each for each in kinds if each in found and distance(found[each].share) <= most]
            enough = [each for each, one in found.items() if is_kept(one.share, self._keep)]
            return enough or [min(found, key=lambda each: distance(found[each].share))]

        with ThreadPoolExecutor(self._threads) as pool:
            for number, (item, kinds) in enumerate(zip(asked, pool.map(kept, asked), strict=True)):
                self._progress("measure what survives", number, len(asked))
                if kinds:
                    allowed[item[0].name] = (item[0], kinds)
        return allowed

    def _tried(self, costs: _Costs, models: Mapping[str, TypedModel]) -> list[Tried]:
        """Measure mixtures on chats that nothing was learnt from."""
        tried: list[Tried] = []
        for name, model in models.items():
            self._progress("test the mixtures", len(tried), len(models))
            distance = costs.measured.distance(model, costs.texts.checked)
            tried.append(Tried(name, costs.header + bytes_together(model), distance))
        self._progress("test the mixtures", len(models), len(models))
        return tried


@dataclass(frozen=True, slots=True)
class _Costs:
    """What is known of a model's types.

    Attributes:
        measured: the model.
        texts: what it was measured on.
        options: what the types cost, by tensor.
        model: the tensors with the recipe's types.
        header: bytes of the header.
    """

    measured: MeasuredModel
    texts: Calibration
    options: Options
    model: TypedModel
    header: int

    @property
    def rest(self) -> int:
        """Bytes of what has no choice."""
        return self.header + bytes_together(item for item in self.model if item[0].name not in self.options)

    @property
    def least(self) -> int:
        """Bytes of the smallest mixture."""
        return self.rest + least(self.options)

    @property
    def most(self) -> int:
        """Bytes of the largest mixture."""
        return self.rest + most(self.options)

    def chosen(self, size: int) -> TypedModel:
        """The best mixture of a size."""
        types = choose(self.options, size - self.rest)
        return [(tensor, types.get(tensor.name, kind)) for tensor, kind in self.model]


def _fitted(
    recipe: str, tried: Sequence[Tried], costs: _Costs, chosen: TypedModel, taken: bool, fixed: Sequence[str]
) -> Fitted:
    changed = Counter(
        (before, after)
        for (_, before), (_, after) in zip(costs.model, chosen, strict=True)
        if before != after
    )
    types = {tensor.name: kind for tensor, kind in chosen if is_quantizable(tensor.name, tensor.shape)}
    unmeasured = sum(
        block_width(kind) > 1 and tensor.name not in costs.options and tensor.name not in fixed
        for tensor, kind in costs.model
    )
    return Fitted(recipe, tuple(tried), changed, taken, costs.texts.words, types if taken else {}, unmeasured)


def calibration_texts(inputs: Inputs, data: Path | None, vocabulary: int) -> Calibration:
    """What a mixture is chosen and tested on: as many answers as have logits that can be held.

    Args:
        inputs: the model.
        data: the user's chats, or None.
        vocabulary: tokens that the model knows.
    """
    texts = calibration(inputs, data, _TOKENS)
    most = max(_LOGITS // vocabulary, 64)
    return Calibration(_within(texts.measured, most), _within(texts.checked, most), texts.words)


def _within(chats: Sequence[AskedChat], tokens: int) -> list[AskedChat]:
    """So many of the first chats of each part that their answers have at most so many tokens."""
    lengths = np.array([len(each.ids) - each.start for each in chats])
    count = len(chats)
    while count > 1:
        picked = [index * len(chats) // count for index in range(count)]
        if lengths[picked].sum() <= tokens:
            return [chats[index] for index in picked]
        count -= 1
    return list(chats[:1])
