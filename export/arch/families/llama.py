"""Meta: Llama, and what is saved as one; Llama 4, with experts whose matrices are stored transposed; Muse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    SILU,
    Condition,
    activation,
    fixed,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import ModelConfig, divided_width, f32, head_dim, u32
from lorafold.export.arch.rope import (
    llama3_factors,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    EXPERT_WIDTH,
    INTERLEAVED_ATTENTION,
    INTERLEAVED_KEY,
    INTERLEAVED_QUERY,
    MLP,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    ROTATED,
    VALUE,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    Sizes,
    TensorRule,
    in_layers,
    layer,
    layer_kinds,
    respelled,
    shared_expert_rules,
    with_bias,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS
from lorafold.export.gguf.parts import ColumnRange

_BIASED_ATTENTION = (
    *with_bias(INTERLEAVED_QUERY, "attention_bias", op="interleave_cols"),
    *with_bias(INTERLEAVED_KEY, "attention_bias", op="interleave_cols"),
    *with_bias(VALUE, "attention_bias"),
    *with_bias(ATTENTION_OUTPUT, "attention_bias"),
)


_BIASED_MLP = tuple(rule for linear in MLP for rule in with_bias(linear, "mlp_bias"))


LLAMA = Architecture(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    gguf="llama",
    tensors=(*MODEL, *NORMS, *_BIASED_ATTENTION, *_BIASED_MLP),
    hyperparameters=COMMON,
    extensions=(VOCABULARY, ROTATED),
    generated=llama3_factors,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "head_dim": divided_width},
    required=(SILU, EVEN_HEADS, *rope_kinds("linear", "yarn", "llama3")),
    caveats=LIMITS,
)


def _routes(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has experts."""
    return (layer + 1) % config.integer("interleave_moe_layer_step") == 0


def _is_dense(config: ModelConfig, layer: int) -> bool:
    return not _routes(config, layer)


def _half_columns(half: int) -> Callable[[Sizes], list[ColumnRange]]:
    """Gate (0) or up projection (1) among the columns of both."""
    return lambda sizes: [(half * sizes["expert_ff"], (half + 1) * sizes["expert_ff"], 1)]


def transposed_experts(prefix: str) -> tuple[TensorRule, ...]:
    """Rules for (experts, in, out) matrices, gate and up projection side by side."""
    shape: dict[str, Any] = {"becomes": ("experts", "expert_ff", "width"), "transpose": True}
    fused = ("experts", "width", "2_expert_ff")
    return (
        layer("ffn_gate_exps.weight", f"{prefix}.gate_up_proj", *fused, columns=_half_columns(0), **shape),
        layer("ffn_up_exps.weight", f"{prefix}.gate_up_proj", *fused, columns=_half_columns(1), **shape),
        layer(
            "ffn_down_exps.weight", f"{prefix}.down_proj", *("experts", "expert_ff", "width"), transpose=True
        ),
    )


def _usual_kinds(config: ModelConfig) -> list[str]:
    """A default for `layer_types`: chunks, but for every fourth layer, which goes without rope."""
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return ["chunked_attention" if number % 4 else "full_attention" for number in layers]


def _rope_as_built(config: ModelConfig) -> bool:
    """Whether every fourth layer goes without rope."""
    given, kinds = config.get("no_rope_layers"), _usual_kinds(config)
    return not given or given == [int(kind == "chunked_attention") for kind in kinds]


LLAMA4 = Architecture(
    classes=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    model_types=("llama4_text", "llama4"),
    gguf="llama4",
    tensors=(
        *(*MODEL, *NORMS, *ATTENTION),
        *in_layers(_is_dense, *respelled("mlp.", "feed_forward.", *MLP)),
        *in_layers(
            _routes,
            layer("ffn_gate_inp.weight", "feed_forward.router.weight", "experts", "width"),
            *shared_expert_rules("feed_forward.shared_expert"),
            *transposed_experts("feed_forward.experts"),
        ),
    ),
    hyperparameters=tuple(
        u32(entry.key, "intermediate_size_mlp") if entry.key == "feed_forward_length" else entry
        for entry in COMMON
    ),
    extensions=(
        *(VOCABULARY, ROTATED),
        u32("interleave_moe_layer_step", "interleave_moe_layer_step"),
        EXPERT_WIDTH,
    ),
    generated=llama3_factors,
    defaults=DEFAULTS
    | {
        "attention_chunk_size": 8192,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "head_dim": 128,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 16384,
        "layer_types": _usual_kinds,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 8192,
        "num_experts": 16,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "shared_expert_intermediate_size": lambda config: config.integer("moe_intermediate_size"),
        "use_qk_norm": True,
    },
    sizes=lambda config: {"ff": config.integer("intermediate_size_mlp")},
    aliases={"moe_intermediate_size": "intermediate_size", "num_experts": "num_local_experts"},
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(
        SILU,
        EVEN_HEADS,
        switched_off("attention_bias"),
        *rope_kinds("llama3"),
        fixed("attention_chunk_size", 8192),
        fixed("attn_temperature_tuning", True),
        fixed("floor_scale", 8192),
        fixed("attn_scale", 0.1),
        Condition(
            "use_qk_norm",
            lambda config: config.flag("use_qk_norm") != (config.get("num_experts") == 128),
            "true, but false with 128 experts: llama.cpp computes no other here",
        ),
        Condition(
            "no_rope_layers",
            _rope_as_built,
            "0 for every fourth layer and 1 for the others: llama.cpp's graph is built so",
        ),
        Condition(
            "layer_types",
            lambda config: layer_kinds(config) == _usual_kinds(config),
            "chunks in three of four layers: llama.cpp's graph is built so",
        ),
    ),
)


def _scaled_heads(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Norms of queries and keys without weights; queries are multiplied by a constant."""
    size, factor = head_dim(config), float(np.float32(config.number("qk_scale_factor")))
    layers = range(config.integer("num_hidden_layers"))
    return {
        f"blk.{number}.attn_{part}_norm.weight": (value,) * size
        for number in layers
        for part, value in (("q", factor), ("k", 1.0))
    }


def _every_fourth_from_last(config: ModelConfig) -> list[str]:
    """A default for `layer_types`: full attention in the last layer and every fourth before it."""
    layers = config.integer("num_hidden_layers")
    return ["sliding_attention" if (layers - 1 - at) % 4 else "full_attention" for at in range(layers)]


MUSE_GLIMMER = Architecture(
    classes=("MuseGlimmerForConditionalGeneration",),
    model_types=("muse_glimmer_text", "muse_glimmer"),
    gguf="muse-glimmer",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS, *INTERLEAVED_ATTENTION, *MLP),
        layer("attn_gate.weight", "self_attn.gate_proj.weight", "query", "width"),
        *(
            layer(f"{name}.weight", f"{source}_layernorm.weight", "width", op="add_one")
            for name, source in (
                ("attn_norm", "input"),
                ("post_attention_norm", "post_attention"),
                ("ffn_norm", "pre_feedforward"),
                ("post_ffw_norm", "post_feedforward"),
            )
        ),
    ),
    hyperparameters=COMMON,
    extensions=(
        f32("final_logit_softcapping", "final_logit_softcapping"),
        f32("logit_scale", "output_multiplier"),
        *(WINDOW, WINDOW_PATTERN),
    ),
    generated=_scaled_heads,
    defaults=DEFAULTS
    | {
        "final_logit_softcapping": 20.0,
        "head_dim": 128,
        "hidden_activation": "silu",
        "layer_types": _every_fourth_from_last,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "output_multiplier": 0.19611613513818404,
        "post_norm_eps": 1e-8,
        "qk_scale_factor": 3.87,
        "rms_norm_eps": 1e-5,
        "sliding_window": 2048,
    },
    spellings=SPELLINGS,
    skipped=(*TOWERS, (r"^model\.vision_(adapter|projection)\.", "sees images; the text model does not")),
    required=(
        activation("silu", of="hidden_activation"),
        EVEN_HEADS,
        fixed("post_norm_eps", 1e-8),
        switched_off("attention_bias"),
        *rope_kinds(),
    ),
)

LLAMA_ROWS = (LLAMA, LLAMA4, MUSE_GLIMMER)
