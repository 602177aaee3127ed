"""Microsoft: Phi 3 and 4."""

from __future__ import annotations

from lorafold.export.arch.hyperparameters import ModelConfig, f32, kv_heads, u32
from lorafold.export.arch.rope import (
    FREQUENCY_BASE,
    longrope_attention_factor,
    longrope_factors,
    read_rope,
)
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    DEFAULTS,
    DOWN,
    GATE_UP,
    LIMITS,
    MODEL,
    NORMS,
    PLAIN_HEADS,
    RMS_EPSILON,
    SILU,
    Architecture,
    layer,
    rope_kinds,
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

PHI_ROWS = (PHI3,)
