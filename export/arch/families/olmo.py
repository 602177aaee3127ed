"""Ai2: OLMo 2, which normalises after attention and MLP."""

from __future__ import annotations

from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    LIMITS,
    MLP,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    PLAIN_HEADS,
    SILU,
    Architecture,
    layer,
    rope_kinds,
    switched_off,
)

OLMO2 = Architecture(
    classes=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    gguf="olmo2",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.q_norm.weight", "query"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", "key"),
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width"),
        *MLP,
    ),
    hyperparameters=COMMON,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    required=(SILU, PLAIN_HEADS, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)

OLMO_ROWS = (OLMO2,)
