"""Zhipu: GLM 4, GLM 4.5 to 4.6 with experts, and GLM-4.7-Flash, which is built like DeepSeek V3."""

from __future__ import annotations

from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.families.deepseek import (
    DEEPSEEK3,
    LATENT_EXTENSIONS,
    LATENT_HEADER,
    ROUTER,
    ROUTER_BIAS,
    SHARED,
    latent_attention,
)
from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, f32, u32
from lorafold.export.arch.rope import (
    rotary_dim,
)
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DOWN,
    GATE_UP,
    HEAD,
    HEAD_NORMS,
    KEY,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    QUERY,
    SIGMOID,
    SILU,
    VALUE,
    Architecture,
    Condition,
    expert_rules,
    fixed,
    fused_experts,
    has_experts,
    in_layers,
    is_dense,
    layer,
    rope_kinds,
    shared_expert_rules,
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


def _everywhere(config: ModelConfig, layer: int) -> bool:
    """Also in the layers that predict further tokens."""
    return True


def _predicts_further(config: ModelConfig, layer: int) -> bool:
    """Whether a layer lies behind the last one that the config counts."""
    return layer >= config.integer("num_hidden_layers")


def _shared_width(config: ModelConfig) -> int:
    """The width of the expert that sees every token."""
    return config.integer("moe_intermediate_size") * config.integer("n_shared_experts", least=0)


# Some files hold the embedding and the head once more for the layers that predict further tokens.
_SHARED = "nextn_head_is_shared"
_PREDICTION = in_layers(
    _predicts_further,
    layer("nextn.eh_proj.weight", "eh_proj.weight", "width", "2_width"),
    layer("nextn.enorm.weight", "enorm.weight", "width"),
    layer("nextn.hnorm.weight", "hnorm.weight", "width"),
    layer("nextn.shared_head_norm.weight", "shared_head.norm.weight", "width"),
    layer("nextn.embed_tokens.weight", "embed_tokens.weight", "vocab", "width", unless=_SHARED),
    layer("nextn.shared_head_head.weight", "shared_head.head.weight", "vocab", "width", unless=_SHARED),
)


GLM4_MOE = Architecture(
    classes=("Glm4MoeForCausalLM",),
    model_types=("glm4_moe",),
    gguf="glm4moe",
    tensors=(
        *MODEL,
        *in_layers(
            _everywhere,
            NORMS[0],
            replace(NORMS[1], name="blk.{layer}.post_attention_norm.weight"),
            *with_bias(QUERY, "attention_bias"),
            *with_bias(KEY, "attention_bias"),
            *with_bias(VALUE, "attention_bias"),
            ATTENTION_OUTPUT,
            *(replace(norm, when="use_qk_norm") for norm in HEAD_NORMS),
        ),
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"),
            layer("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", "experts"),
            *shared_expert_rules("mlp.shared_experts"),
        ),
        *_PREDICTION,
    ),
    variants=(
        in_layers(
            has_experts,
            *expert_rules(
                *("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "down gate up")
            ),
        ),
        in_layers(has_experts, *fused_experts("expert_ff")),
    ),
    hyperparameters=(
        *COMMON[: -len(HEAD)],
        u32("expert_group_count", "n_group"),
        u32("expert_group_used_count", "topk_group"),
        *HEAD,
    ),
    extensions=(
        u32("rope.dimension_count", rotary_dim),
        u32("expert_feed_forward_length", "moe_intermediate_size"),
        u32("expert_shared_count", "n_shared_experts"),
        u32("leading_dense_block_count", "first_k_dense_replace"),
        u32("expert_gating_func", lambda _: SIGMOID),
        f32("expert_weights_scale", "routed_scaling_factor"),
        Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, "norm_topk_prob"),
        u32("nextn_predict_layers", lambda config: config.further_layers),
    ),
    defaults=DEFAULTS
    | {
        _SHARED: True,
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.0,
        "shared_expert_intermediate_size": _shared_width,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    aliases={"num_experts": "n_routed_experts"},
    further="kept",
    required=(SILU, fixed("n_group", 1), *rope_kinds("linear", "yarn", partial=True)),
    caveats=LIMITS,
)


def _first_dense(config: ModelConfig) -> int:
    """How many of the first layers have no experts, as transformers 5 says it."""
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        return 1
    return kinds.index("sparse") if "sparse" in kinds else len(kinds)


GLM4_FLASH = replace(
    DEEPSEEK3,
    classes=("Glm4MoeLiteForCausalLM",),
    model_types=("glm4_moe_lite",),
    tensors=(
        *MODEL,
        *in_layers(_everywhere, *NORMS),
        *latent_attention(_everywhere),
        *in_layers(is_dense, *MLP),
        *in_layers(has_experts, ROUTER, ROUTER_BIAS, *SHARED),
        *_PREDICTION,
    ),
    hyperparameters=LATENT_HEADER,
    extensions=(
        *LATENT_EXTENSIONS,
        u32("nextn_predict_layers", lambda config: config.further_layers or None),
    ),
    further="kept",
    defaults=DEEPSEEK3.defaults
    | {
        "first_k_dense_replace": _first_dense,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "num_experts": 64,
        "num_experts_per_tok": 4,
        _SHARED: True,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    required=(
        *DEEPSEEK3.required,
        Condition(
            "mlp_layer_types",
            lambda config: (
                config.get("mlp_layer_types") is None
                or config.get("mlp_layer_types")
                == [
                    "dense" if is_dense(config, at) else "sparse"
                    for at in range(config.integer("num_hidden_layers"))
                ]
            ),
            "dense layers first and experts in all others",
        ),
    ),
)

GLM_ROWS = (GLM4, GLM4_MOE, GLM4_FLASH)
