"""OpenAI: GPT-2, whose Conv1D weights are stored transposed. Its layout is that of transformers."""

from __future__ import annotations

from lorafold.export.arch.hyperparameters import f32, u32
from lorafold.export.arch.rules import (
    EMBEDDING,
    TIED,
    Architecture,
    Condition,
    TensorRule,
    activation,
    switched_off,
)


def _block(name: str, source: str, *shape: str, transpose: bool = False) -> TensorRule:
    """A rule for a tensor of each of GPT-2's layers."""
    return TensorRule("blk.{layer}." + name, "h.{layer}." + source, shape, transpose=transpose)


def _conv1d(name: str, source: str, rows: str, cols: str) -> tuple[TensorRule, TensorRule]:
    """A Conv1D, whose weight is stored (cols, rows), and its bias."""
    return (
        _block(f"{name}.weight", f"{source}.weight", cols, rows, transpose=True),
        _block(f"{name}.bias", f"{source}.bias", rows),
    )


def _layer_norm(name: str, source: str) -> tuple[TensorRule, TensorRule]:
    """A LayerNorm's weight and bias in each layer."""
    return (
        _block(f"{name}.weight", f"{source}.weight", "width"),
        _block(f"{name}.bias", f"{source}.bias", "width"),
    )


GPT2 = Architecture(
    classes=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    gguf="gpt2",
    tensors=(
        TensorRule(EMBEDDING.name, "wte.weight", EMBEDDING.shape),
        TensorRule("position_embd.weight", "wpe.weight", ("positions", "width")),
        TensorRule("output_norm.weight", "ln_f.weight", ("width",)),
        TensorRule("output_norm.bias", "ln_f.bias", ("width",)),
        TensorRule("output.weight", "lm_head.weight", EMBEDDING.shape, unless=TIED),
        *_layer_norm("attn_norm", "ln_1"),
        *_layer_norm("ffn_norm", "ln_2"),
        *_conv1d("attn_qkv", "attn.c_attn", "qkv", "width"),
        *_conv1d("attn_output", "attn.c_proj", "width", "width"),
        *_conv1d("ffn_up", "mlp.c_fc", "ff", "width"),
        *_conv1d("ffn_down", "mlp.c_proj", "width", "ff"),
    ),
    hyperparameters=(
        u32("block_count", "num_hidden_layers"),
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("attention.head_count", "num_attention_heads"),
        f32("attention.layer_norm_epsilon", "layer_norm_eps"),
    ),
    defaults={
        "activation_function": "gelu_new",
        "hidden_size": 768,
        "intermediate_size": lambda config: 4 * config.integer("hidden_size"),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "scale_attn_weights": True,
        "vocab_size": 50257,
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
    spellings=(("transformer.", ""),),
    required=(
        activation("gelu_new", "gelu_pytorch_tanh", of="activation_function"),
        Condition(
            "scale_attn_weights",
            lambda config: config.flag("scale_attn_weights"),
            "true: llama.cpp computes no other here",
        ),
        switched_off("scale_attn_by_inverse_layer_idx"),
        switched_off("add_cross_attention"),
    ),
)

OPENAI_ROWS = (GPT2,)
