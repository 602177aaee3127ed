"""Models that normalise with LayerNorm: Cohere's Command R, BigCode's StarCoder 2, Stability's StableLM,
NVIDIA's Nemotron of 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    divided_width,
    f32,
    head_dim,
    kv_heads,
    text,
    u32,
)
from lorafold.export.arch.rope import read_rope, rotary_dim
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    KEY,
    LAYER_NORM_COMMON,
    LAYER_NORM_EPSILON,
    LIMITS,
    MLP,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    PLAIN_HEADS,
    QUERY,
    SILU,
    TIED,
    UP,
    VALUE,
    VOCABULARY,
    Architecture,
    Condition,
    TensorRule,
    activation,
    every_fourth_full,
    fixed,
    layer,
    layer_kinds,
    plain_rope,
    rope_kinds,
    switched_off,
    with_bias,
)

# LayerNorms with their biases.
NORM_PAIRS = tuple(part for norm in NORMS for part in with_bias(norm))
OUTPUT_NORM_PAIR = with_bias(OUTPUT_NORM)

_TIED_HEAD = Condition(TIED, lambda config: config.flag(TIED), "true: llama.cpp has no head of its own here")
_HEAD_COPY = ((r"^lm_head\.weight$", "a copy of the embedding, which llama.cpp uses as the head"),)
_NO_SCALING = text("rope.scaling.type", lambda _: "none")


def _trained_context(config: ModelConfig) -> int:
    """Command R's context; `max_position_embeddings` of its first release is less than it was trained on."""
    longer = config.get("model_max_length") is not None
    return config.integer("model_max_length" if longer else "max_position_embeddings")


COHERE = Architecture(
    classes=("CohereForCausalLM",),
    model_types=("cohere",),
    gguf="command-r",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        NORMS[0],
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.q_norm.weight", "heads", "head_dim", when="use_qk_norm"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", "kv_heads", "head_dim", when="use_qk_norm"),
        *MLP,
    ),
    hyperparameters=(
        *(
            u32(entry.key, _trained_context) if entry.key == "context_length" else entry
            for entry in LAYER_NORM_COMMON
        ),
    ),
    extensions=(f32("logit_scale", "logit_scale"), _NO_SCALING),
    defaults={
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "use_qk_norm": False,
        TIED: True,
    },
    skipped=_HEAD_COPY,
    required=(
        SILU,
        _TIED_HEAD,
        PLAIN_HEADS,
        plain_rope(),
        switched_off("attention_bias"),
        Condition(
            "use_qk_norm",
            lambda config: config.flag("use_qk_norm") == (config.integer("num_hidden_layers") >= 64),
            "true in a model of 64 layers or more, false in a smaller one: llama.cpp computes no other here",
        ),
    ),
)

COHERE2 = replace(
    COHERE,
    classes=("Cohere2ForCausalLM",),
    model_types=("cohere2",),
    gguf="cohere2",
    tensors=(EMBEDDING, OUTPUT_NORM, NORMS[0], *ATTENTION, *MLP),
    hyperparameters=LAYER_NORM_COMMON,
    extensions=(
        f32("logit_scale", "logit_scale"),
        u32("attention.sliding_window", "sliding_window"),
        VOCABULARY,
        u32("rope.dimension_count", head_dim),
        _NO_SCALING,
    ),
    defaults=COHERE.defaults
    | {
        "head_dim": divided_width,
        "layer_types": every_fourth_full,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    required=(
        SILU,
        _TIED_HEAD,
        PLAIN_HEADS,
        plain_rope(),
        switched_off("attention_bias"),
        Condition(
            "layer_types",
            lambda config: layer_kinds(config) == every_fourth_full(config),
            "full attention in every fourth layer, windows in the others",
        ),
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp has no model without it",
        ),
    ),
)

_FC = layer("ffn_up.weight", "mlp.c_fc.weight", "ff", "width")
_PROJ = layer("ffn_down.weight", "mlp.c_proj.weight", "width", "ff")

STARCODER2 = Architecture(
    classes=("Starcoder2ForCausalLM",),
    model_types=("starcoder2",),
    gguf="starcoder2",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT, *NORM_PAIRS),
        *(part for linear in (*ATTENTION, _FC, _PROJ) for part in with_bias(linear)),
    ),
    hyperparameters=LAYER_NORM_COMMON,
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "use_bias": True,
        TIED: True,
    },
    aliases={"layer_norm_eps": "norm_epsilon"},
    required=(
        activation("gelu_pytorch_tanh"),
        PLAIN_HEADS,
        fixed("use_bias", True),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS,
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

LAYER_NORM_ROWS = (COHERE, COHERE2, STARCODER2, STABLELM, NEMOTRON)
