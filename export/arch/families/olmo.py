"""Ai2: OLMo 1, OLMo 2 and 3, which normalise after attention and MLP, and OLMoE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    PLAIN_HEADS,
    SILU,
    Condition,
    fixed,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import ModelConfig, f32, kv_heads
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    INTERLEAVED_ATTENTION,
    MLP,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    RMS_EPSILON,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    every_fourth_full,
    expert_rules,
    fused_experts,
    layer,
)

# One norm for all heads together.
_WIDE_NORMS = (
    layer("attn_q_norm.weight", "self_attn.q_norm.weight", "query"),
    layer("attn_k_norm.weight", "self_attn.k_norm.weight", "key"),
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
        *_WIDE_NORMS,
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width"),
        *MLP,
    ),
    hyperparameters=COMMON,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    required=(SILU, PLAIN_HEADS, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)


def _olmo3_theta(config: ModelConfig) -> Any:
    """The base of layers with a window, which transformers 4 gave once for all layers."""
    given = config.get("rope_scaling")
    return (given.get("rope_theta") if isinstance(given, Mapping) else None) or config.get("rope_theta")


OLMO3 = replace(
    OLMO2,
    classes=("Olmo3ForCausalLM",),
    model_types=("olmo3",),
    extensions=(
        WINDOW,
        WINDOW_PATTERN,
    ),
    defaults=OLMO2.defaults
    | {
        "layer_types": every_fourth_full,
        "rope_local_base_freq": _olmo3_theta,
        "rope_theta": 500000.0,
        "sliding_window": 4096,
    },
    required=(
        *OLMO2.required,
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp takes a model without it for OLMo 2",
        ),
        Condition(
            "rope_parameters.sliding_attention",
            lambda config: read_rope(config).sliding.get("rope_type") in (None, "default"),
            "rope without scaling: llama.cpp computes no other in layers with a window",
        ),
    ),
    caveats=LIMITS[1:],
)

OLMO = Architecture(
    classes=("OlmoForCausalLM", "OLMoForCausalLM"),
    model_types=("olmo",),
    gguf="olmo",
    tensors=(EMBEDDING, OUTPUT, *INTERLEAVED_ATTENTION, *MLP),
    hyperparameters=tuple(entry for entry in COMMON if entry != RMS_EPSILON),
    extensions=(
        f32("attention.layer_norm_epsilon", lambda _: 1e-5),
        f32("attention.clamp_kqv", "clip_qkv"),
    ),
    defaults={name: value for name, value in OLMO2.defaults.items() if name != "rms_norm_eps"},
    required=(SILU, PLAIN_HEADS, EVEN_HEADS, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)

OLMOE = replace(
    OLMO2,
    classes=("OlmoeForCausalLM",),
    model_types=("olmoe",),
    gguf="olmoe",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS, *NORMS, *ATTENTION, *_WIDE_NORMS),
        layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"),
    ),
    variants=(
        expert_rules("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "ff", "down gate up"),
        fused_experts("ff"),
    ),
    defaults=OLMO2.defaults
    | {
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 16,
    },
    required=(
        *OLMO2.required,
        fixed("norm_topk_prob", False),
        switched_off("clip_qkv"),
        Condition(
            "num_key_value_heads",
            lambda config: kv_heads(config) == config.integer("num_attention_heads"),
            "num_attention_heads: llama.cpp loads no other here",
        ),
    ),
)

OLMO_ROWS = (OLMO, OLMO2, OLMO3, OLMOE)
