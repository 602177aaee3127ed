"""TII: Falcon 7B to 180B and Falcon 2, whose attention and MLP see the same normalised input, and Falcon H1.

In every layer of Falcon H1 Mamba 2 and attention stand side by side. Its linear layers are multiplied by
constants of the config, which llama.cpp expects in the weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    LIMITS,
    PLAIN_HEADS,
    SILU,
    TIED,
    Condition,
    activation,
    fixed,
    plain_rope,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, is_finite, kv_heads, u32
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR, fused_attention, linears
from lorafold.export.arch.mamba import ENDLESS_CONTEXT, MAMBA_HEADER, mamba_rules, mamba_sizes
from lorafold.export.arch.rope import FREQUENCY_BASE
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    GATE,
    HEAD,
    KEY,
    LAYER_NORM_EPSILON,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    QUERY,
    RMS_EPSILON,
    UP,
    VALUE,
    VOCABULARY,
    Architecture,
    Sizes,
    TensorRule,
    layer,
    respelled,
)


def _kv_heads(config: ModelConfig) -> int:
    """Key-value heads: one unless the decoder is the new one, which gives a number."""
    if not config.flag("new_decoder_architecture"):
        return 1 if config.flag("multi_query") else config.integer("num_attention_heads")
    for field in ("num_kv_heads", "n_head_kv"):
        if config.get(field) is not None:
            return config.integer(field)
    return config.integer("num_attention_heads")


def _two_norms(config: ModelConfig) -> bool:
    """Whether attention has a norm of its own."""
    if not config.flag("new_decoder_architecture"):
        return False
    return config.get("num_ln_in_parallel_attn") in (None, 2)


def _norms(attention: str, mlp: str) -> tuple[TensorRule, ...]:
    """llama.cpp's first norm is the MLP's, its second one attention's if that differs."""
    first = NORM_PAIRS[:2]
    return (
        *(
            replace(rule, source=rule.source.replace("input_layernorm", mlp), when="two_norms")
            for rule in first
        ),
        *(
            replace(
                rule,
                name=rule.name.replace("attn_norm", "attn_norm_2"),
                source=rule.source.replace("input_layernorm", attention),
                when="two_norms",
            )
            for rule in first
        ),
        *(replace(rule, when="not two_norms") for rule in first),
    )


FALCON = Architecture(
    classes=("FalconForCausalLM", "RWForCausalLM"),
    model_types=("falcon", "RefinedWeb", "RefinedWebModel"),
    gguf="falcon",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT, *_norms("ln_attn", "ln_mlp")),
        *fused_attention("self_attention.query_key_value", bias=False),
        *linears("self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=False),
    ),
    hyperparameters=(
        u32("context_length", lambda _: 2048),  # the converter's, for files that give none
        Hyperparameter("tensor_data_layout", GGUFValueType.STRING, lambda _: "jploski"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", "num_key_value_heads"),
        LAYER_NORM_EPSILON,
    ),
    defaults=DEFAULTS
    | {
        "activation": "gelu",
        "intermediate_size": lambda config: 4 * config.integer("hidden_size"),
        "layer_norm_eps": 1e-5,
        "multi_query": True,
        "num_key_value_heads": _kv_heads,
        "parallel_attn": True,
        "two_norms": _two_norms,
        TIED: True,
    },
    aliases={
        "intermediate_size": "ffn_hidden_size",
        "layer_norm_eps": "layer_norm_epsilon",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    spellings=(
        ("transformer.h.", "model.layers."),
        ("transformer.word_embeddings.", "model.embed_tokens."),
        ("transformer.ln_f.", "model.norm."),
    ),
    required=(
        activation("gelu", of="activation"),
        PLAIN_HEADS,
        fixed("parallel_attn", True),
        plain_rope(10000.0),
        switched_off("alibi"),
        switched_off("bias"),
    ),
)


def _times(rule: TensorRule, *fields: str) -> TensorRule:
    """A linear layer that is multiplied by fields of the config; "FIELD.N" is the N-th of a list."""

    def scales(config: ModelConfig) -> list[float]:
        factor = 1.0
        for name in fields:
            factor *= _multiplier(config, name)
        return [factor]

    return replace(rule, scales=scales)


def _multiplier(config: ModelConfig, name: str) -> float:
    """A factor of the config."""
    field, _, number = name.partition(".")
    if not number:
        return config.number(field)
    given = config.get(field)
    if not (isinstance(given, list) and len(given) > int(number) and all(map(is_finite, given))):
        raise config.wrong(field, given, "a list of numbers")
    return float(given[int(number)])


def _in_parts(sizes: Sizes) -> list[tuple[int, int]]:
    """Rows of in_proj that have a factor each: gate, input, B, C, dt."""
    states = (sizes["mamba_channels"] - sizes["mamba_inner"]) // 2
    lengths = (sizes["mamba_inner"], sizes["mamba_inner"], states, states, sizes["mamba_heads"])
    stops = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return list(zip((0, *stops[:-1]), stops, strict=True))


def _in_scales(config: ModelConfig) -> list[float]:
    own = _multiplier(config, "ssm_in_multiplier")
    return [own * _multiplier(config, f"ssm_multipliers.{number}") for number in range(5)]


def _scaled_mamba() -> tuple[TensorRule, ...]:
    """Mamba's rules with Falcon's factors; not every model has a norm in it."""
    rules = {rule.name: rule for rule in mamba_rules("mamba.", lambda config, at: True)}
    entry, norm, out = (f"blk.{{layer}}.ssm_{part}.weight" for part in ("in", "norm", "out"))
    rules[entry] = replace(rules[entry], rows=_in_parts, scales=_in_scales)
    rules[norm] = replace(rules[norm], when="mamba_rms_norm")
    rules[out] = _times(rules[out], "ssm_out_multiplier")
    return tuple(rules.values())


def _mamba_head(config: ModelConfig) -> int:
    """Width of a Mamba head that the config leaves open."""
    return config.integer("mamba_d_ssm") // config.integer("mamba_n_heads")


def _inner(config: ModelConfig) -> int:
    return config.integer("mamba_expand") * config.integer("hidden_size")


def _not_auto(config: ModelConfig) -> Any:
    given = config.raw.get("mamba_d_head")
    return _mamba_head(config) if given in (None, "auto") else given


_ONES: dict[str, Any] = {
    **dict.fromkeys(("embedding_multiplier", "lm_head_multiplier", "key_multiplier"), 1.0),
    **dict.fromkeys(("attention_in_multiplier", "attention_out_multiplier"), 1.0),
    **dict.fromkeys(("ssm_in_multiplier", "ssm_out_multiplier"), 1.0),
    "mlp_multipliers": [1.0] * 2,
    "ssm_multipliers": [1.0] * 5,
}
FALCON_H1 = Architecture(
    classes=("FalconH1ForCausalLM",),
    model_types=("falcon_h1",),
    gguf="falcon-h1",
    tensors=(
        _times(EMBEDDING, "embedding_multiplier"),
        *respelled("model.norm.", "model.final_layernorm.", OUTPUT_NORM),
        # The head has another factor than the embedding, so that they are two tensors even if they are tied.
        _times(OUTPUT_ALWAYS, "lm_head_multiplier"),
        NORMS[0],
        # llama.cpp's name for it has no ending.
        layer("ffn_norm", "pre_ff_layernorm.weight", "width"),
        _times(QUERY, "attention_in_multiplier"),
        _times(KEY, "key_multiplier", "attention_in_multiplier"),
        _times(VALUE, "attention_in_multiplier"),
        _times(ATTENTION_OUTPUT, "attention_out_multiplier"),
        *_scaled_mamba(),
        *respelled(
            "mlp.", "feed_forward.", _times(GATE, "mlp_multipliers.0"), UP, _times(DOWN, "mlp_multipliers.1")
        ),
    ),
    hyperparameters=(
        ENDLESS_CONTEXT,
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("attention.head_count", "num_attention_heads"),
        u32("block_count", "num_hidden_layers"),
        *(
            next(entry for entry in MAMBA_HEADER if entry.key == f"ssm.{name}")
            for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
        ),
        RMS_EPSILON,
    ),
    extensions=(
        VOCABULARY,
        u32("context_length", "max_position_embeddings"),
        u32("attention.head_count_kv", kv_heads),
        *HEAD,
        FREQUENCY_BASE,
    ),
    sizes=lambda config: mamba_sizes(replace(config, raw={**config.raw, "mamba_d_head": _not_auto(config)})),
    defaults=DEFAULTS
    | _ONES
    | {
        "head_dim": lambda config: config.integer("hidden_size") // config.integer("num_attention_heads"),
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_head": _mamba_head,
        "mamba_d_ssm": 1024,
        "mamba_d_state": 256,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "mamba_rms_norm": False,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
    },
    required=(
        SILU,
        *rope_kinds(),
        *(
            switched_off(name)
            for name in ("attention_bias", "mamba_proj_bias", "mlp_bias", "projectors_bias")
        ),
        Condition(
            "mamba_norm_before_gate",
            lambda config: not config.flag("mamba_rms_norm") or config.get("mamba_norm_before_gate") is False,
            "false: llama.cpp multiplies by the gate before it normalises",
        ),
    ),
    caveats=LIMITS,
)

FALCON_ROWS = (FALCON, FALCON_H1)
