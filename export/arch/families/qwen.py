"""Alibaba: Qwen 2 and 3, dense and with experts, and the language part of those that see images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorafold.export.arch.hyperparameters import ModelConfig, is_whole, u32
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    HEAD_NORMS,
    KEY,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    PLAIN_HEADS,
    QUERY,
    SILU,
    VALUE,
    Architecture,
    Condition,
    expert_rules,
    fused_experts,
    layer,
    rope_kinds,
    switched_off,
    with_bias,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

QWEN2 = Architecture(
    classes=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf="qwen2",
    tensors=(*MODEL, *NORMS, *with_bias(QUERY), *with_bias(KEY), *with_bias(VALUE), ATTENTION_OUTPUT, *MLP),
    hyperparameters=COMMON,
    defaults=DEFAULTS
    | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False},
    required=(SILU, PLAIN_HEADS, *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)

QWEN3 = replace(
    QWEN2,
    classes=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    gguf="qwen3",
    tensors=(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS, *MLP),
    defaults=QWEN2.defaults | {"head_dim": 128},
    required=(SILU, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
)

_QWEN_ROUTER = layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width")
_QWEN_EXPERTS = (
    expert_rules("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "down gate up"),
    fused_experts("expert_ff"),
)
_EXPERT_WIDTHS = (
    u32("expert_feed_forward_length", "moe_intermediate_size"),
    u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
)
_EXPERTS_EVERYWHERE = (
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
        _QWEN_ROUTER,
        layer("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "one", "width"),
        layer("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "shared_ff", "width"),
        layer("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "shared_ff", "width"),
        layer("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "width", "shared_ff"),
    ),
    variants=_QWEN_EXPERTS,
    extensions=_EXPERT_WIDTHS,
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
    required=(*QWEN2.required, *_EXPERTS_EVERYWHERE, normalized_routing(False)),
)

QWEN3_MOE = replace(
    QWEN3,
    classes=("Qwen3MoeForCausalLM",),
    model_types=("qwen3_moe",),
    gguf="qwen3moe",
    tensors=(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS, _QWEN_ROUTER),
    variants=_QWEN_EXPERTS,
    extensions=_EXPERT_WIDTHS[:1],
    defaults=QWEN2.defaults
    | {
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(*QWEN3.required, *_EXPERTS_EVERYWHERE, normalized_routing(True)),
)


def _has_sections(config: ModelConfig) -> bool:
    """Whether the pairs of a head are shared out among time, height and width."""
    given = read_rope(config).full.get("mrope_section")
    return isinstance(given, list) and len(given) <= 4 and all(map(is_whole, given))


_SECTIONED = Condition(
    "rope_scaling.mrope_section",
    _has_sections,
    "how many pairs turn with time, height and width: llama.cpp has no model without",
)

QWEN2_VL = replace(
    QWEN2,
    classes=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    model_types=("qwen2_vl_text", "qwen2_vl", "qwen2_5_vl_text", "qwen2_5_vl"),
    gguf="qwen2vl",
    defaults=QWEN2.defaults | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(SILU, PLAIN_HEADS, *rope_kinds(), _SECTIONED),
    caveats=(
        *LIMITS,
        Condition(
            "rms_norm_eps",
            lambda config: config.number("rms_norm_eps") < 1e-8,
            "0: llama.cpp does not read it here; the numbers of a trained model are far above it",
        ),
    ),
)


def _deep_layers(config: ModelConfig) -> int:
    """How many of the first layers get an image's features once more."""
    vision = config.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    return len(indexes) if isinstance(indexes, list) else 0


QWEN3_VL = replace(
    QWEN3,
    classes=("Qwen3VLForConditionalGeneration",),
    model_types=("qwen3_vl_text", "qwen3_vl"),
    gguf="qwen3vl",
    extensions=(u32("n_deepstack_layers", _deep_layers),),
    defaults=QWEN3.defaults | {"max_position_embeddings": 128000, "rope_theta": 500000.0},
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(SILU, switched_off("attention_bias"), *rope_kinds(), _SECTIONED),
)

QWEN_ROWS = (QWEN2, QWEN2_MOE, QWEN2_VL, QWEN3, QWEN3_MOE, QWEN3_VL)
