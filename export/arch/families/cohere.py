"""Cohere: Command R, R7B and A, and the one with experts; attention and MLP see the same normalised input."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.conditions import (
    PLAIN_HEADS,
    SILU,
    TIED,
    TIED_HEAD,
    Condition,
    fixed,
    plain_rope,
    switched_off,
)
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    divided_width,
    f32,
    head_dim,
    text,
    u32,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    DENSE_BLOCKS,
    DENSE_FIRST,
    EMBEDDING,
    EXPERT_WIDTH,
    EXPERTS,
    EXPERTS_NORMED,
    HEAD,
    HEAD_COPY,
    LAYER_NORM_COMMON,
    LAYER_NORM_EPSILON,
    MLP,
    NORMS,
    OUTPUT,
    OUTPUT_NORM,
    RMS_EPSILON,
    ROUTER,
    SHARED,
    SIGMOID,
    SOFTMAX,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    dense_first,
    every_fourth_full,
    expert_variants,
    has_experts,
    in_layers,
    is_dense,
    layer,
    layer_kinds,
)

_NO_SCALING = text("rope.scaling.type", lambda _: "none")


def _trained_context(config: ModelConfig) -> int:
    """Command R's context; `max_position_embeddings` of its first release is less than it was trained on."""
    longer = config.get("model_max_length") is not None
    return config.integer("model_max_length" if longer else "max_position_embeddings")


_REQUIRED = (SILU, TIED_HEAD, PLAIN_HEADS, plain_rope(), switched_off("attention_bias"))

COHERE = Architecture(
    classes=("CohereForCausalLM",),
    model_types=("cohere",),
    gguf="command-r",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        NORMS[0],
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.q_norm.weight", "heads", "head_dim", when="use_qk_norm"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", "kv_heads", "head_dim", when="use_qk_norm"),
        *MLP,
    ),
    hyperparameters=(
        *(
            u32(entry.key, _trained_context) if entry.key == "context_length" else entry
            for entry in LAYER_NORM_COMMON
        ),
    ),
    extensions=(f32("logit_scale", "logit_scale"), _NO_SCALING),
    defaults={
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "use_qk_norm": False,
        TIED: True,
    },
    skipped=HEAD_COPY,
    required=(
        *_REQUIRED,
        Condition(
            "use_qk_norm",
            lambda config: config.flag("use_qk_norm") == (config.integer("num_hidden_layers") >= 64),
            "true in a model of 64 layers or more, false in a smaller one: llama.cpp computes no other here",
        ),
    ),
)

COHERE2 = replace(
    COHERE,
    classes=("Cohere2ForCausalLM",),
    model_types=("cohere2",),
    gguf="cohere2",
    tensors=(EMBEDDING, OUTPUT_NORM, NORMS[0], *ATTENTION, *MLP),
    hyperparameters=LAYER_NORM_COMMON,
    extensions=(
        f32("logit_scale", "logit_scale"),
        WINDOW,
        VOCABULARY,
        u32("rope.dimension_count", head_dim),
        _NO_SCALING,
    ),
    defaults=COHERE.defaults
    | {
        "head_dim": divided_width,
        "layer_types": every_fourth_full,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    required=(
        *_REQUIRED,
        Condition(
            "layer_types",
            lambda config: layer_kinds(config) == every_fourth_full(config),
            "full attention in every fourth layer, windows in the others",
        ),
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp has no model without it",
        ),
    ),
)


def _gating(config: ModelConfig) -> int:
    """llama.cpp's number of the function that makes the router's weights."""
    return SOFTMAX if config.get("expert_selection_fn") == "softmax" else SIGMOID


def _usual_windows(config: ModelConfig) -> list[str]:
    """A default for `layer_types`: a period for the dense layers in front and one for those with experts."""
    dense, layers = config.integer("first_k_dense_replace", least=0), config.integer("num_hidden_layers")
    parts = (("prefix_dense_sliding_window_pattern", dense), ("sliding_window_pattern", layers - dense))
    return [
        "full_attention" if number % config.integer(field) == 0 else "sliding_attention"
        for field, count in parts
        for number in range(1, count + 1)
    ]


_COHERE_HEADER = tuple(entry for entry in LAYER_NORM_COMMON if entry not in (*EXPERTS, *HEAD))
COHERE2_MOE = replace(
    COHERE2,
    classes=("Cohere2MoeForCausalLM",),
    model_types=("cohere2_moe",),
    gguf="cohere2moe",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT, NORMS[0], *ATTENTION),
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            ROUTER,
            *(replace(rule, when="num_shared_experts") for rule in SHARED),
        ),
    ),
    variants=expert_variants(has_experts),
    hyperparameters=(
        *(RMS_EPSILON if entry == LAYER_NORM_EPSILON else entry for entry in _COHERE_HEADER),
        *(LAYER_NORM_EPSILON, *EXPERTS),
        u32("expert_gating_func", _gating),
        *HEAD,
    ),
    extensions=(
        f32("logit_scale", "logit_scale"),
        *(WINDOW, WINDOW_PATTERN, VOCABULARY),
        EXPERT_WIDTH,
        DENSE_BLOCKS,
        EXPERTS_NORMED,
        u32("expert_shared_count", lambda config: config.get("num_shared_experts") or None),
        u32(
            "expert_shared_feed_forward_length",
            lambda config: config.integer("shared_expert_intermediate_size", least=0) or None,
        ),
        u32("rope.dimension_count", head_dim),
        _NO_SCALING,
    ),
    defaults=COHERE2.defaults
    | {
        "expert_selection_fn": "softmax",
        "first_k_dense_replace": dense_first(otherwise=0),
        "head_dim": 128,
        "intermediate_size": lambda config: config.integer("moe_intermediate_size"),
        "layer_types": _usual_windows,
        "moe_intermediate_size": 22528,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 0,
        "prefix_dense_sliding_window_pattern": 1,
        "shared_expert_combination_strategy": "average",
        "shared_expert_intermediate_size": lambda config: (
            config.integer("moe_intermediate_size") * config.integer("num_shared_experts", least=0)
        ),
        "sliding_window_pattern": 4,
    },
    aliases={
        "intermediate_size": "prefix_dense_intermediate_size",
        "moe_intermediate_size": "intermediate_size",
    },
    skipped=(),
    required=(
        SILU,
        DENSE_FIRST,
        plain_rope(),
        switched_off("attention_bias"),
        fixed("shared_expert_combination_strategy", "average"),
        Condition(
            "norm_topk_prob",
            lambda config: config.flag("norm_topk_prob") or _gating(config) == SIGMOID,
            "true with softmax: the model takes softmax of the chosen experts alone",
        ),
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp has no model without it",
        ),
    ),
)

COHERE_ROWS = (COHERE, COHERE2, COHERE2_MOE)
