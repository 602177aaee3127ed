"""IBM: Granite, a Llama with multipliers."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import f32
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    HEAD,
    PLAIN_HEADS,
    ROTATED,
    VOCABULARY,
)

GRANITE = replace(
    LLAMA,
    classes=("GraniteForCausalLM",),
    model_types=("granite",),
    gguf="granite",
    hyperparameters=COMMON[: -len(HEAD)],
    extensions=(
        VOCABULARY,
        ROTATED,
        f32("attention.scale", "attention_multiplier"),
        f32("embedding_scale", "embedding_multiplier"),
        f32("residual_scale", "residual_multiplier"),
        f32("logit_scale", "logits_scaling"),
    ),
    defaults=DEFAULTS
    | {
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "max_position_embeddings": 2048,
        "residual_multiplier": 1.0,
    },
    required=(*LLAMA.required, PLAIN_HEADS),
)

GRANITE_ROWS = (GRANITE,)
