"""EleutherAI: GPT-NeoX, and with it Pythia."""

from __future__ import annotations

from gguf import GGUFValueType

from lorafold.export.arch.conditions import PLAIN_HEADS, activation, fixed, plain_rope
from lorafold.export.arch.hyperparameters import Hyperparameter, u32
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR, fused_attention, linears
from lorafold.export.arch.rope import rotary_dim
from lorafold.export.arch.rules import DEFAULTS, EMBEDDING, LAYER_NORM_EPSILON, OUTPUT_ALWAYS, Architecture

GPT_NEOX = Architecture(
    classes=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    gguf="gptneox",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT_ALWAYS, *NORM_PAIRS),
        *fused_attention("attention.query_key_value", bias=True),
        *linears("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("block_count", "num_hidden_layers"),
        u32("feed_forward_length", "intermediate_size"),
        u32("rope.dimension_count", rotary_dim),
        u32("attention.head_count", "num_attention_heads"),
        Hyperparameter("use_parallel_residual", GGUFValueType.BOOL, "use_parallel_residual"),
        LAYER_NORM_EPSILON,
    ),
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": True,
    },
    aliases={"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    spellings=(
        ("gpt_neox.embed_in.", "model.embed_tokens."),
        ("gpt_neox.final_layer_norm.", "model.norm."),
        ("gpt_neox.", "model."),
        ("embed_out.", "lm_head."),
    ),
    required=(
        activation("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        fixed("attention_bias", True),
        PLAIN_HEADS,
        plain_rope(10000.0),
    ),
)
