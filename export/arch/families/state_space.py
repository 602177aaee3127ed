"""Models whose layers keep a state in place of keys and values: Mamba, Mamba 2, Falcon Mamba, Jamba.

Mamba's in_proj holds | input: inner rows | gate: inner rows |, its x_proj | dt: rank | B: state | C: state |.
Jamba mixes Mamba layers with attention, and MLPs with experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.conditions import PLAIN_HEADS, SILU, TIED, Condition, switched_off
from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, array, kv_heads, u32
from lorafold.export.arch.mamba import ENDLESS_CONTEXT, MAMBA_HEADER, mamba_rules, mamba_sizes
from lorafold.export.arch.rules import (
    ATTENTION,
    DEFAULTS,
    EMBEDDING,
    MLP,
    NORMS,
    OUTPUT,
    OUTPUT_NORM,
    RMS_EPSILON,
    SIZES,
    Architecture,
    TensorRule,
    expert_rules,
    fused_experts,
    in_layers,
    layer,
    respelled,
)


def _state_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes of a Mamba layer."""
    inner, state = config.integer("mamba_inner"), config.integer("mamba_d_state")
    rank = config.integer("mamba_dt_rank")
    return {
        "inner": inner,
        "2_inner": 2 * inner,
        "state": state,
        "rank": rank,
        "rank_states": rank + 2 * state,
        "kernel": config.integer("mamba_d_conv"),
    }


def _rank(config: ModelConfig) -> int:
    """A sixteenth of the width, rounded up."""
    return -(-config.integer("hidden_size") // 16)


def _mamba(prefix: str, which: Callable[[ModelConfig, int], bool] | None) -> tuple[TensorRule, ...]:
    """Rules for a Mamba layer's tensors below `prefix`."""
    rules = (
        layer("ssm_in.weight", f"{prefix}.in_proj.weight", "2_inner", "width"),
        layer(
            "ssm_conv1d.weight",
            f"{prefix}.conv1d.weight",
            *("inner", "one", "kernel"),
            becomes=("inner", "kernel"),
        ),
        layer("ssm_conv1d.bias", f"{prefix}.conv1d.bias", "inner"),
        layer("ssm_x.weight", f"{prefix}.x_proj.weight", "rank_states", "inner"),
        layer("ssm_dt.weight", f"{prefix}.dt_proj.weight", "inner", "rank"),
        layer("ssm_dt.bias", f"{prefix}.dt_proj.bias", "inner"),
        layer("ssm_a", f"{prefix}.A_log", "inner", "state", op="negative_exp"),
        layer("ssm_d", f"{prefix}.D", "inner"),
        layer("ssm_out.weight", f"{prefix}.out_proj.weight", "width", "inner"),
    )
    return rules if which is None else in_layers(which, *rules)


_TWICE = Condition(
    "intermediate_size",
    lambda config: config.integer("mamba_inner") == 2 * config.integer("hidden_size"),
    "twice the hidden_size: llama.cpp loads no other here",
)
_NO_HEADS = u32("attention.head_count", lambda _: 0)
_NO_MLP = u32("feed_forward_length", lambda _: 0)
_BACKBONE = (
    ("backbone.layers.", "model.layers."),
    ("backbone.embeddings.", "model.embed_tokens."),
    ("backbone.embedding.", "model.embed_tokens."),
    ("backbone.norm_f.", "model.norm."),
)

MAMBA = Architecture(
    classes=("MambaForCausalLM", "MambaLMHeadModel"),
    model_types=("mamba",),
    gguf="mamba",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT),
        layer("attn_norm.weight", "norm.weight", "width"),
        *_mamba("mixer", None),
    ),
    hyperparameters=(
        ENDLESS_CONTEXT,
        u32("embedding_length", "hidden_size"),
        *(_NO_MLP, _NO_HEADS),
        u32("block_count", "num_hidden_layers"),
        u32("ssm.conv_kernel", "mamba_d_conv"),
        u32("ssm.inner_size", "mamba_inner"),
        u32("ssm.state_size", "mamba_d_state"),
        u32("ssm.time_step_rank", "mamba_dt_rank"),
        RMS_EPSILON,
        Hyperparameter("ssm.dt_b_c_rms", GGUFValueType.BOOL, lambda _: False),
    ),
    sizes=_state_sizes,
    defaults={
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": _rank,
        "mamba_inner": lambda config: 2 * config.integer("hidden_size"),
        "num_attention_heads": 1,  # there are none
        "rms_norm_eps": 1e-5,
        "use_conv_bias": True,
        TIED: True,
    },
    aliases={
        "mamba_d_conv": "conv_kernel",
        "mamba_d_state": "state_size",
        "mamba_dt_rank": "time_step_rank",
        "mamba_inner": "intermediate_size",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    spellings=_BACKBONE,
    required=(
        SILU,
        _TWICE,
        switched_off("use_bias"),
        Condition(
            "use_conv_bias", lambda config: config.flag("use_conv_bias"), "true: llama.cpp adds a bias here"
        ),
    ),
)

FALCON_MAMBA = replace(
    MAMBA,
    classes=("FalconMambaForCausalLM",),
    model_types=("falcon_mamba",),
    # It normalises dt, B and C, without weights.
    hyperparameters=(
        *MAMBA.hyperparameters[:-1],
        Hyperparameter("ssm.dt_b_c_rms", GGUFValueType.BOOL, lambda _: True),
    ),
    caveats=(
        Condition(
            "mixer_rms_eps",
            lambda config: config.get("mixer_rms_eps") in (None, config.get("rms_norm_eps")),
            "layer_norm_epsilon: llama.cpp has one for both, which hardly shows",
        ),
    ),
)

MAMBA2 = Architecture(
    classes=("Mamba2ForCausalLM",),
    model_types=("mamba2",),
    gguf="mamba2",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT),
        layer("attn_norm.weight", "norm.weight", "width"),
        *mamba_rules("mixer.", lambda config, at: True),
    ),
    hyperparameters=(
        ENDLESS_CONTEXT,
        u32("embedding_length", "hidden_size"),
        *(_NO_MLP, _NO_HEADS),
        u32("block_count", "num_hidden_layers"),
        *(
            next(entry for entry in MAMBA_HEADER if entry.key == f"ssm.{name}")
            for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
        ),
        RMS_EPSILON,
    ),
    sizes=mamba_sizes,
    defaults={
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_expand": 2,
        "mamba_n_groups": 8,
        "mamba_n_heads": 128,
        "num_attention_heads": 1,  # there are none
        "rms_norm_eps": 1e-5,
        TIED: False,
    },
    aliases={
        "mamba_conv_bias": "use_conv_bias",
        "mamba_d_conv": "conv_kernel",
        "mamba_d_head": "head_dim",
        "mamba_d_state": "state_size",
        "mamba_expand": "expand",
        "mamba_n_groups": "n_groups",
        "mamba_n_heads": "num_heads",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    spellings=(
        *(("model." + old, new) for old, new in _BACKBONE),
        *_BACKBONE,
        ("model.lm_head.", "lm_head."),
    ),
    required=(
        SILU,
        switched_off("use_bias"),
        Condition(
            "expand",
            lambda config: (
                config.integer("mamba_expand") * config.integer("hidden_size")
                == config.integer("mamba_n_heads") * config.integer("mamba_d_head")
            ),
            "num_heads * head_dim / hidden_size",
        ),
    ),
)


def _every(config: ModelConfig, layer: int, part: str) -> bool:
    """Whether a layer is one of each `part`'s period."""
    offset, period = config.integer(f"{part}_layer_offset", least=0), config.integer(f"{part}_layer_period")
    return layer >= offset and (layer - offset) % period == 0


def _attends(config: ModelConfig, layer: int) -> bool:
    return _every(config, layer, "attn")


def _keeps_state(config: ModelConfig, layer: int) -> bool:
    return not _attends(config, layer)


def _routes(config: ModelConfig, layer: int) -> bool:
    """Whether a layer has experts."""
    return _every(config, layer, "expert") and config.integer("num_experts") > 1


def _is_dense(config: ModelConfig, layer: int) -> bool:
    return not _routes(config, layer)


def _kv_heads_of_layers(config: ModelConfig) -> list[int]:
    layers = range(config.integer("num_hidden_layers"))
    return [kv_heads(config) if _attends(config, number) else 0 for number in layers]


JAMBA = Architecture(
    classes=("JambaForCausalLM",),
    model_types=("jamba",),
    gguf="jamba",
    tensors=(
        EMBEDDING,
        replace(OUTPUT_NORM, source="model.final_layernorm.weight"),
        OUTPUT,
        *respelled("post_attention_layernorm", "pre_ff_layernorm", *NORMS),
        *in_layers(_attends, *ATTENTION),
        *_mamba("mamba", _keeps_state),
        *in_layers(
            _keeps_state,
            layer("ssm_dt_norm.weight", "mamba.dt_layernorm.weight", "rank"),
            layer("ssm_b_norm.weight", "mamba.b_layernorm.weight", "state"),
            layer("ssm_c_norm.weight", "mamba.c_layernorm.weight", "state"),
        ),
        *in_layers(_is_dense, *respelled("mlp.", "feed_forward.", *MLP)),
        *in_layers(_routes, layer("ffn_gate_inp.weight", "feed_forward.router.weight", "experts", "width")),
    ),
    variants=(
        in_layers(
            _routes,
            *expert_rules(
                *("feed_forward.experts.{expert}", "down_proj", "gate_proj", "up_proj", "ff", "down gate up")
            ),
        ),
        in_layers(
            _routes,
            *fused_experts("ff", "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        ),
    ),
    hyperparameters=(
        *SIZES[:-1],
        array("attention.head_count_kv", GGUFValueType.INT32, _kv_heads_of_layers),
        u32("ssm.conv_kernel", "mamba_d_conv"),
        u32("ssm.inner_size", "mamba_inner"),
        u32("ssm.state_size", "mamba_d_state"),
        u32("ssm.time_step_rank", "mamba_dt_rank"),
        RMS_EPSILON,
        u32("expert_count", "num_experts"),
        u32("expert_used_count", "num_experts_per_tok"),
    ),
    sizes=_state_sizes,
    defaults=DEFAULTS
    | {
        "attn_layer_offset": 4,
        "attn_layer_period": 8,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": _rank,
        "mamba_inner": lambda config: config.integer("mamba_expand") * config.integer("hidden_size"),
        "mamba_expand": 2,
        "max_position_embeddings": 262144,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
    },
    required=(
        SILU,
        PLAIN_HEADS,
        _TWICE,
        switched_off("mamba_proj_bias"),
        Condition(
            "mamba_conv_bias",
            lambda config: config.flag("mamba_conv_bias"),
            "true: llama.cpp adds a bias here",
        ),
    ),
)

STATE_SPACE_ROWS = (MAMBA, FALCON_MAMBA, MAMBA2, JAMBA)
