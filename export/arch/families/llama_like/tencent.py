"""Tencent: HunYuan, dense, with experts, with eyes, and Hy3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    LIMITS,
    SILU,
    Condition,
    fixed,
    plain_rope,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    f32,
    head_dim,
    text,
    u32,
)
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    DENSE_FIRST,
    EXPERT_WIDTH,
    EXPERTS,
    GATED_BY_SIGMOID,
    HEAD,
    HEAD_NORMS,
    MLP,
    MODEL,
    NORMS,
    Architecture,
    dense_first,
    expert_variants,
    has_experts,
    in_layers,
    is_dense,
    layer,
    shared_expert_rules,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS


def _is_stretched(config: ModelConfig) -> bool:
    """Whether HunYuan's frequencies are stretched by `alpha`."""
    return read_rope(config).kind == "dynamic"


def _hunyuan_theta(config: ModelConfig) -> float | None:
    """HunYuan's base frequency, stretched by `alpha`: base * alpha^(d / (d - 2)) for heads of width d."""
    rope, width = read_rope(config).full, head_dim(config)
    theta = rope.get("rope_theta")
    if theta is None or not _is_stretched(config):
        return theta
    return float(theta * rope.get("alpha", 50) ** (width / (width - 2)))


def _if_stretched(value: Any) -> Any:
    return lambda config: value if _is_stretched(config) else None


# What the maker says of models with `alpha`, whose config.json gives a smaller number.
_HUNYUAN_CONTEXT = 256 * 1024

HUNYUAN_DENSE = Architecture(
    classes=("HunYuanDenseV1ForCausalLM",),
    model_types=("hunyuan_v1_dense",),
    gguf="hunyuan-dense",
    tensors=(
        *MODEL,
        *NORMS,
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.query_layernorm.weight", "head_dim"),
        layer("attn_k_norm.weight", "self_attn.key_layernorm.weight", "head_dim"),
        *MLP,
    ),
    hyperparameters=COMMON,
    extensions=(
        f32("rope.freq_base", _hunyuan_theta),
        text("rope.scaling.type", _if_stretched("none")),
        f32("rope.scaling.factor", _if_stretched(1.0)),
        u32("rope.scaling.original_context_length", _if_stretched(_HUNYUAN_CONTEXT)),
        u32("context_length", _if_stretched(_HUNYUAN_CONTEXT)),
    ),
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
    required=(
        SILU,
        switched_off("attention_bias"),
        *rope_kinds(),
        Condition(
            "rope_scaling",
            lambda config: not _is_stretched(config) or bool(read_rope(config).full.get("alpha")),
            "an `alpha` beside rope_type 'dynamic': llama.cpp computes no other here",
        ),
    ),
    caveats=LIMITS[:1],
)

HUNYUAN_MOE = replace(
    HUNYUAN_DENSE,
    classes=("HunYuanMoEV1ForCausalLM",),
    model_types=("hunyuan_v1_moe",),
    gguf="hunyuan-moe",
    tensors=(
        *(rule for rule in HUNYUAN_DENSE.tensors if rule not in MLP),
        layer("ffn_gate_inp.weight", "mlp.gate.wg.weight", "experts", "width"),
        *shared_expert_rules("mlp.shared_mlp"),
    ),
    variants=expert_variants(ff="ff"),
    hyperparameters=(
        *COMMON[: -len((*EXPERTS, *HEAD))],
        u32("expert_count", "num_experts"),
        *HEAD,
    ),
    extensions=(
        u32("expert_shared_feed_forward_length", "intermediate_size"),
        u32("expert_feed_forward_length", lambda config: config.integer("moe_intermediate_size")),
        u32("expert_used_count", lambda config: config.integer("moe_topk")),
        u32("expert_shared_count", lambda config: config.integer("num_shared_expert")),
        *HUNYUAN_DENSE.extensions,
    ),
    defaults=HUNYUAN_DENSE.defaults
    | {
        "moe_intermediate_size": lambda config: config.integer("intermediate_size"),
        "moe_topk": 1,
        "num_experts": 1,
        "num_shared_expert": 1,
        "shared_expert_intermediate_size": lambda config: config.integer("intermediate_size"),
    },
    required=(
        *HUNYUAN_DENSE.required,
        Condition(
            "moe_intermediate_size",
            lambda config: (
                config.integer("moe_intermediate_size") == config.integer("intermediate_size")
                and config.integer("num_shared_expert") == 1
            ),
            "intermediate_size for every expert and one shared expert: transformers computes no other",
        ),
    ),
)

HUNYUAN_VL = replace(
    HUNYUAN_DENSE,
    classes=("HunYuanVLForConditionalGeneration",),
    model_types=("hunyuan_vl_text", "hunyuan_vl"),
    gguf="hunyuan_vl",
    spellings=SPELLINGS,
    skipped=(*TOWERS, (r"^(model\.)?(vit|vision_tower)\.", "sees images; the text model does not")),
    required=(SILU, switched_off("attention_bias"), plain_rope()),
)

HY3 = Architecture(
    classes=("HYV3ForCausalLM",),
    model_types=("hy_v3",),
    gguf="hy_v3",
    tensors=(
        *(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS),
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            layer("ffn_gate_inp.weight", "mlp.router.gate.weight", "experts", "width"),
            layer("exp_probs_b", "mlp.expert_bias", "experts"),
            *shared_expert_rules("mlp.shared_mlp"),
        ),
    ),
    variants=expert_variants(has_experts),
    hyperparameters=COMMON,
    extensions=(
        EXPERT_WIDTH,
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, "route_norm"),
        f32("expert_weights_scale", "router_scaling_factor"),
        GATED_BY_SIGMOID,
    ),
    further="left out",
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": dense_first(),
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "num_shared_experts": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 11158840.0,
        "route_norm": True,
        "router_scaling_factor": 2.826,
        "shared_expert_intermediate_size": lambda config: (
            config.integer("moe_intermediate_size") * config.integer("num_shared_experts")
        ),
    },
    required=(
        SILU,
        DENSE_FIRST,
        fixed("route_norm", True),
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS,
)

TENCENT_ROWS = (HUNYUAN_DENSE, HUNYUAN_MOE, HUNYUAN_VL, HY3)
