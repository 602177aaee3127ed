"""Zhipu: GLM 4."""

from __future__ import annotations

from lorafold.export.arch.hyperparameters import u32
from lorafold.export.arch.rope import (
    rotary_dim,
)
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DOWN,
    GATE_UP,
    KEY,
    LIMITS,
    MODEL,
    NORMS,
    QUERY,
    SILU,
    VALUE,
    Architecture,
    layer,
    rope_kinds,
    with_bias,
)

GLM4 = Architecture(
    classes=("Glm4ForCausalLM",),
    model_types=("glm4",),
    gguf="glm4",
    tensors=(
        *MODEL,
        *NORMS,
        layer("post_attention_norm.weight", "post_self_attn_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_mlp_layernorm.weight", "width"),
        *with_bias(QUERY, "attention_bias"),
        *with_bias(KEY, "attention_bias"),
        *with_bias(VALUE, "attention_bias"),
        ATTENTION_OUTPUT,
        GATE_UP,
        DOWN,
    ),
    hyperparameters=COMMON,
    extensions=(u32("rope.dimension_count", rotary_dim),),
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-07,
    },
    required=(SILU, *rope_kinds("linear", "yarn", partial=True)),
    caveats=LIMITS,
)

GLM_ROWS = (GLM4,)
