"""Hugging Face: SmolLM 3, in which every fourth layer has no rotary positions."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import ModelConfig
from lorafold.export.arch.rules import (
    DEFAULTS,
    EVEN_HEADS,
    INTERLEAVED_ATTENTION,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    SILU,
    TIED,
    Condition,
    rope_kinds,
    switched_off,
)


def _every_fourth_unrotated(config: ModelConfig) -> bool:
    """Whether exactly every fourth layer goes without rope, as llama.cpp's smollm3 graph has it."""
    layers = range(1, config.integer("num_hidden_layers") + 1)
    given = config.get("no_rope_layers")
    if given:
        return isinstance(given, list) and given == [int(number % 4 != 0) for number in layers]
    return bool(config.get("no_rope_layer_interval") == 4)


SMOLLM3 = replace(
    LLAMA,
    classes=("SmolLM3ForCausalLM",),
    model_types=("smollm3",),
    gguf="smollm3",
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, *MLP),
    generated=None,
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "use_sliding_window": False,
        TIED: True,
    },
    required=(
        SILU,
        EVEN_HEADS,
        *rope_kinds("linear", "yarn"),
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        Condition(
            "no_rope_layers",
            _every_fourth_unrotated,
            "0 for every fourth layer and 1 for the others: llama.cpp's graph is built so",
        ),
    ),
    caveats=LIMITS,
)

SMOLLM_ROWS = (SMOLLM3,)
