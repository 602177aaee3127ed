"""Qwen 2 and 3, and those that see or hear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorafold.export.arch.conditions import LIMITS, PLAIN_HEADS, SILU, Condition, rope_kinds, switched_off
from lorafold.export.arch.hyperparameters import ModelConfig, is_whole, u32
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    HEAD_NORMS,
    KEY,
    MLP,
    MODEL,
    NORMS,
    QUERY,
    VALUE,
    Architecture,
    with_bias,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS

QWEN2 = Architecture(
    classes=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf="qwen2",
    tensors=(*MODEL, *NORMS, *with_bias(QUERY), *with_bias(KEY), *with_bias(VALUE), ATTENTION_OUTPUT, *MLP),
    hyperparameters=COMMON,
    defaults=DEFAULTS
    | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False},
    required=(SILU, PLAIN_HEADS, *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)

QWEN3 = replace(
    QWEN2,
    classes=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    gguf="qwen3",
    tensors=(*MODEL, *NORMS, *ATTENTION, *HEAD_NORMS, *MLP),
    defaults=QWEN2.defaults | {"head_dim": 128},
    required=(SILU, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
)


def _has_sections(config: ModelConfig) -> bool:
    """Whether the pairs of a head are shared out among time, height and width."""
    given = read_rope(config).full.get("mrope_section")
    return isinstance(given, list) and len(given) <= 4 and all(map(is_whole, given))


SECTIONED = Condition(
    "rope_scaling.mrope_section",
    _has_sections,
    "how many pairs turn with time, height and width: llama.cpp has no model without them",
)

QWEN2_VL = replace(
    QWEN2,
    classes=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    model_types=("qwen2_vl_text", "qwen2_vl", "qwen2_5_vl_text", "qwen2_5_vl"),
    gguf="qwen2vl",
    defaults=QWEN2.defaults | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(SILU, PLAIN_HEADS, *rope_kinds(), SECTIONED),
    caveats=(
        *LIMITS,
        Condition(
            "rms_norm_eps",
            lambda config: config.number("rms_norm_eps") < 1e-8,
            "0: llama.cpp does not read it here; the numbers of a trained model are far above it",
        ),
    ),
)


def deep_layers(config: ModelConfig) -> int:
    """How many of the first layers get an image's features once more."""
    vision = config.get("vision_config")
    indexes = vision.get("deepstack_visual_indexes") if isinstance(vision, Mapping) else None
    return len(indexes) if isinstance(indexes, list) else 0


QWEN3_VL = replace(
    QWEN3,
    classes=("Qwen3VLForConditionalGeneration",),
    model_types=("qwen3_vl_text", "qwen3_vl"),
    gguf="qwen3vl",
    extensions=(u32("n_deepstack_layers", deep_layers),),
    defaults=QWEN3.defaults | {"max_position_embeddings": 128000, "rope_theta": 500000.0},
    spellings=SPELLINGS,
    skipped=TOWERS,
    required=(SILU, switched_off("attention_bias"), *rope_kinds(), SECTIONED),
)


QWEN3_ASR = replace(
    QWEN3_VL,
    classes=("Qwen3ASRForConditionalGeneration",),
    model_types=("qwen3_asr_text", "qwen3_asr"),
    extensions=(u32("n_deepstack_layers", lambda _: 0),),
)
