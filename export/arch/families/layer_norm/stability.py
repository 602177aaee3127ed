"""Stability AI: StableLM."""

from __future__ import annotations

from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.conditions import PLAIN_HEADS, SILU, plain_rope
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    kv_heads,
    u32,
)
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR
from lorafold.export.arch.rope import rotary_dim
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    DEFAULTS,
    EMBEDDING,
    KEY,
    LAYER_NORM_EPSILON,
    MLP,
    OUTPUT_ALWAYS,
    QUERY,
    VALUE,
    Architecture,
    TensorRule,
    layer,
    with_bias,
)


def _stacked_norms(part: str, mark: str, name: str) -> TensorRule:
    """One norm for each head, which llama.cpp keeps as a matrix."""
    source = f"self_attn.{part}_layernorm.norms.{mark}.weight"
    return layer(name, source, "head_dim", when="qk_layernorm")


STABLELM = Architecture(
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    model_types=("stablelm",),
    gguf="stablelm",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT_ALWAYS, *NORM_PAIRS[:2]),
        *(replace(norm, when="not use_parallel_residual") for norm in NORM_PAIRS[2:]),
        *with_bias(QUERY, "use_qkv_bias"),
        *with_bias(KEY, "use_qkv_bias"),
        *with_bias(VALUE, "use_qkv_bias"),
        ATTENTION_OUTPUT,
        _stacked_norms("q", "{head}", "attn_q_norm.weight"),
        _stacked_norms("k", "{kv_head}", "attn_k_norm.weight"),
        *MLP,
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("block_count", "num_hidden_layers"),
        u32("feed_forward_length", "intermediate_size"),
        u32("rope.dimension_count", rotary_dim),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", kv_heads),
        Hyperparameter("use_parallel_residual", GGUFValueType.BOOL, "use_parallel_residual"),
        LAYER_NORM_EPSILON,
    ),
    defaults=DEFAULTS
    | {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "use_qkv_bias": False,
    },
    required=(SILU, PLAIN_HEADS, plain_rope(10000.0)),
)
