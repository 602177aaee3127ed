"""What the weights of an export will be rounded to, from headers alone: what a base is judged in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gguf import GGMLQuantizationType as Type

from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.inputs import Inputs
from lorafold.export.outputs.gguf_models import typed_model
from lorafold.export.outputs.kept_blocks import KeptBlocks
from lorafold.export.outputs.merged_folder import TORCH_NAMES, plan_shards
from lorafold.export.outputs.surviving import MeasuredTypes, exact_of
from lorafold.export.quant.mixture import Importance, parse_override
from lorafold.export.quant.recipes import find_recipe
from lorafold.export.survival.ladder import bytes_together
from lorafold.export.survival.rows import as_it_is
from lorafold.export.survival.survey import TypedModel


def asked_types(inputs: Inputs, config: ExportConfig, imatrix: Importance | None) -> tuple[str, TypedModel]:
    """The types that lose most of those that are asked for: of several files those of the smallest.

    `--fit` and `--max-kl` find theirs later, by measuring; a base is judged in the recipe that they begin
    with, or Q4_K_M.

    Args:
        inputs: base and adapters.
        config: what is asked for.
        imatrix: importance weights by tensor.

    Returns:
        What they are called, and the tensors with their types.

    Raises:
        LorafoldError: as planning the export does.
    """
    if config.format == "folder":
        return _of_folder(inputs, config)
    models = dict(_of_files(inputs, replace(config, fit=None, max_kl=None), imatrix))
    name = min(models, key=lambda name: bytes_together(models[name]))
    return name if len(models) == 1 else f"{name}, the smallest of the types", models[name]


def _of_folder(inputs: Inputs, config: ExportConfig) -> tuple[str, TypedModel]:
    shards = plan_shards(inputs.source, config.dtype)
    infos = [info for shard in shards for info in shard.tensors if info.dtype in TORCH_NAMES]
    kinds = sorted({info.dtype for info in infos})
    return " and ".join(kinds), [(as_it_is(info), Type[info.dtype]) for info in infos]


def _of_files(
    inputs: Inputs, config: ExportConfig, imatrix: Importance | None
) -> Iterator[tuple[str, TypedModel]]:
    """The model of each recipe, with the types that `--keep-delta` raises."""
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    kept = KeptBlocks(tensors, inputs.source).types
    overrides = [parse_override(text) for text in config.tensor_type]
    raised = MeasuredTypes(config, inputs.source, exact_of(inputs), imatrix, tuple(kept))
    for name in config.quant:
        recipe = find_recipe(name)
        entries = arch.metadata(inputs.config, tensors, inputs.base.folder, recipe.file_type)
        model = typed_model(tensors, recipe, entries, imatrix=imatrix, overrides=overrides, kept=kept)
        yield recipe.name, raised.adjust(recipe.name, model, 0)
