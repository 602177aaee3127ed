"""What enters the two halves of `kv_b_proj` where llama.cpp multiplies with each of them apart.

transformers expands the latent vectors of all tokens to keys and values, C → C Wᵀ. llama.cpp keeps the latent
vectors and moves the halves to the other side (src/models/deepseek2.cpp): with a head's K and V,

    attn_k_b    enters q, the part of the query that is not rotated    (heads, nope)
    attn_v_b    enters softmax(q k) C, the attended latent vector      (heads, rank)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lorafold.export.imatrix.products import Entered, Matrix, enter

HALVES = {"attn_k_b.weight": "#k", "attn_v_b.weight": "#v"}
"""Ends of the GGUF names of the halves, by what stands behind the parameter's name in a `Matrix`."""


@contextmanager
def latent_products(
    model: torch.nn.Module, parameters: Sequence[str], seen: dict[Matrix, Entered]
) -> Iterator[None]:
    """Look at the attention of some layers for a while.

    Args:
        model: a model of transformers whose attention computes its weights (`eager`).
        parameters: names of the layers' `kv_b_proj.weight`.
        seen: where it is kept: what entered (name + "#k", 0), what entered (name + "#v", 0).
    """
    handles: list[Any] = []
    try:
        for name in parameters:
            handles += _hooks(model, name, seen)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(model: torch.nn.Module, name: str, seen: dict[Matrix, Entered]) -> list[Any]:
    attention: Any = model.get_submodule(name.removesuffix(".kv_b_proj.weight"))
    query = attention.q_b_proj if getattr(attention, "q_lora_rank", None) else attention.q_proj
    latest: dict[str, torch.Tensor] = {}

    def keep_latent(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        latest["latent"] = arguments[0].reshape(-1, arguments[0].shape[-1])  # (tokens, rank)

    def see_query(module: torch.nn.Module, arguments: object, result: torch.Tensor) -> None:
        heads = result.reshape(-1, attention.num_heads, result.shape[-1] // attention.num_heads)
        enter(seen, (name + "#k", 0), heads[..., : attention.qk_nope_head_dim])

    def see_attended(module: torch.nn.Module, arguments: object, result: tuple[torch.Tensor, ...]) -> None:
        weights = result[1][0]  # (heads, tokens, tokens)
        enter(seen, (name + "#v", 0), (weights @ latest.pop("latent")).transpose(0, 1))

    return [
        attention.kv_b_proj.register_forward_pre_hook(keep_latent),
        query.register_forward_hook(see_query),
        attention.register_forward_hook(see_attended),
    ]
