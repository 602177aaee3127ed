"""Shanghai AI Lab: InternLM 2, whose heads are interleaved in one tensor. Its layout is that of its
repositories' modeling_internlm2.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorafold.export.arch.conditions import (
    EVEN_HEADS,
    LIMITS,
    PLAIN_HEADS,
    SILU,
    TIED,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.rules import (
    COMMON,
    DEFAULTS,
    EMBEDDING,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    Architecture,
    Sizes,
    TensorRule,
    layer,
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

INTERNLM_ROWS = (INTERNLM2,)
