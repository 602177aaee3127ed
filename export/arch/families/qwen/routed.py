"""Qwen 2 and 3 with experts."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.conditions import SILU, Condition, rope_kinds, switched_off
from lorafold.export.arch.families.llama import transposed_experts
from lorafold.export.arch.families.qwen.dense import QWEN2, QWEN3, SECTIONED, deep_layers
from lorafold.export.arch.hyperparameters import u32
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    EMBEDDING,
    EXPERT_WIDTH,
    HEAD_NORMS,
    KEY,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    QUERY,
    ROUTER,
    VALUE,
    expert_variants,
    layer,
    with_bias,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

EXPERT_WIDTHS = (
    EXPERT_WIDTH,
    u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)
EXPERTS_EVERYWHERE = (
    switched_off("mlp_only_layers"),
    Condition(
        "decoder_sparse_step",
        lambda config: config.get("decoder_sparse_step") == 1,
        "1: llama.cpp has experts in every layer here",
    ),
)


def normalized_routing(expected: bool) -> Condition:
    """Whether the chosen experts' weights are scaled to one is built into llama.cpp's graph."""
    return Condition(
        "norm_topk_prob",
        lambda config: config.flag("norm_topk_prob") == expected,
        f"{str(expected).lower()}: llama.cpp computes no other here",
    )


QWEN2_MOE = replace(
    QWEN2,
    classes=("Qwen2MoeForCausalLM",),
    model_types=("qwen2_moe",),
    gguf="qwen2moe",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        *NORMS,
        *with_bias(QUERY, "qkv_bias"),
        *with_bias(KEY, "qkv_bias"),
        *with_bias(VALUE, "qkv_bias"),
        ATTENTION_OUTPUT,
        ROUTER,
        layer("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "one", "width"),
        layer("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "shared_ff", "width"),
        layer("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "shared_ff", "width"),
        layer("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "width", "shared_ff"),
    ),
    variants=expert_variants(),
    extensions=EXPERT_WIDTHS,
    defaults=QWEN2.defaults
    | {
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "shared_expert_intermediate_size": 5632,
    },
    required=(*QWEN2.required, *EXPERTS_EVERYWHERE, normalized_routing(False)),
)

QWEN3_MOE = replace(
    QWEN3,
    classes=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    gguf="qwen3moe",
    tensors=(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS, ROUTER),
    variants=expert_variants(),
    extensions=EXPERT_WIDTHS[:1],
    defaults=QWEN2.defaults
    | {
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(*QWEN3.required, *EXPERTS_EVERYWHERE, normalized_routing(True)),
)


# Files hold the experts as (experts, in, out); transformers 5 itself may save them as (experts, out, in).
QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    classes=("Qwen3VLMoeForConditionalGeneration",),
    model_types=("qwen3_vl_moe_text", "qwen3_vl_moe"),
    gguf="qwen3vlmoe",
    variants=(transposed_experts("mlp.experts"),),
    extensions=(*QWEN3_MOE.extensions, u32("n_deepstack_layers", deep_layers)),
    defaults=QWEN3_MOE.defaults
    | {
        "head_dim": 128,
        "max_position_embeddings": 128000,
        "moe_intermediate_size": 1408,
        "norm_topk_prob": True,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 16,
        "rope_theta": 500000.0,
    },
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(SILU, switched_off("attention_bias"), *rope_kinds(), SECTIONED, *EXPERTS_EVERYWHERE),
)
