"""Qwen3-Next and Qwen 3.5, mostly of linear attention.

A linear layer has more value heads than key heads. Qwen3.5 keeps the value heads of a key head together;
llama.cpp repeats all key heads, so value head `i * per + j`, of key head i, becomes head `j * keys + i`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.conditions import LIMITS, SILU, Condition, rope_kinds, switched_off
from lorafold.export.arch.families.qwen.routed import EXPERT_WIDTHS, EXPERTS_EVERYWHERE, normalized_routing
from lorafold.export.arch.hyperparameters import ModelConfig, array, head_dim, u32
from lorafold.export.arch.rope import read_rope, rotary_dim
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    HEAD_NORMS,
    KEY,
    MLP,
    MODEL,
    PREDICTION,
    ROUTER,
    VALUE,
    Architecture,
    Sizes,
    everywhere,
    expert_variants,
    in_layers,
    layer,
    layer_kinds,
    normed,
    predicts_further,
    shared_expert_rules,
)
from lorafold.export.gguf.parts import ColumnRange


def _is_full(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has softmax attention."""
    return predicts_further(config, layer) or layer_kinds(config)[layer] == "full_attention"


def _is_linear(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has linear attention."""
    return not _is_full(config, layer)


def _interval(config: ModelConfig) -> int:
    """Every how-manieth layer has softmax attention."""
    if config.raw.get("full_attention_interval") is None and config.raw.get("layer_types") is not None:
        kinds = layer_kinds(config)
        return kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    return config.integer("full_attention_interval")


def _usual_layers(config: ModelConfig) -> list[str]:
    """A default for `layer_types`: linear attention, but for the last layer of each interval."""
    interval = config.integer("full_attention_interval")
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return ["linear_attention" if number % interval else "full_attention" for number in layers]


def _linear_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes of the linear layers."""
    keys, values = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    if values % keys:
        raise config.wrong("linear_num_value_heads", values, f"a multiple of linear_num_key_heads {keys}")
    key, value = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
    width = config.integer("hidden_size")
    query = config.integer("num_attention_heads") * head_dim(config)
    return {
        "key_heads": keys,
        "value_heads": values,
        "2_value_heads": 2 * values,
        "key_head": key,
        "value_head": value,
        "linear_value": values * value,
        "linear_qkv": 2 * keys * key + values * value,
        "linear_qkvz": 2 * keys * key + 2 * values * value,
        "kernel": config.integer("linear_conv_kernel_dim"),
        "2_query": 2 * query,
        "2_width": 2 * width,
    }


def _tiled(start: int, keys: int, values: int, size: int) -> list[tuple[int, int]]:
    """Ranges that bring value heads of `size` rows, from `start` on, into llama.cpp's order."""
    per = values // keys
    if per == 1:
        return [(start, start + values * size)]
    heads = (head for first in range(per) for head in range(first, values, per))
    return [(start + head * size, start + (head + 1) * size) for head in heads]


def _tiled_values(size: str, queries_and_keys: bool = False) -> Callable[[Sizes], list[tuple[int, int]]]:
    """Rows of the value heads in llama.cpp's order, behind those of queries and keys if there are any."""

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        before = 2 * sizes["key_heads"] * sizes["key_head"] if queries_and_keys else 0
        ranges = [(0, before)] if before else []
        return ranges + _tiled(before, sizes["key_heads"], sizes["value_heads"], sizes[size])

    return rows


def _tiled_columns(size: str) -> Callable[[Sizes], list[ColumnRange]]:
    """`_tiled_values` for columns."""

    def columns(sizes: Sizes) -> list[ColumnRange]:
        ranges = _tiled(0, sizes["key_heads"], sizes["value_heads"], sizes[size])
        return [(start, stop, 1) for start, stop in ranges]

    return columns


def _grouped(part: str) -> Callable[[Sizes], list[tuple[int, int]]]:
    """Rows of Qwen3-Next's in_proj_qkvz, which holds for each key head its query, key, values and gates:

        | q k v … v z … z | q k v … v z … z | …    q and k of key_head rows, v and z of value_head rows

    Args:
        part: "qkv" for all queries, then all keys, then all values; "z" for all gates.
    """

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        keys, key = sizes["key_heads"], sizes["key_head"]
        value = sizes["value_heads"] // keys * sizes["value_head"]
        begins = {"q": (0, key), "k": (key, key), "v": (2 * key, value), "z": (2 * key + value, value)}
        group = 2 * (key + value)
        return [
            (number * group + begins[letter][0], number * group + sum(begins[letter]))
            for letter in part
            for number in range(keys)
        ]

    return rows


_LINEAR = "linear_attn."
_NEXT_NORMS = in_layers(
    everywhere,
    layer("attn_norm.weight", "input_layernorm.weight", "width"),
    layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
)
_NEXT_ATTENTION = in_layers(
    _is_full,
    layer("attn_q.weight", "self_attn.q_proj.weight", "2_query", "width"),
    KEY,
    VALUE,
    ATTENTION_OUTPUT,
    *HEAD_NORMS,
)
_LINEAR_NORM = in_layers(_is_linear, layer("ssm_norm.weight", _LINEAR + "norm.weight", "value_head"))
_NEXT_LINEAR = in_layers(
    _is_linear,
    layer(
        "attn_qkv.weight",
        _LINEAR + "in_proj_qkvz.weight",
        "linear_qkvz",
        "width",
        rows=_grouped("qkv"),
        becomes=("linear_qkv", "width"),
    ),
    layer(
        "attn_gate.weight",
        _LINEAR + "in_proj_qkvz.weight",
        "linear_qkvz",
        "width",
        rows=_grouped("z"),
        becomes=("linear_value", "width"),
    ),
    layer("ssm_ba.weight", _LINEAR + "in_proj_ba.weight", "2_value_heads", "width"),
    layer(
        "ssm_conv1d.weight",
        _LINEAR + "conv1d.weight",
        *("linear_qkv", "one", "kernel"),
        becomes=("linear_qkv", "kernel"),
    ),
    layer("ssm_a", _LINEAR + "A_log", "value_heads", op="negative_exp"),
    layer("ssm_dt.bias", _LINEAR + "dt_bias", "value_heads"),
    layer("ssm_out.weight", _LINEAR + "out_proj.weight", "width", "linear_value"),
)
_TILED_LINEAR = in_layers(
    _is_linear,
    layer(
        "attn_qkv.weight",
        _LINEAR + "in_proj_qkv.weight",
        *("linear_qkv", "width"),
        rows=_tiled_values("value_head", queries_and_keys=True),
    ),
    layer(
        "attn_gate.weight",
        _LINEAR + "in_proj_z.weight",
        *("linear_value", "width"),
        rows=_tiled_values("value_head"),
    ),
    layer(
        "ssm_alpha.weight",
        _LINEAR + "in_proj_a.weight",
        *("value_heads", "width"),
        rows=_tiled_values("one"),
    ),
    layer(
        "ssm_beta.weight",
        _LINEAR + "in_proj_b.weight",
        *("value_heads", "width"),
        rows=_tiled_values("one"),
    ),
    layer(
        "ssm_conv1d.weight",
        _LINEAR + "conv1d.weight",
        *("linear_qkv", "one", "kernel"),
        becomes=("linear_qkv", "kernel"),
        rows=_tiled_values("value_head", queries_and_keys=True),
    ),
    layer("ssm_a", _LINEAR + "A_log", "value_heads", columns=_tiled_columns("one"), op="negative_exp"),
    layer("ssm_dt.bias", _LINEAR + "dt_bias", "value_heads", columns=_tiled_columns("one")),
    layer(
        "ssm_out.weight",
        _LINEAR + "out_proj.weight",
        *("width", "linear_value"),
        columns=_tiled_columns("value_head"),
    ),
)
_PREDICTION_NAMES = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}


def _prediction_as_layer(name: str, config: ModelConfig) -> str:
    """`mtp.…`, which predicts the token after next, is spelled as the layer behind the last."""
    if (found := re.fullmatch(r"(?:model\.)?mtp\.(?:layers\.(\d{1,9})|(\w+))\.(.+)", name)) is None:
        return name
    number, module, rest = found.groups()
    last = config.integer("num_hidden_layers")
    if number is not None:
        return f"model.layers.{last + int(number)}.{rest}"
    return f"model.layers.{last}.{_PREDICTION_NAMES.get(module, module)}.{rest}"


_SHARED_EXPERT = in_layers(
    everywhere,
    ROUTER,
    layer("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "one", "width"),
    *shared_expert_rules("mlp.shared_expert"),
)
_NEXT_EXPERTS = expert_variants(everywhere)
_NEXT_EXTENSIONS = (
    u32("nextn_predict_layers", lambda config: config.further_layers or None),
    u32("ssm.conv_kernel", "linear_conv_kernel_dim"),
    u32("ssm.state_size", "linear_key_head_dim"),
    u32("ssm.group_count", "linear_num_key_heads"),
    u32("ssm.time_step_rank", "linear_num_value_heads"),
    u32(
        "ssm.inner_size",
        lambda config: config.integer("linear_value_head_dim") * config.integer("linear_num_value_heads"),
    ),
    u32("full_attention_interval", _interval),
    u32("rope.dimension_count", rotary_dim),
)
_NEXT_REQUIRED = (
    SILU,
    switched_off("attention_bias"),
    *rope_kinds("linear", "yarn", partial=True),
    Condition(
        "layer_types",
        lambda config: (
            [_is_full(config, layer) for layer in range(config.integer("num_hidden_layers"))]
            == [(layer + 1) % _interval(config) == 0 for layer in range(config.integer("num_hidden_layers"))]
        ),
        "full attention in the last layer of each interval and linear attention in the others",
    ),
    Condition(
        "linear_value_head_dim",
        lambda config: config.get("linear_value_head_dim") == config.get("linear_key_head_dim"),
        "linear_key_head_dim: llama.cpp has one width for both",
    ),
)
_NEXT_DEFAULTS = DEFAULTS | {
    "full_attention_interval": 4,
    "head_dim": 256,
    "layer_types": _usual_layers,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.25,
}

QWEN3_NEXT = Architecture(
    classes=("Qwen3NextForCausalLM",),
    model_types=("qwen3_next",),
    gguf="qwen3next",
    tensors=(
        *normed(*MODEL, *_NEXT_NORMS, *_NEXT_ATTENTION, *PREDICTION),
        *_NEXT_LINEAR,
        *_LINEAR_NORM,
        *_SHARED_EXPERT,
    ),
    variants=_NEXT_EXPERTS,
    hyperparameters=COMMON,
    extensions=(*EXPERT_WIDTHS, *_NEXT_EXTENSIONS),
    canonical=_prediction_as_layer,
    sizes=_linear_sizes,
    further="kept",
    defaults=_NEXT_DEFAULTS
    | {
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(*_NEXT_REQUIRED, *EXPERTS_EVERYWHERE, normalized_routing(True)),
    caveats=LIMITS,
)

_SEES_IMAGES = "sees images; the text model does not"
QWEN35 = Architecture(
    classes=(
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration",  # OpenBMB's, around a Qwen3.5
    ),
    model_types=("qwen3_5_text", "qwen3_5"),
    gguf="qwen35",
    tensors=(
        *normed(*MODEL, *_NEXT_NORMS, *_NEXT_ATTENTION, *PREDICTION),
        *_TILED_LINEAR,
        *_LINEAR_NORM,
        *in_layers(everywhere, *MLP),
    ),
    hyperparameters=COMMON,
    extensions=(
        *_NEXT_EXTENSIONS,
        # llama.cpp does not load the model without, and for text they make no difference.
        array(
            "rope.dimension_sections",
            GGUFValueType.INT32,
            lambda config: None if read_rope(config).full.get("mrope_section") else [11, 11, 10, 0],
        ),
    ),
    spellings=(("model.language_model.", "model."),),
    skipped=((r"^model\.(visual|vision_tower|vpm|merger|resampler)\.", _SEES_IMAGES),),
    canonical=_prediction_as_layer,
    sizes=_linear_sizes,
    further="kept",
    defaults=_NEXT_DEFAULTS,
    required=(
        *_NEXT_REQUIRED,
        Condition(
            "attn_output_gate",
            lambda config: config.get("attn_output_gate") in (None, True),
            "true: llama.cpp has no attention without gate here",
        ),
    ),
    caveats=LIMITS,
)

QWEN35_MOE = replace(
    QWEN35,
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    gguf="qwen35moe",
    tensors=(
        *normed(*MODEL, *_NEXT_NORMS, *_NEXT_ATTENTION, *PREDICTION),
        *_TILED_LINEAR,
        *_LINEAR_NORM,
        *_SHARED_EXPERT,
    ),
    variants=_NEXT_EXPERTS,
    extensions=(*EXPERT_WIDTHS, *QWEN35.extensions),
    defaults=_NEXT_DEFAULTS
    | {
        "moe_intermediate_size": 512,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 512,
    },
    aliases={"num_experts": "num_local_experts"},
)
