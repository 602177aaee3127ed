"""Baidu: ERNIE 4.5, dense, with experts, and in PaddleOCR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafold.export.arch.conditions import LIMITS, SILU, TIED, Condition, fixed, rope_kinds, switched_off
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    u32,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    EXPERT_WIDTH,
    MLP,
    MODEL,
    NORMS,
    Architecture,
    expert_rules,
    in_layers,
    layer,
    shared_expert_rules,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

ERNIE45 = Architecture(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    model_types=("ernie4_5",),
    gguf="ernie4_5",
    tensors=(*MODEL, *NORMS, *ATTENTION, *MLP),
    hyperparameters=COMMON,
    defaults=DEFAULTS
    | {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        TIED: True,
    },
    required=(SILU, switched_off("use_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)


def _ernie_dense(config: ModelConfig, layer: int) -> bool:
    """Whether a layer lies before the first one with experts."""
    return layer < config.integer("moe_layer_start_index", least=0)


def _ernie_experts(config: ModelConfig, layer: int) -> bool:
    return not _ernie_dense(config, layer)


def _shared_width(count: str) -> Any:
    """The shared expert's width: as many experts' widths as `count` says."""
    return lambda config: config.integer("moe_intermediate_size") * (config.get(count) or 0)


def _to_the_last(config: ModelConfig) -> bool:
    """Whether ERNIE's experts go on to the last layer."""
    return config.get("moe_layer_end_index") in (None, -1, config.integer("num_hidden_layers") - 1)


ERNIE45_MOE = replace(
    ERNIE45,
    classes=("Ernie4_5_MoeForCausalLM",),
    model_types=("ernie4_5_moe",),
    gguf="ernie4_5-moe",
    tensors=(
        *MODEL,
        *NORMS,
        *ATTENTION,
        *in_layers(_ernie_dense, *MLP),
        *in_layers(
            _ernie_experts,
            layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"),
            layer(
                "exp_probs_b.bias",
                "mlp.moe_statics.e_score_correction_bias",
                *("one", "experts"),
            ),
            *shared_expert_rules("mlp.shared_experts"),
        ),
    ),
    variants=(
        in_layers(
            _ernie_experts,
            *expert_rules(
                *("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "gate up down")
            ),
        ),
    ),
    hyperparameters=tuple(entry for entry in COMMON if not entry.key.startswith("expert_")),
    extensions=(
        u32("expert_count", "num_experts"),
        u32("expert_used_count", "num_experts_per_tok"),
        u32("interleave_moe_layer_step", "moe_layer_interval"),
        u32("leading_dense_block_count", "moe_layer_start_index"),
        EXPERT_WIDTH,
        u32("expert_shared_count", "moe_num_shared_experts"),
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 2,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "shared_expert_intermediate_size": _shared_width("moe_num_shared_experts"),
        TIED: True,
    },
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    skipped=(
        (
            r"^model\.mtp_(block|emb_norm|hidden_norm|linear_proj)\.",
            "predicts further tokens, which llama.cpp leaves out here",
        ),
    ),
    required=(
        *ERNIE45.required,
        fixed("moe_layer_interval", 1),
        Condition(
            "moe_layer_end_index",
            _to_the_last,
            "the last layer: llama.cpp has experts in every layer from the first one with experts on",
        ),
    ),
)

PADDLE_OCR = replace(
    ERNIE45,
    classes=("PaddleOCRVLForConditionalGeneration",),
    model_types=("paddleocr_vl_text", "paddleocr_vl"),
    gguf="paddleocr",
    spellings=SPELLINGS,
    skipped=(
        *TOWERS,
        (r"^(model\.)?(mlp_AR|projector|visual)\.", "sees images; the text model does not"),
    ),
    defaults=ERNIE45.defaults | {TIED: False},
)

BAIDU_ROWS = (ERNIE45, ERNIE45_MOE, PADDLE_OCR)
