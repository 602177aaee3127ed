"""The table: one row for each Hugging Face architecture that becomes GGUF.

A new architecture is a new row in its maker's module in `arch.families`; what it shares with others is in
`arch.rules` and `arch.conditions`. Facts are from transformers' modelling code and config classes (names,
shapes, defaults), and from llama.cpp's loader, graphs and converter (names, header entries, what is fixed
in the graph).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafold.errors import InputError
from lorafold.export.arch.conditions import TIED
from lorafold.export.arch.families.cohere import COHERE_ROWS
from lorafold.export.arch.families.deepseek import DEEPSEEK_ROWS
from lorafold.export.arch.families.falcon import FALCON_ROWS
from lorafold.export.arch.families.gemma import GEMMA_ROWS
from lorafold.export.arch.families.glm import GLM_ROWS
from lorafold.export.arch.families.granite import GRANITE_ROWS
from lorafold.export.arch.families.internlm import INTERNLM_ROWS
from lorafold.export.arch.families.layer_norm import LAYER_NORM_ROWS
from lorafold.export.arch.families.liquid import LIQUID_ROWS
from lorafold.export.arch.families.llama import LLAMA_ROWS
from lorafold.export.arch.families.llama_like import LLAMA_LIKE_ROWS
from lorafold.export.arch.families.mistral import MISTRAL_ROWS
from lorafold.export.arch.families.nvidia import NVIDIA_ROWS
from lorafold.export.arch.families.olmo import OLMO_ROWS
from lorafold.export.arch.families.openai import OPENAI_ROWS
from lorafold.export.arch.families.phi import PHI_ROWS
from lorafold.export.arch.families.qwen import QWEN_ROWS
from lorafold.export.arch.families.state_space import STATE_SPACE_ROWS
from lorafold.export.arch.hyperparameters import ModelConfig, is_whole
from lorafold.export.arch.rules import Architecture
from lorafold.export.arch.wrappers import (
    HEADLESS,
    HEADLESS_SPELLINGS,
    SPELLINGS,
    TEXT_SIZES,
    TOWERS,
    text_part,
)

ARCHITECTURES = (
    *LLAMA_ROWS,
    *MISTRAL_ROWS,
    *LLAMA_LIKE_ROWS,
    *QWEN_ROWS,
    *PHI_ROWS,
    *GLM_ROWS,
    *GRANITE_ROWS,
    *OLMO_ROWS,
    *GEMMA_ROWS,
    *INTERNLM_ROWS,
    *OPENAI_ROWS,
    *LAYER_NORM_ROWS,
    *LIQUID_ROWS,
    *COHERE_ROWS,
    *FALCON_ROWS,
    *NVIDIA_ROWS,
    *STATE_SPACE_ROWS,
    *DEEPSEEK_ROWS,
)


_MOST_LAYERS = 10_000
FOLDER_WORKS = "`--format folder` merges any architecture"


def find(config: Mapping[str, Any]) -> Architecture:
    """The row of the table for a model; for a wrapper, the row of the model inside, with its prefixes.

    Args:
        config: the parsed config.json.

    Raises:
        InputError: no row is for this class.
    """
    text = text_part(config)
    if text is not None:
        inner = find(text)
        return replace(
            inner,
            classes=(config["architectures"][0],),
            defaults={**TEXT_SIZES.get(inner.model_types[0], {}), **inner.defaults},
            spellings=(*SPELLINGS, *inner.spellings),
            skipped=(*TOWERS, *inner.skipped),
        )
    classes = config.get("architectures") or []
    name = classes[0] if isinstance(classes, list) and classes else None
    if isinstance(name, str) and name in HEADLESS:
        return _headless(find({**config, "architectures": [HEADLESS[name]]}), name)
    for row in ARCHITECTURES:
        fits = name in row.classes or (name is None and config.get("model_type") in row.model_types)
        if fits and (row.chosen is None or row.chosen(ModelConfig(config, row.defaults, row.aliases))):
            return row
    known = ", ".join(sorted(row.classes[0] for row in ARCHITECTURES))
    got = (
        f"architecture {name!r}" if name else f"model_type {config.get('model_type')!r} without architectures"
    )
    raise InputError(
        f"{got} is not in the table of architectures that become GGUF ({known})",
        at="config.json: architectures",
        fix=FOLDER_WORKS,
    )


def _headless(row: Architecture, name: str) -> Architecture:
    """A row for the model without its head."""
    return replace(
        row,
        classes=(name,),
        tensors=tuple(rule for rule in row.tensors if rule.name != "output.weight"),
        spellings=(*HEADLESS_SPELLINGS, *row.spellings),
    )


def view_of(config: Mapping[str, Any]) -> tuple[Architecture, ModelConfig]:
    """A model's row, and its config read by that row: of a multimodal model the text part."""
    row = find(config)
    text = config.get("text_config")
    if isinstance(text, Mapping):
        outer = {TIED: config[TIED]} if TIED in config else {}
        config = {**config, **text, **outer}
    view = ModelConfig(config, row.defaults, row.aliases)
    given = view.get("num_hidden_layers")
    layers = given[0] if isinstance(given, list) and given else given  # as `integer` reads it
    if is_whole(layers) and layers > _MOST_LAYERS:  # tables of layers must not fill the memory
        raise view.wrong("num_hidden_layers", layers, f"at most {_MOST_LAYERS}")
    return row, view
