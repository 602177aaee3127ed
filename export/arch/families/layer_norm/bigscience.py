"""BigScience: Bloom, which has no rope but a bias of attention that grows with the distance (ALiBi)."""

from __future__ import annotations

from lorafold.export.arch.conditions import TIED, switched_off
from lorafold.export.arch.hyperparameters import u32
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR, fused_attention, linears
from lorafold.export.arch.rules import (
    EMBEDDING,
    LAYER_NORM_EPSILON,
    OUTPUT,
    Architecture,
    TensorRule,
    with_bias,
)

BLOOM = Architecture(
    classes=("BloomForCausalLM", "BloomModel"),
    model_types=("bloom",),
    gguf="bloom",
    tensors=(
        EMBEDDING,
        *with_bias(
            TensorRule("token_embd_norm.weight", "model.word_embeddings_layernorm.weight", ("width",))
        ),
        *(*OUTPUT_NORM_PAIR, OUTPUT, *NORM_PAIRS),
        *fused_attention("self_attention.query_key_value", bias=True),
        *linears("self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", "num_attention_heads"),
        LAYER_NORM_EPSILON,
    ),
    defaults={
        "hidden_size": 64,
        "intermediate_size": lambda config: 4 * config.integer("hidden_size"),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": lambda config: config.integer("hidden_size"),
        "num_attention_heads": 8,
        "num_hidden_layers": 2,
        "vocab_size": 250880,
        TIED: True,
    },
    aliases={
        "hidden_size": "n_embed",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "seq_length",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    spellings=(
        ("transformer.h.", "model.layers."),
        ("h.", "model.layers."),
        ("transformer.word_embeddings.", "model.embed_tokens."),
        ("word_embeddings.", "model.embed_tokens."),
        ("transformer.word_embeddings_layernorm.", "model.word_embeddings_layernorm."),
        ("word_embeddings_layernorm.", "model.word_embeddings_layernorm."),
        ("transformer.ln_f.", "model.norm."),
        ("ln_f.", "model.norm."),
    ),
    required=(switched_off("apply_residual_connection_post_layernorm"),),
)
