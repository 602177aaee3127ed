"""Layers that keep a state from token to token: what stands before in a row reaches them at any position.

Attention is confined to an example by positions or bounds. A recurrent layer (Mamba, a gated delta net, a
short convolution) goes on with what it remembers, so examples that lie end to end would leak into each other.
Only kernels that are told of the bounds keep them apart, and transformers' own code, which runs without them,
has no such thing: each example gets a row of its own.
"""

from __future__ import annotations

from typing import Any


def stateful_layer(causal: Any) -> str:
    """The class of a layer that keeps a state, or empty if none does.

    transformers marks most such models. All of them but RWKV look at the last few tokens by a convolution.

    Args:
        causal: a causal language model of transformers.
    """
    import torch

    decoder = causal.get_decoder() or causal.base_model
    for module in decoder.modules():
        for child in module.children():
            if isinstance(child, torch.nn.Conv1d) and child.kernel_size[0] > 1:
                return type(module).__name__
    return type(causal).__name__ if getattr(causal, "_is_stateful", False) else ""
