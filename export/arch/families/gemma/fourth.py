"""Gemma 4: the layers with full attention have heads of another width, late layers take keys and values from
earlier ones, and some models have embeddings for each layer or experts beside the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gguf import GGUFValueType

from lorafold.export.arch.conditions import TIED, Condition, switched_off
from lorafold.export.arch.families.gemma.dense import BLOCK_NORMS, GEMMA3, SOFTCAP, TANH_GELU, given
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    array,
    kv_heads,
    u32,
)
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    COMMON,
    EXPERT_WIDTH,
    MLP,
    MODEL,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    TensorRule,
    in_layers,
    layer,
    layer_kinds,
)


def _global(field: str) -> Callable[[ModelConfig], Any]:
    """A field of the layers with full attention, as transformers 5 writes it: layer by layer."""

    def get(config: ModelConfig) -> Any:
        layers = config.get("per_layer_config")
        some = next(iter(layers.values()), None) if isinstance(layers, Mapping) else None
        return some.get(field) if isinstance(some, Mapping) else None

    return get


def _global_head(config: ModelConfig) -> Any:
    """Width of a head with full attention."""
    return _global("head_dim")(config) or 512


def _global_kv_heads(config: ModelConfig) -> int:
    """Key-value heads with full attention; a number of their own counts only if keys are the values too."""
    layered = _global("num_key_value_heads")(config)
    if layered is not None:
        return config.integer("global_kv_heads")
    if config.flag("attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
        return config.integer("num_global_key_value_heads")
    return kv_heads(config)


def _same_in_full_layers(config: ModelConfig) -> bool:
    """Whether `per_layer_config` says the same of every layer with full attention, and nothing of others."""
    layers = config.get("per_layer_config")
    if layers is None:
        return True
    full = {str(number) for number, kind in enumerate(layer_kinds(config)) if kind == "full_attention"}
    if not isinstance(layers, Mapping) or {str(number) for number in layers} != full:
        return False
    first: Any = next(iter(layers.values()), {})
    known = {"head_dim", "num_key_value_heads"}
    return isinstance(first, Mapping) and set(first) <= known and all(it == first for it in layers.values())


def _is_full(config: ModelConfig, layer: int) -> bool:
    return layer_kinds(config)[layer] == "full_attention"


def _is_windowed(config: ModelConfig, layer: int) -> bool:
    return not _is_full(config, layer)


def _is_shared(config: ModelConfig, layer: int) -> bool:
    """Whether a layer takes keys and values from an earlier one."""
    return layer >= config.integer("num_hidden_layers") - config.integer("num_kv_shared_layers", least=0)


def _is_wide(config: ModelConfig, layer: int) -> bool:
    """Whether a layer's MLP is twice as wide."""
    return config.flag("use_double_wide_mlp") and _is_shared(config, layer)


def _is_single(config: ModelConfig, layer: int) -> bool:
    return not _is_wide(config, layer)


def _both(
    *which: Callable[[ModelConfig, int], bool],
) -> Callable[[ModelConfig, int], bool]:
    """In layers of which all is true."""
    return lambda config, layer: all(one(config, layer) for one in which)


def _is_own(config: ModelConfig, layer: int) -> bool:
    return not _is_shared(config, layer)


def _attention_of(
    which: Callable[[ModelConfig, int], bool], head: str, query: str, key: str, value: TensorRule | None
) -> tuple[TensorRule, ...]:
    """Attention of one kind of layers. What shares keys and values may or may not have some itself."""
    own = (
        layer("attn_k.weight", "self_attn.k_proj.weight", key, "width"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", head),
        *(() if value is None else (value,)),
    )
    return (
        *in_layers(
            which,
            layer("attn_q.weight", "self_attn.q_proj.weight", query, "width"),
            layer("attn_q_norm.weight", "self_attn.q_norm.weight", head),
            layer("attn_output.weight", "self_attn.o_proj.weight", "width", query),
        ),
        *in_layers(_both(which, _is_own), *own),
        *in_layers(_both(which, _is_shared), *(replace(rule, unless="num_kv_shared_layers") for rule in own)),
    )


def _gemma4_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes of full attention and of embeddings for each layer."""
    head, groups = config.integer("global_head_dim"), _global_kv_heads(config)
    each = config.integer("hidden_size_per_layer_input", least=0)
    return {
        "global_head": head,
        "global_query": config.integer("num_attention_heads") * head,
        "global_key": groups * head,
        "each": each,
        "each_layer": each * config.integer("num_hidden_layers"),
    }


def _widths(config: ModelConfig) -> list[int] | None:
    """The inner width of each layer, if they differ."""
    if not config.flag("use_double_wide_mlp"):
        return None
    width = config.integer("intermediate_size")
    return [width * (1 + _is_wide(config, at)) for at in range(config.integer("num_hidden_layers"))]


def _kv_heads_of_layers(config: ModelConfig) -> list[int] | None:
    """The key-value heads of each layer, if those with full attention have a number of their own."""
    groups = _global_kv_heads(config)
    if _global("num_key_value_heads")(config) is None and config.get("num_global_key_value_heads") is None:
        return None
    return [
        groups if _is_full(config, at) else kv_heads(config)
        for at in range(config.integer("num_hidden_layers"))
    ]


def _proportional_factors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Full attention turns the first pairs of a head only; the others get a frequency of nothing."""
    half = config.integer("global_head_dim") // 2
    turned = int(config.integer("global_head_dim") * float(_partial(config)) / 2)
    return {"rope_freqs.weight": (1.0,) * turned + (float(np.float32(1e30)),) * (half - turned)}


def _partial(config: ModelConfig) -> float:
    return float(read_rope(config).full.get("partial_rotary_factor") or 1.0)


def _every_sixth_full(config: ModelConfig) -> list[str]:
    last = config.integer("num_hidden_layers")
    numbers = range(1, last + 1)
    return ["sliding_attention" if number % 6 and number < last else "full_attention" for number in numbers]


def _shares_with_the_last(config: ModelConfig) -> bool:
    """llama.cpp lets layers share keys and values with the last two that have some: a window, then all."""
    shared = config.integer("num_kv_shared_layers", least=0)
    own = config.integer("num_hidden_layers") - shared
    return not shared or layer_kinds(config)[max(own - 2, 0) : own] == ["sliding_attention", "full_attention"]


def _switch(rule: TensorRule, when: str) -> TensorRule:
    return replace(rule, when=when)


_EACH_LAYER = "hidden_size_per_layer_input"
_EXPERTS_BESIDE = (
    layer("ffn_gate_inp.weight", "router.proj.weight", "experts", "width"),
    layer("ffn_gate_inp.scale", "router.scale", "width"),
    layer("ffn_down_exps.scale", "router.per_expert_scale", "experts"),
    layer("ffn_gate_up_exps.weight", "experts.gate_up_proj", "experts", "2_expert_ff", "width"),
    layer("ffn_down_exps.weight", "experts.down_proj", "experts", "width", "expert_ff"),
    layer("pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight", "width"),
    layer("post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight", "width"),
    layer("post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight", "width"),
)
PER_LAYER = (
    TensorRule(
        "per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", ("each_vocab", "each_layer")
    ),
    TensorRule(
        "per_layer_model_proj.weight", "model.per_layer_model_projection.weight", ("each_layer", "width")
    ),
    TensorRule("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", ("each",)),
    layer("inp_gate.weight", "per_layer_input_gate.weight", "each", "width"),
    layer("proj.weight", "per_layer_projection.weight", "width", "each"),
    layer("post_norm.weight", "post_per_layer_input_norm.weight", "width"),
)
_WINDOW_VALUE = layer("attn_v.weight", "self_attn.v_proj.weight", "key", "width")
_GLOBAL_VALUE = layer(
    "attn_v.weight", "self_attn.v_proj.weight", "global_key", "width", when="not attention_k_eq_v"
)


def _each_width(config: ModelConfig) -> int:
    """The width of the layers' embeddings; the models without encoders have none."""
    return 0 if str(config.get("model_type")).startswith("gemma4_unified") else 256


GEMMA4 = Architecture(
    classes=(
        "Gemma4ForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4UnifiedForConditionalGeneration",
        "Gemma4UnifiedForCausalLM",
    ),
    model_types=("gemma4_text", "gemma4", "gemma4_unified_text", "gemma4_unified"),
    gguf="gemma4",
    tensors=(
        *MODEL,
        *BLOCK_NORMS,
        *_attention_of(_is_windowed, "head_dim", "query", "key", _WINDOW_VALUE),
        *_attention_of(_is_full, "global_head", "global_query", "global_key", _GLOBAL_VALUE),
        *in_layers(_is_single, *MLP),
        *in_layers(
            _is_wide,
            layer("ffn_gate.weight", "mlp.gate_proj.weight", "2_ff", "width"),
            layer("ffn_up.weight", "mlp.up_proj.weight", "2_ff", "width"),
            layer("ffn_down.weight", "mlp.down_proj.weight", "width", "2_ff"),
        ),
        layer("layer_output_scale.weight", "layer_scalar", "one"),
        *(_switch(rule, _EACH_LAYER) for rule in PER_LAYER),
        *(_switch(rule, "enable_moe_block") for rule in _EXPERTS_BESIDE),
    ),
    generated=_proportional_factors,
    hyperparameters=COMMON,
    extensions=(
        SOFTCAP,
        WINDOW,
        u32("attention.shared_kv_layers", "num_kv_shared_layers"),
        u32("embedding_length_per_layer_input", lambda config: config.get(_EACH_LAYER) or 0),
        WINDOW_PATTERN,
        u32("attention.key_length", "global_head_dim"),
        u32("attention.value_length", "global_head_dim"),
        u32("attention.key_length_swa", "head_dim"),
        u32("attention.value_length_swa", "head_dim"),
        EXPERT_WIDTH,
        array("feed_forward_length", GGUFValueType.INT32, _widths),
        array("attention.head_count_kv", GGUFValueType.INT32, _kv_heads_of_layers),
        u32("rope.dimension_count", "global_head_dim"),
        u32("rope.dimension_count_swa", "head_dim"),
    ),
    sizes=lambda config: (
        _gemma4_sizes(config)
        | ({"each_vocab": config.integer("vocab_size_per_layer_input")} if config.get(_EACH_LAYER) else {})
    ),
    defaults={
        "global_head_dim": _global_head,
        "global_kv_heads": _global("num_key_value_heads"),
        "head_dim": 256,
        _EACH_LAYER: _each_width,
        "layer_types": _every_sixth_full,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_kv_shared_layers": 0,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
        },
        "sliding_window": 512,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        TIED: True,
    },
    aliases={"num_experts_per_tok": "top_k_experts"},
    spellings=GEMMA3.spellings,
    skipped=tuple(
        (rf"^(model\.)?{part}\.", "sees or hears; the text model does not")
        for part in ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
    ),
    required=(
        TANH_GELU,
        given("sliding_window"),
        switched_off("attention_bias"),
        Condition(
            "rope_scaling",
            lambda config: (
                read_rope(config).kind == "proportional"
                and (read_rope(config).sliding.get("rope_type") or "default") == "default"
            ),
            "'proportional' for full attention and plain rope for windows: llama.cpp computes no other here",
        ),
        Condition(
            "use_bidirectional_attention",
            lambda config: config.get("use_bidirectional_attention") in (None, False, "vision"),
            "nothing or 'vision': in llama.cpp no text token sees what follows it",
        ),
        Condition(
            "layer_types",
            lambda config: layer_kinds(config)[-1] == "full_attention",
            "full attention in the last layer, which transformers computes in any case",
        ),
        Condition("per_layer_config", _same_in_full_layers, "the same for every layer with full attention"),
        Condition(
            "num_kv_shared_layers",
            _shares_with_the_last,
            "layers behind one with a window and one with full attention: llama.cpp shares with the last two",
        ),
        Condition(
            "top_k_experts",
            lambda config: (
                (config.get("num_experts") is None) == (not config.flag("enable_moe_block"))
                and (config.get("num_experts") is None or config.get("num_experts_per_tok") is not None)
            ),
            "a number if there are experts, and experts only with enable_moe_block",
        ),
    ),
)
