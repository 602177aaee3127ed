"""Layers that keep a state from token to token: what stands before in a row reaches them at any position.

Attention is confined to an example by positions or bounds. A recurrent layer (Mamba, a gated delta net, a
short convolution) goes on with what it remembers, so examples that lie end to end would leak into each other.
Only what is told of the bounds keeps them apart: gated delta nets are (`delta_net.py`). Of any other such
layer each example gets a row of its own.
"""

from __future__ import annotations

from typing import Any


def stateful_layers(causal: Any) -> list[type]:
    """The classes of layers that keep a state, each once; of the model itself if only its mark says so.

    transformers marks most such models. All of them but RWKV look at the last few tokens by a convolution.

    Args:
        causal: a causal language model of transformers.
    """
    import torch

    decoder = causal.get_decoder() or causal.base_model
    found = [
        type(module)
        for module in decoder.modules()
        if any(isinstance(child, torch.nn.Conv1d) and child.kernel_size[0] > 1 for child in module.children())
    ]
    marked = [type(causal)] if getattr(causal, "_is_stateful", False) else []
    return list(dict.fromkeys(found or marked))
