"""Rows of the table whose checkpoints have a layout of their own: InternLM 2's interleaved heads, GPT-2's
Conv1D.

In: nothing. Out: `LAYOUT_ROWS`. InternLM 2's layout is that of its repositories' modeling_internlm2.py,
GPT-2's that of transformers; the rest as in `arch_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorafold.export.arch.hyperparameters import f32, u32
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    EMBEDDING,
    EVEN_HEADS,
    LIMITS,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    PLAIN_HEADS,
    SILU,
    TIED,
    Architecture,
    Condition,
    Sizes,
    TensorRule,
    activation,
    layer,
    rope_kinds,
    switched_off,
)


def _interleaved(first: str, heads: str) -> Callable[[Sizes], Sequence[tuple[int, int]]]:
    """Rows of one part of InternLM 2's wqkv.

    It holds, for each key-value head, its query heads, then its key head, then its value head:

        | q q … q k v | q q … q k v | …    each letter is head_dim rows

    Args:
        first: which head of a group the part begins with: "query", "key" or "value".
        heads: size that counts the part's heads in all groups.
    """

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        groups, size = sizes["kv_heads"], sizes["head_dim"]
        queries = sizes["heads"] // groups
        begin = {"query": 0, "key": queries, "value": queries + 1}[first] * size
        length = sizes[heads] // groups * size
        starts = (group * (queries + 2) * size + begin for group in range(groups))
        return [(start, start + length) for start in starts]

    return rows


def _part(name: str, first: str, heads: str, height: str, **rest: Any) -> TensorRule:
    """A rule for one part of wqkv."""
    return layer(
        name,
        "attention.wqkv.weight",
        "qkv",
        "width",
        rows=_interleaved(first, heads),
        becomes=(height, "width"),
        **rest,
    )


INTERNLM2 = Architecture(
    classes=("InternLM2ForCausalLM",),
    model_types=("internlm2",),
    gguf="internlm2",
    tensors=(
        TensorRule(EMBEDDING.name, "model.tok_embeddings.weight", EMBEDDING.shape),
        OUTPUT_NORM,
        TensorRule(
            OUTPUT_ALWAYS.name,
            "output.weight",
            OUTPUT_ALWAYS.shape,
            unless=TIED,
            instead="model.tok_embeddings.weight",
        ),
        layer("attn_norm.weight", "attention_norm.weight", "width"),
        layer("ffn_norm.weight", "ffn_norm.weight", "width"),
        _part("attn_q.weight", "query", "heads", "query", op="interleave_rows", group="head_dim"),
        _part("attn_k.weight", "key", "kv_heads", "key", op="interleave_rows", group="head_dim"),
        _part("attn_v.weight", "value", "kv_heads", "key"),
        layer("attn_output.weight", "attention.wo.weight", "width", "query"),
        layer("ffn_gate.weight", "feed_forward.w1.weight", "ff", "width"),
        layer("ffn_down.weight", "feed_forward.w2.weight", "width", "ff"),
        layer("ffn_up.weight", "feed_forward.w3.weight", "ff", "width"),
    ),
    hyperparameters=COMMON,
    defaults=DEFAULTS | {"max_position_embeddings": 2048},
    required=(
        SILU,
        EVEN_HEADS,
        switched_off("bias"),
        PLAIN_HEADS,
        *rope_kinds("linear"),
    ),
    caveats=LIMITS,
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

LAYOUT_ROWS = (INTERNLM2, GPT2)
