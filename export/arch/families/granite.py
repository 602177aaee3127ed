"""IBM: Granite, a Llama with multipliers, dense and with experts, and Granite 4, mixed with Mamba layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import EVEN_HEADS, PLAIN_HEADS, SILU, TIED, Condition, switched_off
from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, array, f32, kv_heads, u32
from lorafold.export.arch.mamba import ENDLESS_CONTEXT, MAMBA_HEADER, mamba_rules, mamba_sizes
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    HEAD,
    INTERLEAVED_ATTENTION,
    MLP,
    MODEL,
    NORMS,
    ROTATED,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    TensorRule,
    fused_experts,
    half_rows,
    in_layers,
    layer,
    layer_kinds,
)


def _mamba_head(config: ModelConfig) -> int:
    """The width of a Mamba head if the config does not give it."""
    inner = config.integer("mamba_expand") * config.integer("hidden_size")
    return inner // config.integer("mamba_n_heads")


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


def _kinds(config: ModelConfig) -> list[str]:
    """The layers' kinds, in transformers 5's words."""
    words = {"mamba": "linear_attention", "attention": "full_attention"}
    return [words.get(kind, kind) for kind in layer_kinds(config)]


def _is_attention(config: ModelConfig, layer: int) -> bool:
    return _kinds(config)[layer] == "full_attention"


def _is_mamba(config: ModelConfig, layer: int) -> bool:
    return not _is_attention(config, layer)


def _kv_heads_of_layers(config: ModelConfig) -> list[int]:
    """Key-value heads of each layer; Mamba layers have none."""
    return [kv_heads(config) if kind == "full_attention" else 0 for kind in _kinds(config)]


def _half_of_shared(name: str, half: int, when: str) -> TensorRule:
    """Gate or up projection of what every token passes."""
    return layer(
        name,
        "shared_mlp.input_linear.weight",
        *("2_shared_ff", "width"),
        rows=half_rows(half, "shared_ff", "one"),
        becomes=("shared_ff", "width"),
        when=when,
    )


_WITHOUT = "not num_experts"
GRANITE_HYBRID = replace(
    GRANITE,
    classes=("GraniteMoeHybridForCausalLM",),
    model_types=("granitemoehybrid",),
    gguf="granitehybrid",
    tensors=(
        *MODEL,
        *NORMS,
        *in_layers(_is_attention, *INTERLEAVED_ATTENTION),
        *mamba_rules("mamba.", _is_mamba),
        *(
            replace(rule, when="num_experts")
            for rule in (
                layer("ffn_gate_inp.weight", "block_sparse_moe.router.layer.weight", "experts", "width"),
                *fused_experts(
                    "ff", "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
                ),
            )
        ),
        _half_of_shared("ffn_gate_shexp.weight", 0, "num_experts"),
        _half_of_shared("ffn_up_shexp.weight", 1, "num_experts"),
        _half_of_shared("ffn_gate.weight", 0, _WITHOUT),
        _half_of_shared("ffn_up.weight", 1, _WITHOUT),
        *(
            layer(name, "shared_mlp.output_linear.weight", "width", "shared_ff", when=when)
            for name, when in (("ffn_down_shexp.weight", "num_experts"), ("ffn_down.weight", _WITHOUT))
        ),
    ),
    generated=None,
    extensions=(
        *GRANITE.extensions,
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        *MAMBA_HEADER,
        array("attention.head_count_kv", GGUFValueType.INT32, _kv_heads_of_layers),
        Hyperparameter("rope.scaling.finetuned", GGUFValueType.BOOL, lambda _: False),
        ENDLESS_CONTEXT,
    ),
    sizes=lambda config: (
        mamba_sizes(config) | {"2_shared_ff": 2 * config.integer("shared_expert_intermediate_size")}
    ),
    defaults=GRANITE.defaults
    | {
        "layer_types": lambda config: ["linear_attention"] * config.integer("num_hidden_layers"),
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": _mamba_head,
        "mamba_d_state": 256,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 1024,
    },
    aliases={
        "layer_types": "layers_block_type",
        "num_experts": "num_local_experts",
        "shared_expert_intermediate_size": "shared_intermediate_size",
    },
    required=(
        SILU,
        EVEN_HEADS,
        PLAIN_HEADS,
        switched_off("attention_bias"),
        switched_off("mamba_proj_bias"),
        Condition(
            "layer_types",
            lambda config: (
                "linear_attention" in _kinds(config)
                and set(_kinds(config)) <= {"linear_attention", "full_attention"}
            ),
            "Mamba and attention layers: llama.cpp has another architecture for attention alone",
        ),
        Condition(
            "position_embedding_type",
            lambda config: config.get("position_embedding_type") in (None, "nope"),
            "none: llama.cpp has no rotary positions here",
        ),
        Condition(
            "mamba_expand",
            lambda config: (
                config.integer("mamba_expand") * config.integer("hidden_size")
                == config.integer("mamba_n_heads") * config.integer("mamba_d_head")
            ),
            "mamba_n_heads * mamba_d_head / hidden_size",
        ),
    ),
    caveats=(),
)


def _every_fourth_full_from_first(config: ModelConfig) -> list[str]:
    """A default for `layer_types`."""
    layers = range(config.integer("num_hidden_layers"))
    return ["sliding_attention" if number % 4 else "full_attention" for number in layers]


def _thetas(config: ModelConfig) -> list[Any] | None:
    """The rope base of each layer, if the config gives it; 0 stands for no rope."""
    given = config.get("layer_rope_theta")
    return given if isinstance(given, list) else None


def _rope_pattern(config: ModelConfig) -> list[bool] | None:
    """Which layers have rope, if some have not."""
    thetas = _thetas(config)
    return None if not thetas or all(thetas) else [bool(theta) for theta in thetas]


GRANITE_SWA = replace(
    GRANITE,
    classes=("GraniteSWAForCausalLM",),
    model_types=("granite_swa",),
    gguf="granite_swa",
    tensors=(
        *(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, *MLP),
        layer("attn_sinks.weight", "self_attn.sinks", "heads"),
    ),
    extensions=(
        *GRANITE.extensions,
        WINDOW,
        WINDOW_PATTERN,
        array("attention.rope_pattern", GGUFValueType.BOOL, _rope_pattern),
    ),
    defaults=GRANITE.defaults
    | {
        "layer_types": _every_fourth_full_from_first,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        TIED: True,
    },
    required=(
        *GRANITE.required,
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp has no model without it",
        ),
        Condition(
            "layer_rope_theta",
            lambda config: set(_thetas(config) or ()) <= {0, read_rope(config).full.get("rope_theta")},
            "rope_theta or 0 for each layer: llama.cpp has one base",
        ),
    ),
    caveats=(),
)

GRANITE_MOE_SWA = replace(
    GRANITE_SWA,
    classes=("GraniteMoeSWAForCausalLM",),
    model_types=("granitemoe_swa",),
    tensors=(
        *(rule for rule in GRANITE_SWA.tensors if rule not in MLP),
        layer("ffn_gate_inp.weight", "block_sparse_moe.router.weight", "experts", "width"),
        layer("ffn_gate_up_exps.weight", "block_sparse_moe.experts.gate_up_proj", "experts", "2_ff", "width"),
        layer("ffn_down_exps.weight", "block_sparse_moe.experts.down_proj", "experts", "width", "ff"),
        *(
            replace(rule, when="shared_expert_intermediate_size")
            for rule in (
                layer("ffn_up_shexp.weight", "shared_mlp.input_linear.weight", "2_shared_ff", "width"),
                layer("ffn_down_shexp.weight", "shared_mlp.output_linear.weight", "width", "shared_ff"),
            )
        ),
    ),
    extensions=(
        *GRANITE_SWA.extensions,
        u32(
            "expert_shared_feed_forward_length",
            lambda config: config.get("shared_expert_intermediate_size") or None,
        ),
    ),
    defaults=GRANITE_SWA.defaults
    | {
        "max_position_embeddings": 2048,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_key_value_heads": None,
        "rms_norm_eps": 1e-6,
        "shared_expert_intermediate_size": 0,
        TIED: False,
    },
    aliases={
        "num_experts": "num_local_experts",
        "shared_expert_intermediate_size": "shared_intermediate_size",
    },
)

GRANITE_ROWS = (GRANITE, GRANITE_MOE, GRANITE_SWA, GRANITE_MOE_SWA, GRANITE_HYBRID)
