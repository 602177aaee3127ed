"""`--fit`: the best mixture of types in a size, tested against llama.cpp's own of that size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gguf import GGMLQuantizationType as Type

from lorafold.errors import InputError, UsageError
from lorafold.export.fitting.choose import (
    Option,
    Options,
    Types,
    choose,
    largest,
    size_of,
    smallest,
)
from lorafold.export.fitting.keepers import Keepers
from lorafold.export.fitting.losses import Losses
from lorafold.export.fitting.model import MeasuredModel, held_at_once
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.calibration import GENERAL_ALONE, Calibration, calibration
from lorafold.export.inputs import Inputs
from lorafold.export.proof.reference.gradients import Product
from lorafold.export.proof.sample import AskedChat
from lorafold.export.quant.mixture import Importance, is_quantizable
from lorafold.export.quant.recipes import block_width
from lorafold.export.survival.ladder import bytes_of, bytes_together, fitting
from lorafold.export.survival.protect import raise_types
from lorafold.export.survival.survey import TypedModel
from lorafold.progress import Progress, silent

_TOKENS = 750  # that are measured, and as many that test the result
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
        tried: the recipe, and what was measured beside it; empty if the model could not be asked.
        best: of the others what was taken, or would have been; None if none was measured.
        changed: how many tensors got another type, by (before, after).
        taken: whether the choice was better.
        why: what it rests on, or why nothing was chosen.
        types: of every tensor that has a choice, as they are now; empty if the recipe stays.
        unmeasured: how many quantized tensors keep the recipe's type because nothing is known of their cost
            (stacks of experts, transposed ones).
    """

    recipe: str
    tried: tuple[Tried, ...] = ()
    best: Tried | None = None
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
            recipe: the name of what is known to fit, or of the smallest one if none does.
            model: the same: tensors with their types.
            size: bytes that the file may have.
            header: bytes of its header.
            fixed: tensors whose types stay.

        Returns:
            The model with its types, and what was found.

        Raises:
            UsageError: no mixture that keeps enough of the change is that small, or as good as the recipe.
        """
        try:
            costs = self._costs(model, header, fixed)
        except InputError as error:
            return model, Fitted(recipe, why=error.problem)
        if (chosen := costs.chosen(size)) is None:
            raise UsageError(
                f"no mixture that keeps enough of the adapter's change is as small as {size:,} bytes: the "
                f"least is {costs.least:,}",
                at="--fit",
                fix="give at least that"
                + (", or a smaller --keep-delta" if self._keep is not None else "")
                + (", or leave out --tensor-type" if fixed else ""),
            )
        models = {recipe: model, f"{recipe}, fitted": chosen}
        if costs.raised is not None and costs.size(costs.raised) <= size:
            models[f"{recipe}, raised"] = costs.raised
        tried = self._tried(costs, models)
        plain = tried[0]
        fits = plain.size <= size  # no recipe may be that small
        best = min(tried if fits and costs.raised is None else tried[1:], key=lambda one: one.kl)
        if fits and best.kl > plain.kl:
            assert self._keep is not None
            _refuse_worse(self._keep, best, plain, size)
        taken = best is not plain
        return models[best.name], _fitted(
            recipe, tried, best if taken else tried[1], costs, models[best.name], taken, fixed
        )

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
        chosen = costs.chosen(high)
        assert chosen is not None
        tried = self._tried(costs, {recipe: model, "the largest": chosen})
        best, nearest = chosen, tried[-1]
        if nearest.kl > most:
            raise UsageError(
                f"no mixture comes as near as {most:g} nats: the least is {nearest.kl:.2g} in {high:,} bytes",
                at="--max-kl",
                fix="give at least that" + (", or leave out --tensor-type" if fixed else ""),
            )
        for number in range(_STEPS):
            size = int(math.sqrt(low * high))
            if (chosen := costs.chosen(size)) is None:
                low = size
                continue
            (one,) = self._tried(costs, {f"step {number + 1}": chosen})
            tried.append(one)
            if one.kl <= most:
                best, nearest, high = chosen, one, min(size, one.size)
            else:
                low = size
        plain = tried[0]
        if self._keep is None and plain.kl <= most and plain.size <= nearest.size:
            return model, _fitted(recipe, tried, nearest, costs, model, False, fixed)
        return best, _fitted(recipe, tried, nearest, costs, best, True, fixed)

    def _costs(self, model: TypedModel, header: int, fixed: Sequence[str]) -> _Costs:
        """What each type costs in each tensor.

        Raises:
            InputError: the model cannot be measured here.
        """
        measured = MeasuredModel(self._inputs)
        texts = calibration_texts(self._inputs, self._data, measured.vocabulary)
        if self._data is not None and self._imatrix is not None:
            texts = replace(texts, words=f"{texts.words}; the importance matrix was made of some of them")
        options = self._options(measured, texts.measured, model, fixed)
        if not options:
            raise InputError("none of its tensors could be measured", fix="choose a type with --quant")
        source, threads = self._inputs.source, self._threads
        asked = [item for item in model if item[0].name in options]
        keepers = Keepers(asked, source, self._keep, self._imatrix, threads, self._progress)
        raised = None
        if self._keep is not None:
            types, what = raise_types(
                model,
                source,
                self._keep,
                fixed=fixed,
                imatrix=self._imatrix,
                threads=threads,
                progress=self._progress,
            )
            raised = types if what else None
        return _Costs(measured, texts, options, keepers, model, raised, header)

    def _options(
        self, measured: MeasuredModel, texts: Sequence[AskedChat], model: TypedModel, fixed: Sequence[str]
    ) -> dict[str, dict[Type, Option]]:
        """What each type of each tensor costs."""
        now = {tensor.name: kind for tensor, kind in model}
        kinds = {
            tensor.name: (tensor, _allowed(tensor, kind))
            for tensor, kind in model
            if block_width(kind) > 1 and tensor.name not in fixed
        }
        losses = Losses(
            kinds, self._inputs.source, measured.exact, len(texts), self._imatrix, threads=self._threads
        )

        def watch(product: Product) -> None:
            losses.watch(product)
            self._progress("measure what types cost", min(losses.seen, len(kinds) - 1), len(kinds))

        self._progress("measure what types cost", 0, len(kinds))
        tokens = measured.gradients(texts, watch)
        self._progress("measure what types cost", len(kinds), len(kinds))
        return {
            name: {
                kind: Option(loss, bytes_of(kinds[name][0], kind))
                for kind, loss in found.items()
                if math.isfinite(loss) or kind == now[name]
            }
            for name, found in losses.found(tokens).items()
        }

    def _tried(self, costs: _Costs, models: Mapping[str, TypedModel]) -> list[Tried]:
        """Measure mixtures on chats that nothing was learnt from."""
        tried: list[Tried] = []
        for name, model in models.items():
            self._progress("test the mixtures", len(tried), len(models))
            distance = costs.measured.distance(model, costs.texts.checked, self._imatrix)
            tried.append(Tried(name, costs.size(model), distance))
        self._progress("test the mixtures", len(models), len(models))
        return tried


def _refuse_worse(keep: float, best: Tried, plain: Tried, size: int) -> None:
    """Whoever asks for a size and a share must not get less than the recipe of that size gives.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"no mixture of {size:,} bytes that keeps {keep:.0%} of the adapter's change in each tensor is as "
        f"good as {plain.name}: mean KL {best.kl:.2g} beside {plain.kl:.2g}",
        at="--fit",
        fix="leave out --fit or --keep-delta",
    )


def _allowed(tensor: MappedTensor, kind: Type) -> list[Type]:
    """The types that a tensor may have: those whose blocks fit, and the recipe's."""
    kinds = [other for other in fitting(tensor) if other != Type.F32]
    return kinds if kind in kinds else [*kinds, kind]


@dataclass(frozen=True, slots=True)
class _Costs:
    """What is known of a model's types.

    Attributes:
        measured: the model.
        texts: what it was measured on.
        options: what the types cost, by tensor; those that turn out to lose the change are taken out.
        keepers: tells which these are.
        model: the tensors with the recipe's types.
        raised: the same with the types that `--keep-delta` alone raises; None if it raises none.
        header: bytes of the header.
        barred: what was taken out of the options.
        settled: the tensors that have only what comes nearest to keeping enough.
    """

    measured: MeasuredModel
    texts: Calibration
    options: dict[str, dict[Type, Option]]
    keepers: Keepers
    model: TypedModel
    raised: TypedModel | None
    header: int
    barred: dict[str, dict[Type, Option]] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)

    def size(self, model: TypedModel) -> int:
        """Bytes of a mixture's file."""
        return self.header + bytes_together(model)

    @property
    def _unchosen(self) -> TypedModel:
        """The tensors with the types that those have that get no choice."""
        return self.model if self.raised is None else self.raised

    @property
    def rest(self) -> int:
        """Bytes of what has no choice."""
        return self.size([item for item in self._unchosen if item[0].name not in self.options])

    @property
    def least(self) -> int:
        """Bytes of the smallest mixture that keeps enough of the change."""
        return self.rest + size_of(self.options, self._settled(smallest))

    @property
    def most(self) -> int:
        """Bytes of the largest mixture that keeps enough of the change."""
        return self.rest + size_of(self.options, self._settled(largest))

    def chosen(self, size: int) -> TypedModel | None:
        """The best mixture of a size; None if what keeps enough of the change is larger."""
        types = self._settled(lambda options: choose(options, size - self.rest))
        if self.rest + size_of(self.options, types) > size:
            return None
        return [(tensor, types.get(tensor.name, kind)) for tensor, kind in self._unchosen]

    def _settled(self, pick: Callable[[Options], Types]) -> Types:
        """What is picked once nothing of it loses the change: only what is picked has to be measured."""
        while True:
            types = pick(self.options)
            lost = [name for name in self.keepers.lost(types) if name not in self.settled]
            if not lost:
                return types
            for name in lost:
                self.barred.setdefault(name, {})[types[name]] = self.options[name].pop(types[name])
                if not self.options[name]:  # none keeps enough
                    kind = self.keepers.nearest(name)
                    self.options[name][kind] = self.barred[name][kind]
                    self.settled.add(name)


def _fitted(
    recipe: str,
    tried: Sequence[Tried],
    best: Tried,
    costs: _Costs,
    chosen: TypedModel,
    taken: bool,
    fixed: Sequence[str],
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
    words = costs.texts.words
    if words == GENERAL_ALONE:
        words += "; --imatrix-data takes your own"
    return Fitted(recipe, tuple(tried), best, changed, taken, words, types if taken else {}, unmeasured)


def calibration_texts(inputs: Inputs, data: Path | None, vocabulary: int) -> Calibration:
    """What a mixture is chosen and tested on: as many answers as have logits that can be held.

    Args:
        inputs: the model.
        data: the user's chats, or None.
        vocabulary: tokens that the model knows.
    """
    texts = calibration(inputs, data, _TOKENS)
    measured, checked = (held_at_once(part, vocabulary) for part in (texts.measured, texts.checked))
    return Calibration(measured, checked, texts.words)
