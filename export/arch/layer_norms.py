"""Rules for models that normalise with LayerNorm and keep queries, keys and values in one matrix.

GPT-NeoX and Bloom hold for each head its query, key and value; Falcon for each key-value head its queries,
its key and its value. llama.cpp wants all queries, then all keys, then all values.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorafold.export.arch.rules import NORMS, OUTPUT_NORM, Sizes, TensorRule, layer, with_bias
from lorafold.export.gguf.parts import ColumnRange

# LayerNorms with their biases.
NORM_PAIRS = tuple(part for norm in NORMS for part in with_bias(norm))
OUTPUT_NORM_PAIR = with_bias(OUTPUT_NORM)


def by_part(sizes: Sizes) -> list[tuple[int, int]]:
    """Rows of a fused matrix in llama.cpp's order.

    | q … q k v | q … q k v | …    each letter is head_dim rows, a group for each key-value head
    """
    groups, size = sizes["kv_heads"], sizes["head_dim"]
    queries = sizes["heads"] // groups
    parts = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))
    starts = range(0, groups * (queries + 2), queries + 2)
    return [((at + first) * size, (at + last) * size) for first, last in parts for at in starts]


def _bias_by_part(sizes: Sizes) -> Sequence[ColumnRange]:
    """`by_part` for a bias, which is one row."""
    return [(start, stop, 1) for start, stop in by_part(sizes)]


def fused_attention(source: str, *, bias: bool) -> tuple[TensorRule, ...]:
    """Rules for `source`, the fused matrix within a layer, and for its bias."""
    weight = layer("attn_qkv.weight", f"{source}.weight", "qkv", "width", rows=by_part)
    if not bias:
        return (weight,)
    return weight, layer("attn_qkv.bias", f"{source}.bias", "qkv", columns=_bias_by_part)


def linears(attention: str, up: str, down: str, *, bias: bool) -> tuple[TensorRule, ...]:
    """Rules for the three other matrices of a layer, by their names there."""
    rules = (
        layer("attn_output.weight", f"{attention}.weight", "width", "query"),
        layer("ffn_up.weight", f"{up}.weight", "ff", "width"),
        layer("ffn_down.weight", f"{down}.weight", "width", "ff"),
    )
    return tuple(part for rule in rules for part in with_bias(rule)) if bias else rules
