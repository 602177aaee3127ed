"""Microsoft: Phi 2, 3, 4, and Phi 3.5 MoE."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.conditions import (
    LIMITS,
    PLAIN_HEADS,
    SILU,
    Condition,
    activation,
    fixed,
    plain_rope,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import ModelConfig, f32, kv_heads, u32
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR
from lorafold.export.arch.rope import (
    FREQUENCY_BASE,
    longrope_attention_factor,
    longrope_factors,
    read_rope,
)
from lorafold.export.arch.rules import (
    ATTENTION,
    ATTENTION_OUTPUT,
    DEFAULTS,
    DOWN,
    EMBEDDING,
    EXPERTS,
    GATE_UP,
    KEY,
    LAYER_NORM_EPSILON,
    MODEL,
    NORMS,
    OUTPUT_ALWAYS,
    QUERY,
    RMS_EPSILON,
    VALUE,
    Architecture,
    TensorRule,
    expert_rules,
    fused_experts,
    layer,
    with_bias,
)


def _phi_rotated(config: ModelConfig) -> int:
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
    # llama.cpp tells Phi-4 from Phi-3 by a window of zero.
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


_DENSE = layer("attn_output.weight", "self_attn.dense.weight", "width", "query")
_FC1 = layer("ffn_up.weight", "mlp.fc1.weight", "ff", "width")
_FC2 = layer("ffn_down.weight", "mlp.fc2.weight", "width", "ff")
_LAST_NORM = TensorRule("output_norm.weight", "model.final_layernorm.weight", ("width",))

PHI2 = Architecture(
    classes=("PhiForCausalLM",),
    model_types=("phi",),
    gguf="phi2",
    tensors=(
        *(EMBEDDING, *with_bias(_LAST_NORM), *with_bias(replace(OUTPUT_ALWAYS, unless=None, instead=None))),
        *with_bias(NORMS[0]),
        *(part for linear in (QUERY, KEY, VALUE, _DENSE, _FC1, _FC2) for part in with_bias(linear)),
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", kv_heads),
        LAYER_NORM_EPSILON,
        u32("rope.dimension_count", _phi_rotated),
    ),
    defaults=DEFAULTS
    | {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
    },
    required=(
        activation("gelu_new", "gelu_pytorch_tanh"),
        PLAIN_HEADS,
        plain_rope(10000.0),
        switched_off("qk_layernorm"),
    ),
)


def _always(field: str, text: str) -> Condition:
    return Condition(field, lambda config: False, text)


PHI_MOE = replace(
    PHI3,
    classes=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    model_types=("phimoe",),
    gguf="phimoe",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, *with_bias(OUTPUT_ALWAYS), *NORM_PAIRS),
        *(part for linear in ATTENTION for part in with_bias(linear)),
    ),
    variants=(
        (
            layer("ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "experts", "width"),
            *expert_rules("block_sparse_moe.experts.{expert}", "w2", "w1", "w3", "ff", "gate down up"),
        ),
        (
            layer("ffn_gate_inp.weight", "mlp.router.weight", "experts", "width"),
            *fused_experts("ff"),
        ),
    ),
    extensions=(*PHI3.extensions, *reversed(EXPERTS)),
    defaults=PHI3.defaults
    | {
        "attention_bias": True,
        "lm_head_bias": True,
        "max_position_embeddings": 131072,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(*PHI3.required, fixed("attention_bias", True), fixed("lm_head_bias", True)),
    caveats=(
        *LIMITS,
        _always("rms_norm_eps", "no LayerNorm: llama.cpp normalises here without subtracting the mean"),
        _always(
            "num_local_experts",
            "plain routing: llama.cpp weighs the chosen experts by their scores alone",
        ),
    ),
)

PHI_ROWS = (PHI2, PHI3, PHI_MOE)
