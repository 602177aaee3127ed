"""Mistral AI: Mistral and Mixtral."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.rules import (
    DEFAULTS,
    INTERLEAVED_ATTENTION,
    MLP,
    MODEL,
    NORMS,
    expert_rules,
    fused_experts,
    layer,
)

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

MISTRAL_ROWS = (
    MISTRAL,
    MIXTRAL,
)
