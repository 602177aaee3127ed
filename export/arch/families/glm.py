"""Zhipu: GLM 4, with eyes too, GLM 4.5 to 4.6 with experts, and GLM-4.7-Flash, built like DeepSeek V3;
Upstage's Solar Open, which is a GLM 4.5.

Those that see rotate halves of a head's pairs in time, height and width (M-RoPE). llama.cpp does that for
pairs half a head apart, the model for neighbours, so that the rows of queries and keys are reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lorafold.export.arch.conditions import LIMITS, PLAIN_HEADS, SILU, fixed, rope_kinds
from lorafold.export.arch.families.deepseek import (
    DEEPSEEK3,
    LATENT_EXTENSIONS,
    LATENT_HEADER,
    latent_attention,
)
from lorafold.export.arch.hyperparameters import (
    ModelConfig,
    kv_heads,
    u32,
)
from lorafold.export.arch.rope import (
    FREQUENCY_BASE,
    read_rope,
    rotary_dim,
)
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DENSE_BLOCKS,
    DENSE_FIRST,
    DOWN,
    EXPERT_GROUPS,
    EXPERT_SCALE,
    EXPERT_WIDTH,
    EXPERTS_NORMED,
    GATE_UP,
    GATED_BY_SIGMOID,
    HEAD,
    HEAD_NORMS,
    KEY,
    MLP,
    MODEL,
    NORMS,
    PREDICTION,
    QUERY,
    RMS_EPSILON,
    ROUTER,
    ROUTER_BIAS,
    SHARED,
    VALUE,
    Architecture,
    Sizes,
    TensorRule,
    dense_first,
    everywhere,
    expert_variants,
    has_experts,
    in_layers,
    is_dense,
    layer,
    predicts_further,
    with_bias,
)
from lorafold.export.arch.wrappers import SPELLINGS, TOWERS
from lorafold.export.gguf.parts import ColumnRange

GLM4 = Architecture(
    classes=("Glm4ForCausalLM",),
    model_types=("glm4",),
    gguf="glm4",
    tensors=(
        *MODEL,
        *NORMS,
        layer("post_attention_norm.weight", "post_self_attn_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_mlp_layernorm.weight", "width"),
        *with_bias(QUERY, "attention_bias"),
        *with_bias(KEY, "attention_bias"),
        *with_bias(VALUE, "attention_bias"),
        ATTENTION_OUTPUT,
        GATE_UP,
        DOWN,
    ),
    hyperparameters=COMMON,
    extensions=(u32("rope.dimension_count", rotary_dim),),
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-07,
    },
    required=(SILU, *rope_kinds("linear", "yarn", partial=True)),
    caveats=LIMITS,
)


GLM = replace(
    GLM4,
    classes=("GlmForCausalLM",),
    model_types=("glm",),
    gguf="chatglm",
    tensors=tuple(
        rule
        for rule in GLM4.tensors
        if not rule.name.endswith(("post_attention_norm.weight", "post_ffw_norm.weight"))
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", kv_heads),
        RMS_EPSILON,
    ),
    extensions=(u32("rope.dimension_count", rotary_dim), FREQUENCY_BASE),
    required=(SILU, PLAIN_HEADS, *rope_kinds(partial=True)),
)


def _sectioned_sizes(config: ModelConfig) -> dict[str, int]:
    """What reordering needs to know: rotated columns of a head, and whether positions have three parts."""
    return {
        "rotated": rotary_dim(config),
        "sectioned": int(bool(read_rope(config).full.get("mrope_section"))),
    }


def _neighbours_apart(heads: str) -> Callable[[Sizes], list[tuple[int, int]]]:
    """Rows of each head: the rotated ones with an even number, those with an odd one, those not rotated."""

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        size, rotated = sizes["head_dim"], sizes["rotated"]
        if not sizes["sectioned"]:
            return [(0, sizes[heads] * size)]
        inside = [(row, row + 1) for first in (0, 1) for row in range(first, rotated, 2)]
        inside += [(rotated, size)] if rotated < size else []
        starts = range(0, sizes[heads] * size, size)
        return [(at + first, at + last) for at in starts for first, last in inside]

    return rows


def _reordered(rule: TensorRule, heads: str) -> tuple[TensorRule, TensorRule]:
    """Queries or keys and their bias, reordered."""
    rows = _neighbours_apart(heads)

    def columns(sizes: Sizes) -> list[ColumnRange]:
        return [(start, stop, 1) for start, stop in rows(sizes)]

    weight, bias = with_bias(rule, "attention_bias")
    return replace(weight, rows=rows), replace(bias, columns=columns)


_SECTIONED_ATTENTION = (
    *_reordered(QUERY, "heads"),
    *_reordered(KEY, "kv_heads"),
    *with_bias(VALUE, "attention_bias"),
)
_QUERY_TO_VALUE = tuple(rule.name for rule in _SECTIONED_ATTENTION)


def _shared_width(config: ModelConfig) -> int:
    """The width of the expert that sees every token."""
    return config.integer("moe_intermediate_size") * config.integer("n_shared_experts", least=0)


# Some files hold the embedding and the head once more for the layers that predict further tokens.
_SHARED = "nextn_head_is_shared"
_GLM_PREDICTION = (
    *PREDICTION,
    *in_layers(
        predicts_further,
        layer("nextn.embed_tokens.weight", "embed_tokens.weight", "vocab", "width", unless=_SHARED),
        layer("nextn.shared_head_head.weight", "shared_head.head.weight", "vocab", "width", unless=_SHARED),
    ),
)


GLM4_MOE = Architecture(
    classes=("Glm4MoeForCausalLM",),
    model_types=("glm4_moe",),
    gguf="glm4moe",
    tensors=(
        *MODEL,
        *in_layers(
            everywhere,
            NORMS[0],
            replace(NORMS[1], name="blk.{layer}.post_attention_norm.weight"),
            *with_bias(QUERY, "attention_bias"),
            *with_bias(KEY, "attention_bias"),
            *with_bias(VALUE, "attention_bias"),
            ATTENTION_OUTPUT,
            *(replace(norm, when="use_qk_norm") for norm in HEAD_NORMS),
        ),
        *in_layers(is_dense, *MLP),
        *in_layers(
            has_experts,
            *(ROUTER, ROUTER_BIAS, *SHARED),
        ),
        *_GLM_PREDICTION,
    ),
    variants=expert_variants(has_experts),
    hyperparameters=(
        *COMMON[: -len(HEAD)],
        *EXPERT_GROUPS,
        *HEAD,
    ),
    extensions=(
        u32("rope.dimension_count", rotary_dim),
        EXPERT_WIDTH,
        u32("expert_shared_count", "n_shared_experts"),
        DENSE_BLOCKS,
        GATED_BY_SIGMOID,
        EXPERT_SCALE,
        EXPERTS_NORMED,
        u32("nextn_predict_layers", lambda config: config.further_layers),
    ),
    defaults=DEFAULTS
    | {
        _SHARED: True,
        "attention_bias": False,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.0,
        "shared_expert_intermediate_size": _shared_width,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    aliases={"num_experts": "n_routed_experts"},
    further="kept",
    required=(SILU, fixed("n_group", 1), *rope_kinds("linear", "yarn", partial=True)),
    caveats=LIMITS,
)


GLM4_VISION = replace(
    GLM4,
    classes=("Glm4vForConditionalGeneration", "GlmOcrForConditionalGeneration"),
    model_types=("glm4v_text", "glm4v", "glm_ocr_text", "glm_ocr"),
    tensors=(
        *(rule for rule in GLM4.tensors if rule.name not in _QUERY_TO_VALUE),
        *_SECTIONED_ATTENTION,
    ),
    defaults=GLM4.defaults
    | {
        "attention_bias": lambda config: not str(config.get("model_type")).startswith("glm_ocr"),
        "head_dim": None,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5,
    },
    further="left out",
    required=(SILU, *rope_kinds(partial=True)),
    sizes=_sectioned_sizes,
    spellings=SPELLINGS,
    skipped=TOWERS,
)

GLM4_MOE_VISION = replace(
    GLM4_MOE,
    classes=("Glm4vMoeForConditionalGeneration",),
    model_types=("glm4v_moe_text", "glm4v_moe"),
    defaults=GLM4_MOE.defaults | {"attention_bias": True, "head_dim": None, "max_position_embeddings": 65536},
    spellings=SPELLINGS,
    skipped=TOWERS,
)

SOLAR_OPEN = replace(
    GLM4_MOE,
    classes=("SolarOpenForCausalLM",),
    model_types=("solar_open",),
    defaults=GLM4_MOE.defaults
    | {
        "first_k_dense_replace": 0,
        "head_dim": 128,
        "moe_intermediate_size": 1280,
        "partial_rotary_factor": 1.0,
        "rope_theta": 1000000.0,
    },
    further="left out",
)


GLM4_FLASH = replace(
    DEEPSEEK3,
    classes=("Glm4MoeLiteForCausalLM",),
    model_types=("glm4_moe_lite",),
    tensors=(
        *MODEL,
        *in_layers(everywhere, *NORMS),
        *latent_attention(everywhere),
        *in_layers(is_dense, *MLP),
        *in_layers(has_experts, ROUTER, ROUTER_BIAS, *SHARED),
        *_GLM_PREDICTION,
    ),
    hyperparameters=LATENT_HEADER,
    extensions=(
        *LATENT_EXTENSIONS,
        u32("nextn_predict_layers", lambda config: config.further_layers or None),
    ),
    further="kept",
    defaults=DEEPSEEK3.defaults
    | {
        "first_k_dense_replace": dense_first(),
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "num_experts": 64,
        "num_experts_per_tok": 4,
        _SHARED: True,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    required=(
        *DEEPSEEK3.required,
        DENSE_FIRST,
    ),
)

GLM_ROWS = (GLM, GLM4, GLM4_VISION, GLM4_MOE, GLM4_MOE_VISION, GLM4_FLASH, SOLAR_OPEN)
