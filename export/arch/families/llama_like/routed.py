"""Llamas with experts and one more difference each: Xiaohongshu, Arcee, Poolside, JetBrains, MiniMax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import LIMITS, SILU, Condition, fixed, rope_kinds, switched_off
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    array,
    f32,
    head_dim,
    kv_heads,
    u32,
)
from lorafold.export.arch.rope import llama3_factors, read_rope, rotary_dim
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    DENSE_BLOCKS,
    DENSE_FIRST,
    EMBEDDING,
    EXPERT_GROUPS,
    EXPERT_SCALE,
    EXPERT_WIDTH,
    EXPERTS_NORMED,
    GATED_BY_SIGMOID,
    HEAD,
    HEAD_NORMS,
    MLP,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    ROTATED,
    ROUTER,
    ROUTER_BIAS,
    SHARED,
    SIGMOID,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    TensorRule,
    dense_first,
    expert_rules,
    expert_variants,
    fused_experts,
    has_experts,
    in_layers,
    is_dense,
    layer,
    layer_kinds,
    shared_expert_rules,
)


def _shared_width(count: str) -> Any:
    """The shared expert's width: as many experts' widths as `count` says."""
    return lambda config: config.integer("moe_intermediate_size") * (config.get(count) or 0)


DOTS1 = Architecture(
    classes=("Dots1ForCausalLM",),
    model_types=("dots1",),
    gguf="dots1",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            *(ROUTER, ROUTER_BIAS, *SHARED),
        ),
    ),
    variants=expert_variants(has_experts),
    hyperparameters=(
        *COMMON[: -len(HEAD)],
        *EXPERT_GROUPS,
        GATED_BY_SIGMOID,
        *HEAD,
    ),
    extensions=(
        EXPERT_WIDTH,
        DENSE_BLOCKS,
        u32("expert_shared_count", "n_shared_experts"),
        EXPERT_SCALE,
        EXPERTS_NORMED,
    ),
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "norm_topk_prob": False,
        "num_key_value_heads": 32,
        "routed_scaling_factor": 1.0,
        "shared_expert_intermediate_size": _shared_width("n_shared_experts"),
        "topk_group": 1,
    },
    aliases={"num_experts": "n_routed_experts"},
    required=(
        SILU,
        switched_off("attention_bias"),
        fixed("n_group", 1),
        Condition(
            "num_key_value_heads",
            lambda config: kv_heads(config) == config.integer("num_attention_heads"),
            "num_attention_heads: llama.cpp loads no other here",
        ),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS[1:],
)


def _window_period(first: int) -> Callable[[ModelConfig], list[str]]:
    """`layer_types` of windows, but for full attention in layer `first` and every fourth from there."""
    return lambda config: [
        "full_attention" if (layer - first) % 4 == 0 else "sliding_attention"
        for layer in range(config.integer("num_hidden_layers"))
    ]


def _windows(first: int) -> Condition:
    """llama.cpp's graph fixes which layers have a window."""
    return Condition(
        "layer_types",
        lambda config: (
            config.get("sliding_window") is not None and layer_kinds(config) == _window_period(first)(config)
        ),
        f"full attention in layer {first} and every fourth from there, windows in the others: llama.cpp's "
        "graph is built so",
    )


AFMOE = Architecture(
    classes=("AfmoeForCausalLM",),
    model_types=("afmoe",),
    gguf="afmoe",
    tensors=(
        *(*MODEL, *ATTENTION, *HEAD_NORMS),
        layer("attn_norm.weight", "input_layernorm.weight", "width"),
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        layer("ffn_norm.weight", "pre_mlp_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_mlp_layernorm.weight", "width"),
        layer("attn_gate.weight", "self_attn.gate_proj.weight", "query", "width"),
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            layer("ffn_gate_inp.weight", "mlp.router.gate.weight", "experts", "width"),
            layer("exp_probs_b.bias", "mlp.expert_bias", "experts"),
            *shared_expert_rules("mlp.shared_experts"),
        ),
    ),
    variants=expert_variants(has_experts, order="gate up down"),
    hyperparameters=COMMON,
    extensions=(
        *(VOCABULARY, ROTATED),
        u32("expert_shared_count", "num_shared_experts"),
        EXPERT_WIDTH,
        DENSE_BLOCKS,
        Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, "route_norm"),
        f32("expert_weights_scale", "route_scale"),
        WINDOW,
    ),
    generated=llama3_factors,
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "layer_types": _window_period(3),
        "max_position_embeddings": 16384,
        "moe_intermediate_size": 1408,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_shared_experts": 2,
        "rms_norm_eps": 1e-5,
        "route_norm": True,
        "route_scale": 1.0,
        "shared_expert_intermediate_size": _shared_width("num_shared_experts"),
        "sliding_window": 1024,
    },
    aliases={"first_k_dense_replace": "num_dense_layers"},
    required=(
        SILU,
        _windows(3),
        fixed("mup_enabled", True),
        fixed("route_norm", True),
        switched_off("attention_bias"),
        *rope_kinds("linear", "yarn", "llama3"),
    ),
)


def _partial_rope(kind: str) -> Callable[[ModelConfig], int]:
    """Rotated columns of a head in layers of one kind."""

    def get(config: ModelConfig) -> int:
        rope = read_rope(config)
        part = rope.full if kind == "full" else rope.sliding
        return int(head_dim(config) * float(part.get("partial_rotary_factor") or 1.0))

    return get


_LAGUNA_BIAS = layer("exp_probs_b.bias", "mlp.experts.e_score_correction_bias", "experts")

LAGUNA = Architecture(
    classes=("LagunaForCausalLM",),
    model_types=("laguna",),
    gguf="laguna",
    tensors=(
        *(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS),
        layer("attn_gate.weight", "self_attn.g_proj.weight", "gates", "width"),
        *in_layers(is_dense, *MLP),
        *in_layers(has_experts, ROUTER, _LAGUNA_BIAS, *shared_expert_rules("mlp.shared_expert")),
    ),
    variants=expert_variants(has_experts, order="gate up down"),
    hyperparameters=COMMON,
    extensions=(
        VOCABULARY,
        array(
            "attention.head_count",
            GGUFValueType.INT32,
            lambda config: [config.integer("num_attention_heads")] * config.integer("num_hidden_layers"),
        ),
        WINDOW,
        EXPERT_WIDTH,
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, lambda _: True),
        f32("expert_weights_scale", "moe_routed_scaling_factor"),
        GATED_BY_SIGMOID,
        DENSE_BLOCKS,
        u32("rope.dimension_count", _partial_rope("full")),
        u32("rope.dimension_count_swa", _partial_rope("sliding")),
    ),
    sizes=lambda config: {
        "gates": config.integer("num_attention_heads")
        * (config.integer("head_dim") if config.get("gating") in ("per-element", "per_element") else 1)
    },
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": dense_first(),
        "gating": True,
        "head_dim": 128,
        "layer_types": lambda config: ["full_attention"] * config.integer("num_hidden_layers"),
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "rope_scaling": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 500000.0,
                "partial_rotary_factor": 0.5,
            },
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            },
        },
        "shared_expert_intermediate_size": 512,
        "sliding_window": 512,
    },
    required=(
        SILU,
        DENSE_FIRST,
        _windows(0),
        switched_off("attention_bias"),
        switched_off("gating_types"),
        switched_off("moe_apply_router_weight_on_input"),
        switched_off("moe_router_logit_softcapping"),
        Condition(
            "num_attention_heads_per_layer",
            lambda config: (
                set(config.get("num_attention_heads_per_layer") or ()) <= {config.get("num_attention_heads")}
            ),
            "num_attention_heads in every layer, for which this row is written",
        ),
        *rope_kinds("yarn", partial=True),
    ),
)

MELLUM = Architecture(
    classes=("MellumForCausalLM",),
    model_types=("mellum",),
    gguf="mellum",
    tensors=(*(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS), *NORMS, *ATTENTION, *HEAD_NORMS, ROUTER),
    variants=expert_variants(),
    hyperparameters=COMMON,
    extensions=(EXPERT_WIDTH, WINDOW, WINDOW_PATTERN),
    defaults=DEFAULTS
    | {
        "head_dim": 128,
        "layer_types": lambda config: ["full_attention"] * config.integer("num_hidden_layers"),
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 896,
        "norm_topk_prob": True,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
        "rope_scaling": {
            "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 1024,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(
        SILU,
        fixed("norm_topk_prob", True),
        switched_off("attention_bias"),
        Condition(
            "rope_parameters.sliding_attention",
            lambda config: (
                read_rope(config).sliding.get("rope_theta")
                in (None, read_rope(config).full.get("rope_theta"))
            ),
            "the rope_theta of full attention: llama.cpp has one for both here",
        ),
        Condition(
            "layer_types",
            lambda config: "sliding_attention" in layer_kinds(config),
            "a window in some layers: llama.cpp cannot load it without any",
        ),
        Condition(
            "mlp_layer_types",
            lambda config: set(config.get("mlp_layer_types") or ()) <= {"sparse"},
            "experts in every layer",
        ),
        *rope_kinds("linear", "yarn"),
    ),
)


def _rotated(config: ModelConfig) -> int:
    """Rotated columns, which released files give as a number."""
    return rotary_dim(config) if config.get("rotary_dim") is None else config.integer("rotary_dim")


def _minimax_router(prefix: str) -> tuple[TensorRule, ...]:
    return (
        layer("ffn_gate_inp.weight", f"{prefix}.gate.weight", "experts", "width"),
        layer("exp_probs_b.bias", f"{prefix}.e_score_correction_bias", "experts"),
    )


MINIMAX_M2 = Architecture(
    classes=("MiniMaxM2ForCausalLM",),
    model_types=("minimax_m2",),
    gguf="minimax-m2",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS, *NORMS, *ATTENTION),
        layer("attn_q_norm.weight", "self_attn.q_norm.weight", "query"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", "key"),
    ),
    variants=(
        (
            *_minimax_router("block_sparse_moe"),
            *expert_rules("block_sparse_moe.experts.{expert}", "w2", "w1", "w3", "ff", "gate down up"),
        ),
        (*_minimax_router("mlp"), *fused_experts("ff")),
    ),
    hyperparameters=(
        *COMMON[: -len(HEAD)],
        u32("expert_gating_func", lambda config: SIGMOID if config.get("scoring_func") else None),
        *HEAD,
    ),
    extensions=(
        u32("expert_feed_forward_length", "intermediate_size"),
        u32("rope.dimension_count", _rotated),
    ),
    defaults=DEFAULTS
    | {
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "rope_theta": 5000000.0,
        "scoring_func": "sigmoid",
    },
    aliases={"num_experts": "num_local_experts"},
    further="left out",
    required=(SILU, fixed("scoring_func", "sigmoid"), *rope_kinds("linear", "yarn", partial=True)),
    caveats=LIMITS,
)

ROUTED_ROWS = (AFMOE, DOTS1, LAGUNA, MELLUM, MINIMAX_M2)
