"""Attention for packed batches: chooses what runs here, and gives transformers torch's FlashAttention.

`varlen` is `torch.nn.attention.varlen` (torch 2.11 and later): FlashAttention over sequences of different
lengths that lie end to end, with no package to install and no mask in memory. If it cannot run,
transformers' implementations confine attention to each example by the position ids.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VARLEN = "lorafold_varlen"  # its name in transformers' registry
_MAX_HEAD = 256  # FlashAttention 2's largest head dimension
_AMPERE = (8, 0)  # compute capability that FlashAttention 2 needs


@cache
def _varlen() -> tuple[Callable[..., Any], bool] | None:
    """torch's function and whether it is to be told of grouped heads; None before it took a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in known) if {"scale", "window_size"} <= set(known) else None


def choose_attention(model: Any, dtype: torch.dtype) -> tuple[str, str]:
    """The implementation for packed batches on a CUDA GPU, and why it is this one.

    Args:
        model: a causal language model of transformers.
        dtype: that it computes in.

    Returns:
        A name for `set_attn_implementation`, and the reason in a few words.
    """
    import torch

    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    special = [
        what
        for what, present in (
            ("softcapping", getattr(config, "attn_logit_softcapping", None)),
            ("attention sinks", any(name.endswith("sinks") for name, _ in model.named_parameters())),
        )
        if present
    ]
    flash = dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability() >= _AMPERE
    if getattr(config, "attention_dropout", 0.0):
        return "sdpa", "the model has attention dropout"
    if special:
        return "flex_attention", f"the model has {special[0]}"
    if not flash or width > _MAX_HEAD:
        return "sdpa", "FlashAttention needs 16 bit, an Ampere GPU and heads up to 256"
    if _varlen() is not None:
        register_varlen()
        return VARLEN, "FlashAttention of torch"
    if find_spec("flash_attn") is not None:
        return "flash_attention_2", "flash-attn is installed"
    return "flex_attention", "torch before 2.11 has no varlen attention"


def register_varlen() -> None:
    """Make torch's attention for packed sequences known to transformers, once a process."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(VARLEN, _attend)
    AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)


@contextlib.contextmanager
def with_cache(model: Any) -> Iterator[None]:
    """Let a causal model generate for the length of the block: varlen attention knows no cache, SDPA does."""
    if model.config._attn_implementation != VARLEN:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(VARLEN)


def packed_inputs(
    position_ids: torch.Tensor, bounds: torch.Tensor, longest: int, implementation: str, bounded: bool = False
) -> dict[str, Any]:
    """The model's keywords for a packed batch, beside the ids.

    Position ids that start again from 0 tell transformers' own masks that a new example begins;
    FlashAttention takes the bounds.

    Args:
        position_ids: (1, tokens).
        bounds: int32 (sequences + 1,).
        longest: at least the tokens of the longest sequence.
        implementation: name of the attention.
        bounded: layers that keep a state are to be told, too.
    """
    # With a cache, even an empty one, transformers does not look for examples in the position ids.
    inputs: dict[str, Any] = {"position_ids": position_ids, "use_cache": False}
    if bounded or implementation == VARLEN or implementation.startswith("flash_attention"):
        inputs |= {
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    if implementation == VARLEN:
        # A mask of four dimensions is passed on as it is: transformers then looks for none in the position
        # ids, for which it would wait for the GPU. `_attend` does not use it.
        inputs["attention_mask"] = position_ids.new_zeros((1, 1, 1, 1))
    return inputs


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence, in the shape that transformers' attention functions have.

    Args:
        module: the attention layer; not used.
        query: (1, heads, tokens, width).
        key: (1, key-value heads, tokens, width).
        value: like key.
        attention_mask: not used.
        dropout: of the attention's weights; torch's function has none.
        scaling: of the scores.
        sliding_window: tokens that a token sees, itself included.
        cu_seq_lens_q: bounds of the sequences.
        max_length_q: tokens of the longest.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    found = _varlen()
    assert found is not None, "choose_attention found it"
    attend, told = found
    window = (sliding_window - 1 if sliding_window else -1, 0)
    grouped = {"enable_gqa": True} if told else {}
    flat = [part.transpose(1, 2).squeeze(0) for part in (query, key, value)]  # (tokens, heads, width)
    bounds, longest = cu_seq_lens_q, max_length_q
    output = attend(*flat, bounds, bounds, longest, longest, scale=scaling, window_size=window, **grouped)
    return output.unsqueeze(0), None
