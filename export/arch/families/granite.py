"""IBM: Granite, a Llama with multipliers, dense and with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import f32, u32
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    HEAD,
    INTERLEAVED_ATTENTION,
    MODEL,
    NORMS,
    PLAIN_HEADS,
    ROTATED,
    VOCABULARY,
    fused_experts,
    half_rows,
    layer,
    switched_off,
)

GRANITE = replace(
    LLAMA,
    classes=("GraniteForCausalLM",),
    model_types=("granite",),
    gguf="granite",
    hyperparameters=COMMON[: -len(HEAD)],
    extensions=(
        VOCABULARY,
        ROTATED,
        f32("attention.scale", "attention_multiplier"),
        f32("embedding_scale", "embedding_multiplier"),
        f32("residual_scale", "residual_multiplier"),
        f32("logit_scale", "logits_scaling"),
    ),
    defaults=DEFAULTS
    | {
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "max_position_embeddings": 2048,
        "residual_multiplier": 1.0,
    },
    required=(*LLAMA.required, PLAIN_HEADS),
)

_HALVES: dict[str, Any] = {"becomes": ("shared_ff", "width")}

GRANITE_MOE = replace(
    GRANITE,
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    model_types=("granitemoe", "granitemoeshared"),
    gguf="granitemoe",
    tensors=(
        *(*MODEL, *NORMS, *INTERLEAVED_ATTENTION),
        layer("ffn_gate_inp.weight", "block_sparse_moe.router.layer.weight", "experts", "width"),
        layer(
            "ffn_gate_shexp.weight",
            *("shared_mlp.input_linear.weight", "2_shared_ff", "width"),
            rows=half_rows(0, "shared_ff", "one"),
            when="shared_intermediate_size",
            **_HALVES,
        ),
        layer(
            "ffn_up_shexp.weight",
            *("shared_mlp.input_linear.weight", "2_shared_ff", "width"),
            rows=half_rows(1, "shared_ff", "one"),
            when="shared_intermediate_size",
            **_HALVES,
        ),
        layer(
            "ffn_down_shexp.weight",
            *("shared_mlp.output_linear.weight", "width", "shared_ff"),
            when="shared_intermediate_size",
        ),
        *fused_experts("ff", "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    ),
    extensions=(
        *GRANITE.extensions,
        u32(
            "expert_shared_feed_forward_length",
            lambda config: config.get("shared_intermediate_size") or None,
        ),
    ),
    defaults=GRANITE.defaults
    | {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": lambda config: config.get("shared_intermediate_size"),
    },
    aliases={"num_experts": "num_local_experts"},
    required=(*GRANITE.required, switched_off("attention_bias")),
)

GRANITE_ROWS = (GRANITE, GRANITE_MOE)
