"""Gemma 1 to 3, whose norms are stored less one.

llama.cpp's graphs fix the pattern of windows and the scale of attention; the config must agree with them.
"""

from __future__ import annotations

from lorafold.export.arch.conditions import (
    LIMITS,
    TIED,
    TIED_HEAD,
    Condition,
    activation,
    plain_rope,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    divided_width,
    f32,
    is_finite,
    kv_heads,
    u32,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    HEAD,
    HEAD_COPY,
    HEAD_NORMS,
    MLP,
    MODEL,
    NORMS,
    OUTPUT_NORM,
    RMS_EPSILON,
    WINDOW,
    Architecture,
    layer,
    normed,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

BLOCK_NORMS = (
    layer("attn_norm.weight", "input_layernorm.weight", "width"),
    layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
    layer("ffn_norm.weight", "pre_feedforward_layernorm.weight", "width"),
    layer("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width"),
)
TANH_GELU = activation("gelu_pytorch_tanh", of="hidden_activation")
SOFTCAP = f32("final_logit_softcapping", "final_logit_softcapping")


def given(field: str) -> Condition:
    """llama.cpp has a default of its own if the header has no entry."""
    return Condition(
        field, lambda config: is_finite(config.get(field)), "a number: llama.cpp has no model without it"
    )


def _scale(layers_of_27b: int) -> Condition:
    """llama.cpp scales attention by the head's width, except in the 27B, known by its number of layers."""

    def holds(config: ModelConfig) -> bool:
        large = config.integer("num_hidden_layers") == layers_of_27b
        width = divided_width(config) if large else config.integer("head_dim")
        return bool(config.number("query_pre_attn_scalar") == width)

    return Condition(
        "query_pre_attn_scalar",
        holds,
        f"head_dim (in a model of {layers_of_27b} layers hidden_size / num_attention_heads): "
        "llama.cpp computes no other here",
    )


def _windows(period: int) -> Condition:
    """llama.cpp gives every layer a window but the last of each `period`."""

    def holds(config: ModelConfig) -> bool:
        layers = range(1, config.integer("num_hidden_layers") + 1)
        kinds = config.get("layer_types")
        pattern = config.get("sliding_window_pattern")
        if kinds:
            full = [number % period == 0 for number in layers]
            return isinstance(kinds, list) and [kind == "full_attention" for kind in kinds] == full
        return pattern is None or pattern == period

    return Condition(
        "layer_types",
        holds,
        f"full attention in every layer whose number divides by {period}, windows in the others",
    )


# The converter writes no rope at all for Gemma 1 and 2.
_GEMMA_HEADER = (
    u32("context_length", "max_position_embeddings"),
    u32("embedding_length", "hidden_size"),
    u32("block_count", "num_hidden_layers"),
    u32("feed_forward_length", "intermediate_size"),
    u32("attention.head_count", "num_attention_heads"),
    u32("attention.head_count_kv", kv_heads),
    RMS_EPSILON,
    *HEAD,
)

GEMMA = Architecture(
    classes=("GemmaForCausalLM",),
    model_types=("gemma",),
    gguf="gemma",
    tensors=normed(EMBEDDING, OUTPUT_NORM, *NORMS, *ATTENTION, *MLP),
    hyperparameters=_GEMMA_HEADER,
    defaults=DEFAULTS
    | {"head_dim": 256, "max_position_embeddings": 8192, "num_key_value_heads": 16, TIED: True},
    skipped=HEAD_COPY,
    required=(
        TIED_HEAD,
        plain_rope(10000.0),
        # Early files say "gelu", but the model was trained with the approximation.
        activation("gelu_pytorch_tanh", "gelu"),
        switched_off("attention_bias"),
        switched_off("use_bidirectional_attention"),
    ),
)

GEMMA2 = Architecture(
    classes=("Gemma2ForCausalLM",),
    model_types=("gemma2",),
    gguf="gemma2",
    tensors=normed(EMBEDDING, OUTPUT_NORM, *BLOCK_NORMS, *ATTENTION, *MLP),
    hyperparameters=_GEMMA_HEADER,
    extensions=(f32("attn_logit_softcapping", "attn_logit_softcapping"), SOFTCAP, WINDOW),
    defaults={
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        TIED: True,
    },
    skipped=HEAD_COPY,
    required=(
        TIED_HEAD,
        plain_rope(10000.0),
        TANH_GELU,
        given("attn_logit_softcapping"),
        given("final_logit_softcapping"),
        given("sliding_window"),
        _scale(46),
        _windows(2),
        switched_off("attention_bias"),
        switched_off("use_bidirectional_attention"),
    ),
)

GEMMA3 = Architecture(
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_types=("gemma3_text", "gemma3"),
    gguf="gemma3",
    tensors=normed(*MODEL, *BLOCK_NORMS, *ATTENTION, *HEAD_NORMS, *MLP),
    hyperparameters=COMMON,
    extensions=(SOFTCAP, WINDOW),
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "vocab_size": 262208,
        TIED: True,
    },
    caveats=LIMITS[1:],
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(
        TANH_GELU,
        *rope_kinds("linear"),
        given("sliding_window"),
        _scale(62),
        _windows(6),
        switched_off("attention_bias"),
        switched_off("attn_logit_softcapping"),
        switched_off("use_bidirectional_attention"),
    ),
)
