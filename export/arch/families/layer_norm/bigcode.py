"""BigCode: StarCoder 1 and 2."""

from __future__ import annotations

from lorafold.export.arch.conditions import LIMITS, PLAIN_HEADS, TIED, activation, fixed, rope_kinds
from lorafold.export.arch.hyperparameters import divided_width, u32
from lorafold.export.arch.layer_norms import NORM_PAIRS, OUTPUT_NORM_PAIR
from lorafold.export.arch.rules import (
    ATTENTION,
    EMBEDDING,
    LAYER_NORM_COMMON,
    LAYER_NORM_EPSILON,
    OUTPUT,
    Architecture,
    TensorRule,
    layer,
    with_bias,
)

_FC = layer("ffn_up.weight", "mlp.c_fc.weight", "ff", "width")
_PROJ = layer("ffn_down.weight", "mlp.c_proj.weight", "width", "ff")

STARCODER2 = Architecture(
    classes=("Starcoder2ForCausalLM",),
    model_types=("starcoder2",),
    gguf="starcoder2",
    tensors=(
        *(EMBEDDING, *OUTPUT_NORM_PAIR, OUTPUT, *NORM_PAIRS),
        *(part for linear in (*ATTENTION, _FC, _PROJ) for part in with_bias(linear)),
    ),
    hyperparameters=LAYER_NORM_COMMON,
    defaults={
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "use_bias": True,
        TIED: True,
    },
    aliases={"layer_norm_eps": "norm_epsilon"},
    required=(
        activation("gelu_pytorch_tanh"),
        PLAIN_HEADS,
        fixed("use_bias", True),
        *rope_kinds("linear", "yarn"),
    ),
    caveats=LIMITS,
)


def _block(name: str, source: str, *shape: str) -> tuple[TensorRule, ...]:
    return with_bias(layer(f"{name}.weight", f"{source}.weight", *shape))


GPT_BIGCODE = Architecture(
    classes=("GPTBigCodeForCausalLM",),
    model_types=("gpt_bigcode",),
    gguf="starcoder",
    tensors=(
        EMBEDDING,
        TensorRule("position_embd.weight", "model.wpe.weight", ("positions", "width")),
        *(*OUTPUT_NORM_PAIR, OUTPUT),
        *_block("attn_norm", "ln_1", "width"),
        *_block("ffn_norm", "ln_2", "width"),
        *_block("attn_qkv", "attn.c_attn", "qkv", "width"),
        *_block("attn_output", "attn.c_proj", "width", "width"),
        *_block("ffn_up", "mlp.c_fc", "ff", "width"),
        *_block("ffn_down", "mlp.c_proj", "width", "ff"),
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("block_count", "num_hidden_layers"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", lambda _: 1),
        LAYER_NORM_EPSILON,
    ),
    sizes=lambda config: {"qkv": config.integer("hidden_size") + 2 * divided_width(config)},
    defaults={
        "activation_function": "gelu_pytorch_tanh",
        "intermediate_size": lambda config: 4 * config.integer("hidden_size"),
        "hidden_size": 768,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 50257,
        "multi_query": True,
        "scale_attn_weights": True,
        TIED: True,
    },
    aliases={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    spellings=(
        ("transformer.h.", "model.layers."),
        ("transformer.wte.", "model.embed_tokens."),
        ("transformer.wpe.", "model.wpe."),
        ("transformer.ln_f.", "model.norm."),
    ),
    required=(
        activation("gelu_pytorch_tanh", "gelu_new", "gelu", of="activation_function"),
        fixed("multi_query", True),
        fixed("scale_attn_weights", True),
    ),
)
