"""The outputs' side of survival: which tensors in which types, what their change is taken from, and the types
that are raised after measuring.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gguf import GGMLQuantizationType

from lorafold.errors import UsageError
from lorafold.export.config import ExportConfig
from lorafold.export.fitting.fit import Fitted, Fitting
from lorafold.export.fitting.share import Calibrated
from lorafold.export.fitting.words import describe_calibrated, describe_fitted
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import GgufFile
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.inputs import Inputs
from lorafold.export.quant.mixture import Importance, parse_override
from lorafold.export.survival.fill import Filled, fill
from lorafold.export.survival.ladder import bytes_together
from lorafold.export.survival.protect import Raised, raise_types
from lorafold.export.survival.rows import TunedSource
from lorafold.export.survival.survey import RoundsRows, Survey, TypedModel
from lorafold.export.survival.words import describe_filled, describe_raised
from lorafold.progress import Progress, silent


def models_in(files: Iterable[GgufFile]) -> dict[str, TypedModel]:
    """The tensors and types of each model, by the name of its file, whole."""
    models: dict[str, list[tuple[MappedTensor, GGMLQuantizationType]]] = {}
    for file in files:
        typed = [(each.tensor, each.type) for each in file.tensors]
        models.setdefault(file.joined or file.name, []).extend(typed)
    return dict(models)


def exact_of(inputs: Inputs) -> Folded | None:
    """The fold without PEFT's rounding on the way, if the export has it."""
    source = inputs.source
    if source.rounding == "exact":
        return None
    return source.exact


def survey_of(
    models: Mapping[str, TypedModel],
    inputs: Inputs,
    imatrix: Importance | None = None,
    weights: int | None = None,
    source: TunedSource | None = None,
    rounded: RoundsRows | None = None,
) -> Survey | None:
    """A survey of planned models; None if no adapter changes anything in them.

    Args:
        models: tensors and types.
        inputs: base and adapters.
        imatrix: importance weights by tensor.
        weights: how many of each tensor are measured, see `Survey`.
        source: what the models are made from, if it is not the fold.
        rounded: what is done to rows before they are quantized, see `Survey`.
    """
    if not inputs.adapters:
        return None
    exact = exact_of(inputs) if source is None else None
    made_of = source or inputs.source
    survey = Survey(models, made_of, exact=exact, imatrix=imatrix, weights=weights, rounded=rounded)
    return survey if survey.measured else None


@dataclass(frozen=True, slots=True)
class MeasuredTypes:
    """The types that `--keep-delta`, `--fit` and `--max-kl` choose.

    Attributes:
        config: what is asked for.
        source: what the tensors are made from.
        exact: see `Survey`.
        imatrix: importance weights by tensor.
        kept: tensors whose types stay.
        progress: told the tensors that are measured.
        fitting: what chooses a mixture; None if the model cannot be asked, and types are only raised.
        calibration: what became of `--imatrix-data`, as soon as that is known.
        raised: what `--keep-delta` raised, by recipe.
        filled: what `--fit` raised, by recipe, if the model could not be asked.
        fitted: the mixtures that were chosen, by recipe.
    """

    config: ExportConfig
    source: TunedSource
    exact: TunedSource | None = None
    imatrix: Importance | None = None
    kept: tuple[str, ...] = ()
    progress: Progress = silent
    fitting: Fitting | None = None
    calibration: Calibrated | None = None
    raised: dict[str, Sequence[Raised]] = field(default_factory=dict)
    filled: dict[str, Sequence[Filled]] = field(default_factory=dict)
    fitted: dict[str, Fitted] = field(default_factory=dict)

    def adjust(self, recipe: str, model: TypedModel, header: int) -> TypedModel:
        """A recipe's model with the types that are asked for.

        Args:
            recipe: its name.
            model: tensors and types.
            header: bytes of the file's header.

        Raises:
            UsageError: what keeps the change does not fit into the size.
        """
        patterns = [re.compile(parse_override(text)[0]) for text in self.config.tensor_type]
        stay = [tensor.name for tensor, _ in model if any(one.search(tensor.name) for one in patterns)]
        workers, imatrix = self.config.workers, self.imatrix
        if self.fitting is not None and self.config.measures_size:
            chosen = self._chosen(self.fitting, recipe, model, header, [*stay, *self.kept])
            if chosen is not None:
                return chosen
        if self.config.keep_delta is not None:
            model, self.raised[recipe] = raise_types(
                model,
                self.source,
                self.config.keep_delta,
                fixed=stay,
                exact=self.exact,
                imatrix=imatrix,
                threads=workers,
                progress=self.progress,
            )
        if (size := self.config.fit_bytes) is not None:
            stay += [*self.kept, *(one.tensor.name for one in self.raised.get(recipe, ()))]
            room = size - header - bytes_together(model)
            _check_room(room, size, raised=bool(self.raised.get(recipe)))
            model, self.filled[recipe] = fill(
                model,
                self.source,
                room,
                fixed=stay,
                imatrix=imatrix,
                threads=workers,
                progress=self.progress,
            )
        return model

    def _chosen(
        self, fitting: Fitting, recipe: str, model: TypedModel, header: int, stay: Sequence[str]
    ) -> TypedModel | None:
        """The mixture that was chosen by asking the model; None if it cannot be asked."""
        if (size := self.config.fit_bytes) is not None:
            model, fitted = fitting.fit(recipe, model, size, header, stay)
        else:
            assert self.config.max_kl is not None
            model, fitted = fitting.within(recipe, model, self.config.max_kl, header, stay)
        self.fitted[recipe] = fitted
        return model if fitted.tried else None

    def mixtures(self, files: Sequence[GgufFile]) -> dict[str, Fitted]:
        """The mixtures that were chosen, by the name of the file."""
        chosen = [one for one in self.fitted.values() if one.tried]
        return {file.name: replace(one, recipe=file.recipe) for file in files if file.first for one in chosen}

    def raised_in(self, files: Sequence[GgufFile]) -> dict[str, Sequence[Raised]]:
        """What `--keep-delta` raised, by the name of the file."""
        return {file.joined or file.name: self.raised.get(file.recipe, ()) for file in files if file.first}

    def describe(self, files: Sequence[GgufFile]) -> Iterator[tuple[str, str]]:
        """What was measured: the matrix's share, and in each model what was raised and what that costs."""
        if self.calibration is not None:
            yield describe_calibrated(self.calibration)
        for file in files:
            if not file.first:
                continue
            size = sum(other.size for other in files if other.recipe == file.recipe)
            name = file.joined or file.name
            for fitted in self.fitted.values():  # there is one at most
                yield describe_fitted(name, fitted, size, self.config.fit_bytes, self.config.max_kl)
            if (keep := self.config.keep_delta) is not None and file.recipe in self.raised:
                yield from describe_raised(name, self.raised[file.recipe], keep, size)
            if (fit := self.config.fit_bytes) is not None and file.recipe in self.filled:
                yield describe_filled(name, file.recipe, self.filled[file.recipe], size, fit)


def _check_room(room: int, fit: int, *, raised: bool) -> None:
    """Refuse a size that the recipe does not leave, or what is raised to keep the adapter's change."""
    if room < 0 and not raised:
        raise UsageError(
            f"llama.cpp's mixtures take {fit - room:,} bytes at least, and smaller ones have to be measured, "
            "which does not work for this model",
            at="--fit",
            fix="give at least that",
        )
    if room < 0:
        raise UsageError(
            f"what --keep-delta raises takes {-room:,} bytes more than {fit:,}",
            at="--fit",
            fix=f"give at least {fit - room:,}, a smaller --keep-delta, or a smaller --quant",
        )
