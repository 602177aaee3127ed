"""Llamas with one difference each, by makers of one model in this table: Bilibili, Hugging Face, Arcee,
ByteDance, LG, Tencent, Baidu, Xiaohongshu.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    array,
    f32,
    head_dim,
    kv_heads,
    text,
    u32,
)
from lorafold.export.arch.rope import llama3_factors, read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    EVEN_HEADS,
    HEAD_NORMS,
    INTERLEAVED_ATTENTION,
    KEY,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    PLAIN_HEADS,
    QUERY,
    SIGMOID,
    SILU,
    TIED,
    UP,
    VALUE,
    VOCABULARY,
    Architecture,
    Condition,
    every_fourth_full,
    expert_rules,
    fixed,
    fused_experts,
    has_experts,
    in_layers,
    is_dense,
    layer,
    layer_kinds,
    rope_kinds,
    shared_expert_rules,
    switched_off,
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


def _exaone_kinds(config: ModelConfig) -> list[str]:
    """EXAONE 4's `layer_types` if the file has none: a period in numbers or letters, or no windows."""
    layers, pattern = config.integer("num_hidden_layers"), config.get("sliding_window_pattern")
    if config.get("sliding_window") is None or not pattern:
        return ["full_attention"] * layers
    if isinstance(pattern, str):
        windows = [pattern[number % len(pattern)] == "L" for number in range(layers)]
    else:
        period = config.integer("sliding_window_pattern")
        windows = [number % period != 0 for number in range(1, layers + 1)]
    return ["sliding_attention" if window else "full_attention" for window in windows]


def _windows(config: ModelConfig) -> list[bool] | None:
    """Which layers have a window, if any is given."""
    if config.get("sliding_window") is None:
        return None
    return [kind == "sliding_attention" for kind in layer_kinds(config)]


def _windows_by_size(config: ModelConfig) -> bool:
    """llama.cpp gives windows to the model of 64 layers, and to no other."""
    if config.integer("num_hidden_layers") != 64:
        return config.get("sliding_window") is None
    return config.get("sliding_window") is not None and layer_kinds(config) == every_fourth_full(config)


EXAONE4 = Architecture(
    classes=("Exaone4ForCausalLM",),
    model_types=("exaone4",),
    gguf="exaone4",
    tensors=(
        *MODEL,
        *ATTENTION,
        *HEAD_NORMS,
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width"),
        *MLP,
    ),
    hyperparameters=COMMON,
    extensions=(
        VOCABULARY,
        u32("attention.sliding_window", "sliding_window"),
        array("attention.sliding_window_pattern", GGUFValueType.BOOL, _windows),
    ),
    generated=llama3_factors,
    defaults=DEFAULTS
    | {
        "layer_types": _exaone_kinds,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    required=(
        SILU,
        PLAIN_HEADS,
        EVEN_HEADS,
        Condition(
            "sliding_window",
            _windows_by_size,
            "a window in three of four layers if num_hidden_layers is 64, and none otherwise: llama.cpp "
            "computes no other here",
        ),
        *rope_kinds("llama3"),
    ),
    caveats=LIMITS[1:],
)


def _is_stretched(config: ModelConfig) -> bool:
    """Whether HunYuan's frequencies are stretched by `alpha`."""
    return read_rope(config).kind == "dynamic"


def _hunyuan_theta(config: ModelConfig) -> float | None:
    """HunYuan's base frequency, stretched by `alpha`: base * alpha^(d / (d - 2)) for heads of width d."""
    rope, width = read_rope(config).full, head_dim(config)
    theta = rope.get("rope_theta")
    if theta is None or not _is_stretched(config):
        return theta
    return float(theta * rope.get("alpha", 50) ** (width / (width - 2)))


def _if_stretched(value: Any) -> Any:
    return lambda config: value if _is_stretched(config) else None


# What the maker says of models with `alpha`, whose config.json gives a smaller number.
_HUNYUAN_CONTEXT = 256 * 1024

HUNYUAN_DENSE = Architecture(
    classes=("HunYuanDenseV1ForCausalLM",),
    model_types=("hunyuan_v1_dense",),
    gguf="hunyuan-dense",
    tensors=(
        *MODEL,
        *NORMS,
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.query_layernorm.weight", "head_dim"),
        layer("attn_k_norm.weight", "self_attn.key_layernorm.weight", "head_dim"),
        *MLP,
    ),
    hyperparameters=COMMON,
    extensions=(
        f32("rope.freq_base", _hunyuan_theta),
        text("rope.scaling.type", _if_stretched("none")),
        f32("rope.scaling.factor", _if_stretched(1.0)),
        u32("rope.scaling.original_context_length", _if_stretched(_HUNYUAN_CONTEXT)),
        u32("context_length", _if_stretched(_HUNYUAN_CONTEXT)),
    ),
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
    required=(
        SILU,
        switched_off("attention_bias"),
        *rope_kinds(),
        Condition(
            "rope_scaling",
            lambda config: not _is_stretched(config) or bool(read_rope(config).full.get("alpha")),
            "an `alpha` beside rope_type 'dynamic': llama.cpp computes no other here",
        ),
    ),
    caveats=LIMITS[:1],
)

ERNIE45 = Architecture(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    model_types=("ernie4_5",),
    gguf="ernie4_5",
    tensors=(*MODEL, *NORMS, *ATTENTION, *MLP),
    hyperparameters=COMMON,
    defaults=DEFAULTS
    | {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        TIED: True,
    },
    required=(SILU, switched_off("use_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)


def _ernie_dense(config: ModelConfig, layer: int) -> bool:
    """Whether a layer lies before the first one with experts."""
    return layer < config.integer("moe_layer_start_index", least=0)


def _ernie_experts(config: ModelConfig, layer: int) -> bool:
    return not _ernie_dense(config, layer)


def _shared_width(count: str) -> Any:
    """The shared expert's width: as many experts' widths as `count` says."""
    return lambda config: config.integer("moe_intermediate_size") * (config.get(count) or 0)


def _to_the_last(config: ModelConfig) -> bool:
    """Whether ERNIE's experts go on to the last layer."""
    return config.get("moe_layer_end_index") in (None, -1, config.integer("num_hidden_layers") - 1)


ERNIE45_MOE = replace(
    ERNIE45,
    classes=("Ernie4_5_MoeForCausalLM",),
    model_types=("ernie4_5_moe",),
    gguf="ernie4_5-moe",
    tensors=(
        *MODEL,
        *NORMS,
        *ATTENTION,
        *in_layers(_ernie_dense, *MLP),
        *in_layers(
            _ernie_experts,
            layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"),
            layer(
                "exp_probs_b.bias",
                "mlp.moe_statics.e_score_correction_bias",
                *("one", "experts"),
            ),
            *shared_expert_rules("mlp.shared_experts"),
        ),
    ),
    variants=(
        in_layers(
            _ernie_experts,
            *expert_rules(
                *("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "gate up down")
            ),
        ),
    ),
    hyperparameters=tuple(entry for entry in COMMON if not entry.key.startswith("expert_")),
    extensions=(
        u32("expert_count", "num_experts"),
        u32("expert_used_count", "num_experts_per_tok"),
        u32("interleave_moe_layer_step", "moe_layer_interval"),
        u32("leading_dense_block_count", "moe_layer_start_index"),
        u32("expert_feed_forward_length", "moe_intermediate_size"),
        u32("expert_shared_count", "moe_num_shared_experts"),
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1536,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 2,
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "shared_expert_intermediate_size": _shared_width("moe_num_shared_experts"),
        TIED: True,
    },
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    skipped=(
        (
            r"^model\.mtp_(block|emb_norm|hidden_norm|linear_proj)\.",
            "predicts further tokens, which llama.cpp leaves out here",
        ),
    ),
    required=(
        *ERNIE45.required,
        fixed("moe_layer_interval", 1),
        Condition(
            "moe_layer_end_index",
            _to_the_last,
            "the last layer: llama.cpp has experts in every layer from the first one with experts on",
        ),
    ),
)

DOTS1 = Architecture(
    classes=("Dots1ForCausalLM",),
    model_types=("dots1",),
    gguf="dots1",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"),
            layer("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", "experts"),
            *shared_expert_rules("mlp.shared_experts"),
        ),
    ),
    variants=(
        in_layers(
            has_experts,
            *expert_rules(
                *("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "down gate up")
            ),
        ),
        in_layers(has_experts, *fused_experts("expert_ff")),
    ),
    hyperparameters=(
        *(entry for entry in COMMON if entry.key not in ("attention.key_length", "attention.value_length")),
        u32("expert_group_count", "n_group"),
        u32("expert_group_used_count", "topk_group"),
        u32("expert_gating_func", lambda _: SIGMOID),
        *(entry for entry in COMMON if entry.key in ("attention.key_length", "attention.value_length")),
    ),
    extensions=(
        u32("expert_feed_forward_length", "moe_intermediate_size"),
        u32("leading_dense_block_count", "first_k_dense_replace"),
        u32("expert_shared_count", "n_shared_experts"),
        f32("expert_weights_scale", "routed_scaling_factor"),
        Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, "norm_topk_prob"),
    ),
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "norm_topk_prob": False,
        "num_key_value_heads": 32,
        "routed_scaling_factor": 1.0,
        "shared_expert_intermediate_size": _shared_width("n_shared_experts"),
        "topk_group": 1,
    },
    aliases={"num_experts": "n_routed_experts"},
    required=(
        SILU,
        switched_off("attention_bias"),
        fixed("n_group", 1),
        Condition(
            "num_key_value_heads",
            lambda config: kv_heads(config) == config.integer("num_attention_heads"),
            "num_attention_heads: llama.cpp loads no other here",
        ),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS[1:],
)

LLAMA_LIKE_ROWS = (INDEX, SMOLLM3, ARCEE, SEED_OSS, EXAONE4, HUNYUAN_DENSE, ERNIE45, ERNIE45_MOE, DOTS1)
