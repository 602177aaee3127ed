"""The table: one row for each Hugging Face architecture that becomes GGUF.

In: nothing. Out: `ARCHITECTURES`. Facts are from transformers' modelling code and config classes (names,
shapes, defaults), and from llama.cpp's loader, graphs and converter (names, header entries, what is fixed in
the graph). A new architecture is a new row; what it shares with others is in `arch_rules`, families of one
maker that need more than a row have a module of their own.
"""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.gemma import GEMMA_ROWS
from lorafold.export.arch.hyperparameters import Config, divided_width, f32, kv_heads, u32
from lorafold.export.arch.layouts import LAYOUT_ROWS
from lorafold.export.arch.qwen import QWEN_ROWS
from lorafold.export.arch.rope import (
    FREQUENCY_BASE,
    llama3_factors,
    longrope_attention_factor,
    longrope_factors,
    read_rope,
    rotary_dim,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    EVEN_HEADS,
    GATE_UP,
    HEAD,
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
    RMS_EPSILON,
    ROTATED,
    SILU,
    TIED,
    VALUE,
    VOCABULARY,
    Architecture,
    Condition,
    expert_rules,
    fused_experts,
    layer,
    rope_kinds,
    switched_off,
    with_bias,
)

# llama.cpp's llama graph rotates adjacent pairs, Hugging Face's halves.
_QUERY = replace(QUERY, op="interleave_rows", group="head_dim")
_KEY = replace(KEY, op="interleave_rows", group="head_dim")
_PLAIN_ATTENTION = (_QUERY, _KEY, VALUE, ATTENTION_OUTPUT)
_BIASED_ATTENTION = (
    *with_bias(_QUERY, "attention_bias", op="interleave_cols"),
    *with_bias(_KEY, "attention_bias", op="interleave_cols"),
    *with_bias(VALUE, "attention_bias"),
    *with_bias(ATTENTION_OUTPUT, "attention_bias"),
)
_BIASED_MLP = tuple(rule for linear in MLP for rule in with_bias(linear, "mlp_bias"))


LLAMA = Architecture(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    gguf="llama",
    tensors=(*MODEL, *NORMS, *_BIASED_ATTENTION, *_BIASED_MLP),
    hyperparameters=COMMON,
    extensions=(VOCABULARY, ROTATED),
    generated=llama3_factors,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "head_dim": divided_width},
    required=(SILU, EVEN_HEADS, *rope_kinds("linear", "yarn", "llama3")),
    caveats=LIMITS,
)

MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    model_types=("mistral",),
    tensors=(*MODEL, *NORMS, *_PLAIN_ATTENTION, *MLP),
    defaults=LLAMA.defaults
    | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
)

_ROUTER = layer("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "experts", "width")
MIXTRAL = replace(
    MISTRAL,
    classes=("MixtralForCausalLM",),
    model_types=("mixtral",),
    tensors=(*MODEL, *NORMS, *_PLAIN_ATTENTION),
    variants=(
        (_ROUTER, *expert_rules("block_sparse_moe.experts.{expert}", "w2", "w1", "w3", "ff", "gate down up")),
        (layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width"), *fused_experts("ff")),
    ),
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    aliases={"num_experts": "num_local_experts"},
)


def _every_fourth_unrotated(config: Config) -> bool:
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
    tensors=(*MODEL, *NORMS, *_PLAIN_ATTENTION, *MLP),
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


def _index_theta(config: Config) -> float:
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
        *_PLAIN_ATTENTION,
        *MLP,
    ),
    defaults=LLAMA.defaults | {"rope_theta": _index_theta},
)


def _phi_rotated(config: Config) -> int:
    """Rotated columns of a head."""
    factor = float(read_rope(config).full.get("partial_rotary_factor") or 1.0)
    return int(factor * config.integer("hidden_size")) // config.integer("num_attention_heads")


PHI3 = Architecture(
    classes=("Phi3ForCausalLM",),
    model_types=("phi3",),
    gguf="phi3",
    tensors=(
        *MODEL,
        *NORMS,
        layer("attn_qkv.weight", "self_attn.qkv_proj.weight", "qkv", "width"),
        ATTENTION_OUTPUT,
        GATE_UP,
        DOWN,
    ),
    first=(f32("rope.scaling.attn_factor", longrope_attention_factor),),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32(
            "rope.scaling.original_context_length",
            lambda config: read_rope(config).full.get("original_max_position_embeddings"),
        ),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", kv_heads),
        RMS_EPSILON,
        u32("rope.dimension_count", _phi_rotated),
        FREQUENCY_BASE,
    ),
    # Phi-4 is told from Phi-3 by a window of zero.
    extensions=(u32("attention.sliding_window", lambda config: config.get("sliding_window") or 0),),
    generated=longrope_factors,
    defaults=DEFAULTS
    | {
        "max_position_embeddings": 4096,
        "num_key_value_heads": None,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    required=(SILU, PLAIN_HEADS, *rope_kinds("longrope", "su", partial=True)),
    caveats=LIMITS,
)

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

GRANITE = replace(
    LLAMA,
    classes=("GraniteForCausalLM",),
    model_types=("granite",),
    gguf="granite",
    hyperparameters=COMMON[: -len(HEAD)],
    extensions=(
        VOCABULARY,
        ROTATED,
        f32("attention.scale", "attention_multiplier"),
        f32("embedding_scale", "embedding_multiplier"),
        f32("residual_scale", "residual_multiplier"),
        f32("logit_scale", "logits_scaling"),
    ),
    defaults=DEFAULTS
    | {
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "max_position_embeddings": 2048,
        "residual_multiplier": 1.0,
    },
    required=(*LLAMA.required, PLAIN_HEADS),
)

OLMO2 = Architecture(
    classes=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    gguf="olmo2",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        *ATTENTION,
        layer("attn_q_norm.weight", "self_attn.q_norm.weight", "query"),
        layer("attn_k_norm.weight", "self_attn.k_norm.weight", "key"),
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        layer("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "width"),
        *MLP,
    ),
    hyperparameters=COMMON,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    required=(SILU, PLAIN_HEADS, switched_off("attention_bias"), *rope_kinds("linear", "yarn")),
    caveats=LIMITS,
)

ARCHITECTURES = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    SMOLLM3,
    INDEX,
    *QWEN_ROWS,
    PHI3,
    GLM4,
    GRANITE,
    OLMO2,
    *GEMMA_ROWS,
    *LAYOUT_ROWS,
)
