"""LG: EXAONE 4, 4.5 and, with experts, K-EXAONE."""

from __future__ import annotations

from dataclasses import replace

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    PLAIN_HEADS,
    SILU,
    Condition,
    fixed,
    rope_kinds,
)
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    array,
    text,
    u32,
)
from lorafold.export.arch.rope import llama3_factors
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    DENSE_BLOCKS,
    DENSE_FIRST,
    EMBEDDING,
    EXPERT_GROUPS,
    EXPERT_SCALE,
    EXPERT_WIDTH,
    EXPERTS_NORMED,
    GATED_BY_SIGMOID,
    HEAD,
    HEAD_NORMS,
    MLP,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    ROUTER,
    SHARED,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    Architecture,
    dense_first,
    every_fourth_full,
    expert_variants,
    has_experts,
    in_layers,
    is_dense,
    layer,
    layer_kinds,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS


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
        WINDOW,
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

EXAONE45 = replace(
    EXAONE4,
    classes=("Exaone4_5_ForConditionalGeneration",),
    model_types=("exaone4_5_text", "exaone4_5"),
    spellings=SPELLINGS,
    skipped=(*TOWERS, (r"^mtp\.", "predicts further tokens, which are left out here")),
)

_ROUTER_BIAS = layer("exp_probs_b.bias", "mlp.e_score_correction_bias", "experts")

K_EXAONE = replace(
    EXAONE4,
    classes=("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
    model_types=("exaone_moe",),
    gguf="exaone-moe",
    tensors=(
        *(EMBEDDING, OUTPUT_NORM, OUTPUT_ALWAYS, *NORMS, *ATTENTION, *HEAD_NORMS),
        *in_layers(is_dense, *MLP),
        *in_layers(has_experts, ROUTER, _ROUTER_BIAS, *SHARED),
    ),
    variants=expert_variants(has_experts),
    hyperparameters=(
        *COMMON[: -len(HEAD)],
        *EXPERT_GROUPS,
        GATED_BY_SIGMOID,
        *HEAD,
    ),
    extensions=(
        *(VOCABULARY, WINDOW, WINDOW_PATTERN),
        EXPERT_WIDTH,
        u32("expert_shared_count", "num_shared_experts"),
        u32("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        EXPERT_SCALE,
        EXPERTS_NORMED,
        DENSE_BLOCKS,
        u32("nextn_predict_layers", lambda _: 0),
        text("rope.scaling.type", lambda _: "none"),
    ),
    skipped=((r"^mtp\.", "predicts further tokens, which are left out here"),),
    defaults=EXAONE4.defaults
    | {
        "first_k_dense_replace": dense_first(),
        "moe_intermediate_size": 1024,
        "n_group": 1,
        "norm_topk_prob": True,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "shared_expert_intermediate_size": lambda config: (
            config.integer("moe_intermediate_size") * config.integer("num_shared_experts")
        ),
        "topk_group": 1,
    },
    required=(
        SILU,
        EVEN_HEADS,
        DENSE_FIRST,
        fixed("n_group", 1),
        Condition(
            "sliding_window",
            lambda config: config.get("sliding_window") is not None,
            "a number: llama.cpp has no model without it",
        ),
        *rope_kinds(),
    ),
)

LG_ROWS = (EXAONE4, EXAONE45, K_EXAONE)
