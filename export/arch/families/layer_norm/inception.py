"""Inception and MBZUAI: Jais 2, whose linear layers all have a bias."""

from __future__ import annotations

from lorafold.export.arch.conditions import LIMITS, fixed, rope_kinds
from lorafold.export.arch.hyperparameters import divided_width
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR
from lorafold.export.arch.rules import (
    ATTENTION,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    LAYER_NORM_COMMON,
    OUTPUT,
    ROTATED,
    UP,
    Architecture,
    with_bias,
)

JAIS = Architecture(
    classes=("Jais2ForCausalLM",),
    model_types=("jais2",),
    gguf="jais2",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT, *NORM_PAIRS),
        *(part for linear in (*ATTENTION, UP, DOWN) for part in with_bias(linear)),
    ),
    hyperparameters=LAYER_NORM_COMMON,
    extensions=(ROTATED,),
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "head_dim": divided_width,
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "mlp_bias": True,
        "num_key_value_heads": None,
    },
    required=(
        fixed("hidden_act", "relu2"),
        fixed("attention_bias", True),
        fixed("mlp_bias", True),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS,
)
