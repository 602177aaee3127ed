"""NVIDIA: Nemotron of 2024, and Nemotron-H and 3, each of whose layers is one of four kinds.

The kinds are Mamba 2, attention, an MLP, or experts; attention goes without rope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    PLAIN_HEADS,
    TIED,
    Condition,
    fixed,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    array,
    divided_width,
    f32,
    kv_heads,
    text,
    u32,
)
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR
from lorafold.export.arch.mamba import ENDLESS_CONTEXT, MAMBA_HEADER, mamba_rules, mamba_sizes
from lorafold.export.arch.rope import read_rope, rotary_dim
from lorafold.export.arch.rules import (
    ATTENTION,
    BLOCK_COUNT,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    EXPERT_GROUPS,
    EXPERT_SCALE,
    EXPERT_WIDTH,
    EXPERTS,
    EXPERTS_NORMED,
    HEAD,
    INTERLEAVED_ATTENTION,
    LAYER_NORM_COMMON,
    LAYER_NORM_EPSILON,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    UP,
    VOCABULARY,
    Architecture,
    TensorRule,
    in_layers,
    layer,
    respelled,
)


def _linear_factor(config: ModelConfig) -> Any:
    """The factor of linear rope scaling, if there is one."""
    rope = read_rope(config)
    return rope.full.get("factor") if rope.kind == "linear" else None


def _less_one(*rules: TensorRule) -> tuple[TensorRule, ...]:
    """Nemotron's rules: every norm's weight is stored less one, its bias is not."""
    return tuple(replace(rule, op="add_one") if rule.name.endswith("norm.weight") else rule for rule in rules)


NEMOTRON = Architecture(
    classes=("NemotronForCausalLM",),
    model_types=("nemotron",),
    gguf="nemotron",
    tensors=(
        *_less_one(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT_ALWAYS, *NORM_PAIRS),
        *ATTENTION,
        UP,
        DOWN,
    ),
    # The converter writes the epsilon under both names, the other one first.
    hyperparameters=tuple(
        f32("attention.layer_norm_rms_epsilon", "layer_norm_eps") if entry == LAYER_NORM_EPSILON else entry
        for entry in LAYER_NORM_COMMON
    ),
    extensions=(
        VOCABULARY,
        LAYER_NORM_EPSILON,
        u32("rope.dimension_count", rotary_dim),
        text("rope.scaling.type", lambda config: "linear" if _linear_factor(config) else "none"),
        f32("rope.scaling.factor", _linear_factor),
    ),
    defaults=DEFAULTS
    | {
        "head_dim": divided_width,
        "hidden_act": "relu2",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
    },
    aliases={"layer_norm_eps": "norm_eps"},
    required=(
        fixed("hidden_act", "relu2"),
        PLAIN_HEADS,
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        *rope_kinds("linear", partial=True),
    ),
    caveats=LIMITS,
)


# The letters of `hybrid_override_pattern`, and the words of `layers_block_type`.
_WORDS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "moe": "E",
    "mlp": "-",
}


def _kinds(config: ModelConfig) -> str:
    """A letter for each layer: M, * (attention), E (experts), - (MLP).

    Raises:
        InputError: the config does not say it in these letters or words.
    """
    pattern, words = config.get("hybrid_override_pattern"), config.get("layers_block_type")
    if isinstance(pattern, str) and pattern and set(pattern) <= set("M*E-"):
        return pattern
    if isinstance(words, list) and words and all(word in _WORDS for word in words):
        return "".join(_WORDS[word] for word in words)
    raise config.wrong("layers_block_type", words or pattern, "the kind of each layer")


def _of_kind(letter: str) -> Callable[[ModelConfig, int], bool]:
    return lambda config, layer: _kinds(config)[layer] == letter


def _by_layer(letter: str, value: Callable[[ModelConfig], int]) -> Callable[[ModelConfig], list[int]]:
    """A number in layers of one kind, and 0 in the others."""
    return lambda config: [value(config) if kind == letter else 0 for kind in _kinds(config)]


def _sizes(config: ModelConfig) -> dict[str, int]:
    latent = config.get("moe_latent_size")
    return mamba_sizes(config) | {
        "latent": config.integer("hidden_size") if latent is None else config.integer("moe_latent_size")
    }


def _rms_epsilon(config: ModelConfig) -> Any:
    """Released files give it under this name too."""
    return config.get("rms_norm_eps") if config.get("rms_norm_eps") is not None else config.get("norm_eps")


def _hybrid_header(
    before: tuple[Hyperparameter, ...], widths: Callable[[ModelConfig], list[int]]
) -> tuple[tuple[Hyperparameter, ...], tuple[Hyperparameter, ...]]:
    """The entries before and after general.file_type; `widths` are the layers' inner ones."""
    return (
        (
            BLOCK_COUNT,
            ENDLESS_CONTEXT,
            u32("embedding_length", "hidden_size"),
            array("feed_forward_length", GGUFValueType.INT32, widths),
            u32("attention.head_count", "num_attention_heads"),
            array("attention.head_count_kv", GGUFValueType.INT32, _by_layer("*", kv_heads)),
            *before,
        ),
        (
            VOCABULARY,
            u32("rope.dimension_count", divided_width),
            *MAMBA_HEADER,
            Hyperparameter("rope.scaling.finetuned", GGUFValueType.BOOL, lambda _: False),
            *HEAD,
        ),
    )


_HYBRID_BEFORE, _HYBRID_AFTER = _hybrid_header(
    (f32("attention.layer_norm_rms_epsilon", _rms_epsilon), LAYER_NORM_EPSILON),
    _by_layer("-", lambda config: config.integer("intermediate_size")),
)
_ROUTED_BEFORE, _ROUTED_AFTER = _hybrid_header(
    (
        f32("attention.layer_norm_rms_epsilon", _rms_epsilon),
        LAYER_NORM_EPSILON,
        *EXPERTS,
        *EXPERT_GROUPS,
    ),
    _by_layer("E", lambda config: config.integer("moe_intermediate_size")),
)

NEMOTRON_H = Architecture(
    classes=("NemotronHForCausalLM",),
    model_types=("nemotron_h",),
    gguf="nemotron_h",
    chosen=lambda config: "E" not in _kinds(config),
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT),
        layer("attn_norm.weight", "norm.weight", "width"),
        *in_layers(_of_kind("*"), *respelled("self_attn.", "mixer.", *INTERLEAVED_ATTENTION)),
        *mamba_rules("mixer.", _of_kind("M")),
        *in_layers(_of_kind("-"), *respelled("mlp.", "mixer.", UP, DOWN)),
    ),
    hyperparameters=_HYBRID_BEFORE,
    extensions=_HYBRID_AFTER,
    sizes=_sizes,
    defaults={
        "head_dim": 128,
        "layer_norm_eps": 1e-5,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_n_groups": 8,
        "mamba_n_heads": 128,
        "mlp_hidden_act": "relu2",
        "num_hidden_layers": lambda config: len(_kinds(config)),
        "num_key_value_heads": 8,
        TIED: False,
    },
    aliases={
        "head_dim": "attention_head_dim",
        "layer_norm_eps": "layer_norm_epsilon",
        "mamba_conv_bias": "use_conv_bias",
        "mamba_d_conv": "conv_kernel",
        "mamba_d_head": "mamba_head_dim",
        "mamba_d_state": "ssm_state_size",
        "mamba_n_groups": "n_groups",
        "mamba_n_heads": "mamba_num_heads",
        "num_experts": "n_routed_experts",
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    },
    spellings=(
        ("backbone.embeddings.", "model.embed_tokens."),
        ("backbone.norm_f.", "model.norm."),
        ("backbone.", "model."),
        ("model.embeddings.", "model.embed_tokens."),
        ("model.norm_f.", "model.norm."),
    ),
    skipped=((r"^mtp\.", "predicts further tokens, which are left out here"),),
    required=(
        fixed("mlp_hidden_act", "relu2"),
        EVEN_HEADS,
        *(switched_off(name) for name in ("attention_bias", "mamba_proj_bias", "mlp_bias", "use_bias")),
        Condition(
            "num_hidden_layers",
            lambda config: config.get("num_hidden_layers") == len(_kinds(config)),
            "the number of kinds in layers_block_type",
        ),
    ),
)

NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    gguf="nemotron_h_moe",
    chosen=lambda config: "E" in _kinds(config),
    tensors=(
        *(rule for rule in NEMOTRON_H.tensors if rule.name not in (UP.name, DOWN.name)),
        *in_layers(
            _of_kind("E"),
            layer("ffn_gate_inp.weight", "mixer.gate.weight", "experts", "width"),
            layer("exp_probs_b.bias", "mixer.gate.e_score_correction_bias", "experts"),
            layer(
                "ffn_latent_down.weight",
                "mixer.fc1_latent_proj.weight",
                *("latent", "width"),
                when="moe_latent_size",
            ),
            layer(
                "ffn_latent_up.weight",
                "mixer.fc2_latent_proj.weight",
                *("width", "latent"),
                when="moe_latent_size",
            ),
            layer("ffn_up_shexp.weight", "mixer.shared_experts.up_proj.weight", "shared_ff", "width"),
            layer("ffn_down_shexp.weight", "mixer.shared_experts.down_proj.weight", "width", "shared_ff"),
        ),
    ),
    variants=(
        in_layers(
            _of_kind("E"),
            layer("ffn_down_exps.weight", "mixer.experts.{expert}.down_proj.weight", "latent", "expert_ff"),
            layer("ffn_up_exps.weight", "mixer.experts.{expert}.up_proj.weight", "expert_ff", "latent"),
        ),
        in_layers(
            _of_kind("E"),
            layer("ffn_down_exps.weight", "mixer.experts.down_proj", "experts", "latent", "expert_ff"),
            layer("ffn_up_exps.weight", "mixer.experts.up_proj", "experts", "expert_ff", "latent"),
        ),
    ),
    hyperparameters=_ROUTED_BEFORE,
    extensions=(
        *_ROUTED_AFTER,
        EXPERT_WIDTH,
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        u32("expert_shared_count", "n_shared_experts"),
        EXPERTS_NORMED,
        EXPERT_SCALE,
        u32("moe_latent_size", "moe_latent_size"),
    ),
    defaults=NEMOTRON_H.defaults
    | {
        "moe_intermediate_size": 7688,
        "n_group": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "shared_expert_intermediate_size": 7688,
        "topk_group": 1,
    },
    required=(
        *NEMOTRON_H.required,
        fixed("n_group", 1),
        Condition(
            "layers_block_type",
            lambda config: "-" not in _kinds(config),
            "no MLP layers beside experts: llama.cpp has either",
        ),
    ),
)

NVIDIA_ROWS = (NEMOTRON, NEMOTRON_H, NEMOTRON_H_MOE)
