"""Mistral AI: Mistral, Mixtral, Ministral 3 and what wraps it with an image encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lorafold.export.arch.conditions import EVEN_HEADS, SILU, Condition
from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import ModelConfig, divided_width, f32, is_finite
from lorafold.export.arch.rope import read_rope, usual_yarn
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    INTERLEAVED_ATTENTION,
    MLP,
    MODEL,
    NORMS,
    expert_rules,
    fused_experts,
    layer,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    model_types=("mistral",),
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, *MLP),
    defaults=LLAMA.defaults
    | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
)


_ROUTER = layer("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "experts", "width")


MIXTRAL = replace(
    MISTRAL,
    classes=("MixtralForCausalLM",),
    model_types=("mixtral",),
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION),
    variants=(
        (_ROUTER, *expert_rules("block_sparse_moe.experts.{expert}", "w2", "w1", "w3", "ff", "gate down up")),
        (layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"), *fused_experts("ff")),
    ),
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    aliases={"num_experts": "num_local_experts"},
)

_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _is_ministral3(config: ModelConfig) -> bool:
    """Whether the text part is the Ministral of 2025, and not an older Mistral in the same wrapper."""
    return config.get("model_type") in (None, "ministral3")


def _ministral3_rope(name: str) -> Callable[[ModelConfig], Any]:
    """A getter of a rope parameter that only Ministral 3 has."""
    return lambda config: read_rope(config).full.get(name) if _is_ministral3(config) else None


def _known_rope(config: ModelConfig) -> bool:
    """Whether llama.cpp's mistral3 graph computes the rope: YaRN for Ministral 3, plain for older ones."""
    rope = read_rope(config)
    if not _is_ministral3(config):
        return rope.kind == "default"
    numbers = ("mscale_all_dim", "llama_4_scaling_beta")
    return (
        rope.kind == "yarn"
        and rope.full.get("mscale") == 1.0
        and rope.full.get("attention_factor") is None
        and all(is_finite(rope.full.get(name)) for name in numbers)
    )


MINISTRAL3 = replace(
    LLAMA,
    classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    model_types=("ministral3", "mistral3"),
    gguf="mistral3",
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, *MLP),
    # llama.cpp corrects YaRN's magnitude here by the entry below, and not by rope.scaling.attn_factor.
    hyperparameters=tuple(entry for entry in COMMON if entry.key != "rope.scaling.attn_factor"),
    extensions=(
        *LLAMA.extensions,
        f32("rope.scaling.yarn_log_multiplier", _ministral3_rope("mscale_all_dim")),
        f32("attention.temperature_scale", _ministral3_rope("llama_4_scaling_beta")),
    ),
    generated=None,
    defaults=DEFAULTS
    | {
        "head_dim": lambda config: 128 if _is_ministral3(config) else divided_width(config),
        "max_position_embeddings": lambda config: 262144 if _is_ministral3(config) else 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": lambda config: 1e-5 if _is_ministral3(config) else 1e-6,
        "rope_scaling": lambda config: _MINISTRAL3_ROPE if _is_ministral3(config) else {},
    },
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(
        SILU,
        EVEN_HEADS,
        Condition(
            "model_type",
            lambda config: config.get("model_type") in (None, "ministral3", "mistral"),
            "'ministral3' or 'mistral' in text_config: llama.cpp has another architecture for others",
        ),
        Condition(
            "rope_scaling",
            _known_rope,
            "YaRN with mscale 1, mscale_all_dim and llama_4_scaling_beta in a ministral3, and plain rope in "
            "a mistral: llama.cpp computes no other here",
        ),
        Condition(
            "rope_scaling", usual_yarn, "beta_fast 32 and beta_slow 1: llama.cpp computes no other here"
        ),
    ),
)

MISTRAL_ROWS = (MISTRAL, MIXTRAL, MINISTRAL3)
