"""Liquid: LFM 2, in which most layers have a short convolution in place of attention."""

from __future__ import annotations

from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.conditions import PLAIN_HEADS, TIED, fixed, plain_rope, switched_off
from lorafold.export.arch.hyperparameters import ModelConfig, array, kv_heads, u32
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    EMBEDDING,
    EXPERT_WIDTH,
    GATED_BY_SIGMOID,
    HEAD_NORMS,
    OUTPUT,
    VOCABULARY,
    Architecture,
    TensorRule,
    expert_rules,
    fused_experts,
    in_layers,
    layer,
    layer_kinds,
)


def _attends(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has attention."""
    return layer_kinds(config)[layer] != "conv"


def _convolves(config: ModelConfig, layer: int) -> bool:
    return not _attends(config, layer)


def _kinds(config: ModelConfig) -> list[str]:
    """`layer_types` of files that number the layers with attention instead."""
    layers = range(config.integer("num_hidden_layers"))
    full = config.get("full_attn_idxs")
    numbers = layers if full is None else full
    if not isinstance(numbers, (list, range)):
        raise config.wrong("full_attn_idxs", full, "a list of numbers")
    return ["full_attention" if layer in numbers else "conv" for layer in layers]


def _adjusted_width(config: ModelConfig) -> int:
    """The inner width: as it is given, or two thirds of it, times a factor, rounded up to a multiple."""
    given = config.get("block_ff_dim")
    width = config.integer("intermediate_size" if given is None else "block_ff_dim")
    if not config.flag("block_auto_adjust_ff_dim"):
        return width
    width = int(2 * width / 3)
    if config.get("block_ffn_dim_multiplier") is None:
        return width
    multiple = config.integer("block_multiple_of")
    width = int(config.number("block_ffn_dim_multiplier") * width)
    return multiple * -(-width // multiple)


def _kv_heads(config: ModelConfig) -> list[int]:
    """Key-value heads of each layer; a layer without attention is known by having none."""
    return [kv_heads(config) if kind != "conv" else 0 for kind in layer_kinds(config)]


_SHAPED = in_layers(_attends, *ATTENTION, *HEAD_NORMS)
_OUTPUT = replace(ATTENTION[-1], source="model.layers.{layer}.self_attn.out_proj.weight", layers=_attends)
_ATTENTION = (
    *(rule for rule in _SHAPED if rule.name != _OUTPUT.name and "norm" not in rule.name),
    _OUTPUT,
    *(
        replace(rule, source=rule.source.replace("_norm", "_layernorm"))
        for rule in _SHAPED
        if "norm" in rule.name
    ),
)
_CONVOLUTION = in_layers(
    _convolves,
    layer("shortconv.conv.weight", "conv.conv.weight", "width", "one", "taps", becomes=("width", "taps")),
    layer("shortconv.in_proj.weight", "conv.in_proj.weight", "3_width", "width"),
    layer("shortconv.out_proj.weight", "conv.out_proj.weight", "width", "width"),
)
_OUTSIDE = (
    EMBEDDING,
    # llama.cpp's name for LFM's last norm.
    TensorRule("token_embd_norm.weight", "model.embedding_norm.weight", ("width",)),
    OUTPUT,
    layer("attn_norm.weight", "operator_norm.weight", "width"),
    layer("ffn_norm.weight", "ffn_norm.weight", "width"),
)


def _feed_forward(ff: str) -> tuple[TensorRule, ...]:
    return (
        layer("ffn_gate.weight", "feed_forward.w1.weight", ff, "width"),
        layer("ffn_up.weight", "feed_forward.w3.weight", ff, "width"),
        layer("ffn_down.weight", "feed_forward.w2.weight", "width", ff),
    )


_HEADER = tuple(
    array(entry.key, GGUFValueType.INT32, _kv_heads) if entry.key == "attention.head_count_kv" else entry
    for entry in COMMON
)

LFM2 = Architecture(
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    model_types=("lfm2",),
    gguf="lfm2",
    tensors=(*_OUTSIDE, *_ATTENTION, *_CONVOLUTION, *_feed_forward("adjusted_ff")),
    hyperparameters=tuple(
        u32(entry.key, "adjusted_intermediate_size") if entry.key == "feed_forward_length" else entry
        for entry in _HEADER
    ),
    extensions=(VOCABULARY, u32("shortconv.l_cache", "conv_L_cache")),
    defaults={
        "adjusted_intermediate_size": _adjusted_width,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "conv_L_cache": 3,
        "layer_types": _kinds,
        "max_position_embeddings": 128000,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        TIED: lambda config: config.raw.get("tie_embedding", True),
    },
    aliases={"rms_norm_eps": "norm_eps"},
    required=(PLAIN_HEADS, switched_off("conv_bias"), plain_rope()),
)


def _is_dense(config: ModelConfig, layer: int) -> bool:
    return layer < config.integer("num_dense_layers", least=0)


def _has_experts(config: ModelConfig, layer: int) -> bool:
    return not _is_dense(config, layer)


LFM2_MOE = replace(
    LFM2,
    classes=("Lfm2MoeForCausalLM",),
    model_types=("lfm2_moe",),
    gguf="lfm2moe",
    tensors=(
        *_OUTSIDE,
        *_ATTENTION,
        *_CONVOLUTION,
        *in_layers(_is_dense, *_feed_forward("ff")),
        *in_layers(
            _has_experts,
            layer("ffn_gate_inp.weight", "feed_forward.gate.weight", "experts", "width"),
            layer("exp_probs_b.bias", "feed_forward.expert_bias", "experts"),
        ),
    ),
    variants=(
        in_layers(
            _has_experts,
            *expert_rules("feed_forward.experts.{expert}", "w2", "w1", "w3", "expert_ff", "gate down up"),
        ),
        in_layers(
            _has_experts,
            *fused_experts(
                "expert_ff", "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"
            ),
        ),
    ),
    hyperparameters=_HEADER,
    extensions=(
        EXPERT_WIDTH,
        u32("leading_dense_block_count", "num_dense_layers"),
        GATED_BY_SIGMOID,
        *LFM2.extensions,
    ),
    defaults=LFM2.defaults
    | {
        "moe_intermediate_size": 1792,
        "norm_topk_prob": True,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 1.0,
        "use_expert_bias": True,
    },
    required=(
        *LFM2.required,
        fixed("norm_topk_prob", True),
        fixed("routed_scaling_factor", 1.0),
        fixed("use_expert_bias", True),
    ),
)

LIQUID_ROWS = (LFM2, LFM2_MOE)
