"""Llamas with one difference each, of makers with one model here: Bilibili, Hugging Face, Arcee, ByteDance,
the Swiss AI initiative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    SILU,
    TIED,
    Condition,
    fixed,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    array,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    HEAD_NORMS,
    INTERLEAVED_ATTENTION,
    KEY,
    MLP,
    MODEL,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    QUERY,
    UP,
    VALUE,
    Architecture,
    layer,
    with_bias,
)


def _index_theta(config: ModelConfig) -> float:
    """Index's base frequency, which its 32K variant gives as a multiple of 10,000."""
    return 10000.0 * (config.number("rope_ratio") if config.get("rope_ratio") is not None else 1.0)


INDEX = replace(
    LLAMA,
    classes=("IndexForCausalLM",),
    model_types=("index",),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        replace(OUTPUT, when="not norm_head"),
        # The head's rows are normalised in every forward pass; here once and for all.
        replace(OUTPUT_ALWAYS, when="norm_head", op="l2_normalize"),
        *NORMS,
        *INTERLEAVED_ATTENTION,
        *MLP,
    ),
    defaults=LLAMA.defaults | {"rope_theta": _index_theta},
)


def _every_fourth_unrotated(config: ModelConfig) -> bool:
    """Whether exactly every fourth layer goes without rope, as llama.cpp's smollm3 graph has it."""
    layers = range(1, config.integer("num_hidden_layers") + 1)
    given = config.get("no_rope_layers")
    if given:
        return isinstance(given, list) and given == [int(number % 4 != 0) for number in layers]
    return bool(config.get("no_rope_layer_interval") == 4)


SMOLLM3 = replace(
    LLAMA,
    classes=("SmolLM3ForCausalLM",),
    model_types=("smollm3",),
    gguf="smollm3",
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, *MLP),
    generated=None,
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "use_sliding_window": False,
        TIED: True,
    },
    required=(
        SILU,
        EVEN_HEADS,
        *rope_kinds("linear", "yarn"),
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        Condition(
            "no_rope_layers",
            _every_fourth_unrotated,
            "0 for every fourth layer and 1 for the others: llama.cpp's graph is built so",
        ),
    ),
    caveats=LIMITS,
)


ARCEE = replace(
    LLAMA,
    classes=("ArceeForCausalLM",),
    model_types=("arcee",),
    gguf="arcee",
    tensors=(*MODEL, *NORMS, *INTERLEAVED_ATTENTION, UP, DOWN),
    defaults=LLAMA.defaults | {"hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    required=(
        fixed("hidden_act", "relu2"),
        EVEN_HEADS,
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        *rope_kinds("linear", "yarn", "llama3"),
    ),
)

SEED_OSS = Architecture(
    classes=("SeedOssForCausalLM",),
    model_types=("seed_oss",),
    gguf="seed_oss",
    tensors=(
        *MODEL,
        NORMS[0],
        replace(NORMS[1], name="blk.{layer}.post_attention_norm.weight"),
        *with_bias(QUERY, "attention_bias"),
        *with_bias(KEY, "attention_bias"),
        *with_bias(VALUE, "attention_bias"),
        ATTENTION_OUTPUT,
        *MLP,
    ),
    hyperparameters=COMMON,
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
    },
    required=(
        SILU,
        switched_off("attention_out_bias"),
        switched_off("mlp_bias"),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS,
)


def _xielu(field: str) -> Callable[[ModelConfig], Any]:
    """One number for each layer, from the base's tensors."""

    def get(config: ModelConfig) -> Any:
        given = config.get(field)
        if not (isinstance(given, list) and len(given) == config.integer("num_hidden_layers")):
            raise config.wrong(field, given, "a tensor of one number in each layer")
        return given

    return get


APERTUS = replace(
    LLAMA,
    classes=("ApertusForCausalLM",),
    model_types=("apertus",),
    gguf="apertus",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS),
        layer("attn_norm.weight", "attention_layernorm.weight", "width"),
        layer("ffn_norm.weight", "feedforward_layernorm.weight", "width"),
        *(*ATTENTION, *HEAD_NORMS, UP, DOWN),
    ),
    # Its activation, xIELU, has four numbers in each layer, two of them learned.
    numbers={
        f"xielu_{name}": f"model.layers.{{layer}}.mlp.act_fn.{name}"
        for name in ("alpha_n", "alpha_p", "beta", "eps")
    },
    first=tuple(
        array(f"xielu.{name}", GGUFValueType.FLOAT32, _xielu(f"xielu_{name}"))
        for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    defaults=LLAMA.defaults
    | {
        "head_dim": None,
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
    },
    required=(
        fixed("hidden_act", "xielu"),
        EVEN_HEADS,
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        *rope_kinds("linear", "yarn", "llama3"),
    ),
)
