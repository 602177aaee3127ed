"""Gemma 3n: four streams of activations (AltUp), a low-rank path beside attention (LAuReL), embeddings for
each layer.

llama.cpp's graph fixes the sizes of the released models, E2B and E4B; the config must agree with them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import TIED, Condition, rope_kinds, switched_off
from lorafold.export.arch.families.gemma.dense import BLOCK_NORMS, GEMMA3, SOFTCAP, TANH_GELU, given
from lorafold.export.arch.families.gemma.fourth import PER_LAYER
from lorafold.export.arch.hyperparameters import ModelConfig, array, u32
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    HEAD_NORMS,
    MLP,
    MODEL,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    TensorRule,
    layer,
)

# What llama.cpp's graph holds: layers with keys and values of their own, and layers with sparse activations.
_OWN_KEYS, _SPARSE = 20, 10
# The quantile of the normal distribution, as torch computes it in float32; llama.cpp has its own.
_SCALES = {0.95: 1.6448535919189453, 0.0: float("-inf")}


def _each_layer(config: ModelConfig, field: str) -> list[Any]:
    """A list of one value for each layer."""
    given, layers = config.get(field), config.integer("num_hidden_layers")
    if not (isinstance(given, list) and len(given) == layers):
        raise config.wrong(field, given, f"a list of {layers} values, one for each layer")
    return given


def _widths(config: ModelConfig) -> list[int]:
    return [config.integer("intermediate_size")] * config.integer("num_hidden_layers")


def _sparsity(config: ModelConfig) -> list[float]:
    """How many standard deviations an activation must lie above the mean to count."""
    return [_SCALES[share] for share in _each_layer(config, "activation_sparsity_pattern")]


def _usual_sparsity(config: ModelConfig) -> list[float]:
    layers = config.integer("num_hidden_layers")
    return ([0.95] * _SPARSE + [0.0] * (layers - _SPARSE)) if layers > _SPARSE else [0.0] * layers


def _first_ten_sparse(config: ModelConfig) -> bool:
    layers = range(config.integer("num_hidden_layers"))
    return _each_layer(config, "activation_sparsity_pattern") == [
        0.95 if layer < _SPARSE else 0.0 for layer in layers
    ]


def _every_fifth_full(config: ModelConfig) -> list[str]:
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return ["sliding_attention" if number % 5 else "full_attention" for number in layers]


def _own_keys(config: ModelConfig) -> bool:
    layers, shared = config.integer("num_hidden_layers"), config.integer("num_kv_shared_layers", least=0)
    return layers - shared == (_OWN_KEYS if layers > _OWN_KEYS else layers)


def _sizes(config: ModelConfig) -> dict[str, int]:
    inputs, each = config.integer("altup_num_inputs"), config.integer("hidden_size_per_layer_input")
    return {
        "inputs": inputs,
        "squared": inputs * inputs,
        "planes": inputs - 1,
        "laurel": config.integer("laurel_rank"),
        "each": each,
        "each_layer": each * config.integer("num_hidden_layers"),
        "each_vocab": config.integer("vocab_size_per_layer_input"),
    }


def _built_in(field: str, value: int) -> Condition:
    return Condition(
        field, lambda config: bool(config.get(field) == value), f"{value}: llama.cpp loads no other here"
    )


GEMMA3N = Architecture(
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    model_types=("gemma3n_text", "gemma3n"),
    gguf="gemma3n",
    tensors=(
        *(*MODEL, *BLOCK_NORMS, *ATTENTION, *HEAD_NORMS, *MLP),
        # A token for pictures or sound has no embedding of the layers; llama.cpp wants a row for each token.
        replace(PER_LAYER[0], becomes=("vocab", "each_layer")),
        *PER_LAYER[1:],
        TensorRule("altup_proj.weight", "model.altup_projections.{plane}.weight", ("width", "width")),
        TensorRule(
            "altup_unembd_proj.weight", "model.altup_unembed_projections.{plane}.weight", ("width", "width")
        ),
        layer("altup_correct_scale.weight", "altup.correct_output_scale", "width"),
        layer("altup_correct_coef.weight", "altup.correction_coefs.weight", "inputs", "inputs"),
        layer("altup_predict_coef.weight", "altup.prediction_coefs.weight", "squared", "inputs"),
        layer("altup_router.weight", "altup.modality_router.weight", "inputs", "width"),
        layer("altup_router_norm.weight", "altup.router_norm.weight", "width"),
        layer("laurel_l.weight", "laurel.linear_left.weight", "laurel", "width"),
        layer("laurel_r.weight", "laurel.linear_right.weight", "width", "laurel"),
        layer("laurel_post_norm.weight", "laurel.post_laurel_norm.weight", "width"),
    ),
    hyperparameters=tuple(
        array(entry.key, GGUFValueType.INT32, _widths) if entry.key == "feed_forward_length" else entry
        for entry in COMMON
    ),
    extensions=(
        *(SOFTCAP, WINDOW),
        u32("altup.active_idx", "altup_active_idx"),
        u32("altup.num_inputs", "altup_num_inputs"),
        u32("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        u32("attention.shared_kv_layers", "num_kv_shared_layers"),
        array("activation_sparsity_scale", GGUFValueType.FLOAT32, _sparsity),
        WINDOW_PATTERN,
    ),
    sizes=_sizes,
    defaults={
        "activation_sparsity_pattern": _usual_sparsity,
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "altup_num_inputs": 4,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "laurel_rank": 64,
        "layer_types": _every_fifth_full,
        "max_position_embeddings": 32768,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 15,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "vocab_size": 262400,
        "vocab_size_per_layer_input": 262144,
        TIED: True,
    },
    spellings=GEMMA3.spellings,
    skipped=tuple(
        (rf"^(model\.)?{part}\.", "sees or hears; the text model does not")
        for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    ),
    required=(
        TANH_GELU,
        *rope_kinds("linear"),
        given("sliding_window"),
        switched_off("attention_bias"),
        _built_in("altup_num_inputs", 4),
        _built_in("altup_active_idx", 0),
        _built_in("hidden_size_per_layer_input", 256),
        _built_in("laurel_rank", 64),
        Condition(
            "activation_sparsity_pattern",
            _first_ten_sparse,
            "0.95 in the first 10 layers and 0 in the others: llama.cpp computes no other here",
        ),
        Condition(
            "num_kv_shared_layers",
            _own_keys,
            "all layers behind the first 20: llama.cpp shares keys and values so",
        ),
    ),
)
