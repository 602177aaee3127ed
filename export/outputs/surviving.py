"""The outputs' side of survival: which tensors in which types, and what their change is taken from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gguf import GGMLQuantizationType

from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import GgufFile
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.inputs import Inputs
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.rows import TunedSource
from lorafold.export.survival.survey import RoundsRows, Survey, TypedModel


def models_in(files: Iterable[GgufFile]) -> dict[str, TypedModel]:
    """The tensors and types of each model, by the name of its file, whole."""
    models: dict[str, list[tuple[MappedTensor, GGMLQuantizationType]]] = {}
    for file in files:
        typed = [(each.tensor, each.type) for each in file.tensors]
        models.setdefault(file.joined or file.name, []).extend(typed)
    return dict(models)


def exact_of(inputs: Inputs) -> TunedSource | None:
    """The fold without PEFT's rounding on the way, if the export has it."""
    source = inputs.source
    if source.rounding == "exact":
        return None
    return Folded(source.base, inputs.adapters)


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
