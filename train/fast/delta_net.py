"""Gated delta nets in a pack: a state that begins anew with each example, and a convolution that stays in it.

A layer keeps a matrix S, from keys to values. With a decay g and a rate β of each token t,

    S ← exp(g) S,   S ← S + β k (v − Sᵀk)ᵀ,   output Sᵀq / √width

(Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464). Tokens are taken in chunks, in which a
triangular system stands for the steps one by one, and the state goes from chunk to chunk. Here a chunk
belongs to one example. All chunks that are first in their example come first, then all that are second, and
so on, the longest examples in front: so the state's way is as many products as the longest example has
chunks, each on one slice of memory, however many examples a pack has. What is kept for the backward pass is
what enters.

transformers calls both pieces by their names in the model's module, where these take their places
(`confine`). What is not packed goes to transformers' own code in torch. The kernels of
flash-linear-attention, which transformers takes if they are installed, are left out: they compile for
minutes before the first step, and refuse some pairs of a GPU and a Triton (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

RULE, CONVOLUTION = "torch_chunk_gated_delta_rule", "causal_conv1d_fn"  # in transformers' modules
_CHUNK = 64  # tokens


def confinable(module: ModuleType) -> bool:
    """Whether the layers with a state in a module are gated delta nets whose pieces can be put in place."""
    return {RULE, CONVOLUTION} <= vars(module).keys()


def confine(module: ModuleType) -> None:
    """Let a module's layers keep packed examples apart, whose bounds come as `cu_seq_lens_q`.

    Args:
        module: of transformers; what is not packed is computed by its own code in torch.
    """
    for name, ours in ((RULE, _rule), (CONVOLUTION, _convolution)):
        own = vars(module)[name]
        setattr(module, name, functools.partial(ours, getattr(own, "__wrapped__", own)))


class Chunks:
    """Where the tokens of a pack go.

    Args:
        bounds: (examples + 1,) of the examples in the pack, from 0.

    Attributes:
        places: (tokens,) of each token among all chunks' places.
        rounds: (first, last + 1) of the chunks that are first in their examples, second, and so on.
    """

    def __init__(self, bounds: torch.Tensor) -> None:
        ends = bounds.tolist()
        lengths = [end - start for start, end in pairwise(ends)]
        ranked = sorted(range(len(lengths)), key=lambda example: -lengths[example])
        ranks = torch.tensor(ranked).argsort()
        counts = [math.ceil(length / _CHUNK) for length in lengths]
        sizes = [sum(count > turn for count in counts) for turn in range(max(counts))]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        self.rounds = list(pairwise(starts.tolist()))
        example = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))  # of each token
        within = torch.arange(ends[-1]) - torch.tensor(ends[:-1])[example]
        slots = starts[within // _CHUNK] + ranks[example]
        self.places = (slots * _CHUNK + within % _CHUNK).to(bounds.device)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(1, tokens, heads, …) to (chunks, heads, places, …) in float32, zero where no token is."""
        heads = values.shape[2:]
        found = values.new_zeros(self.rounds[-1][1] * _CHUNK, *heads, dtype=torch.float32)
        found = found.index_copy(0, self.places, values[0].float())
        return found.unflatten(0, (-1, _CHUNK)).transpose(1, 2)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """The way back, to (1, tokens, heads, …)."""
        return values.transpose(1, 2).flatten(0, 1)[self.places][None]


_chunks: tuple[torch.Tensor, Chunks] | None = None  # of the latest pack, which all layers see


def _chunks_of(bounds: torch.Tensor) -> Chunks:
    global _chunks
    if _chunks is None or _chunks[0] is not bounds:
        _chunks = (bounds, Chunks(bounds))
    return _chunks[1]


def _rule(
    own: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rule in transformers' shape, for a pack; anything else goes to its own code.

    Args:
        own: transformers' code.
        query: (1, tokens, key heads, width).
        key: like query.
        value: (1, tokens, value heads, width of values).
        g: logarithm of the decay, (1, tokens, value heads).
        beta: like g.
        cu_seqlens: bounds of the examples.
        use_qk_l2norm_in_kernel: queries and keys are made of length 1.
        more: for transformers' code.
    """
    if cu_seqlens is None:
        return own(  # type: ignore[no-any-return]
            query, key, value, g=g, beta=beta, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **more
        )
    compute = functools.partial(_packed_rule, _chunks_of(cu_seqlens), use_qk_l2norm_in_kernel)
    found = checkpoint(compute, query, key, value, g, beta, use_reentrant=False, preserve_rng_state=False)
    return found.to(query.dtype), None


def _packed_rule(
    chunks: Chunks,
    unit: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
) -> torch.Tensor:
    repeat = value.shape[2] // key.shape[2]
    q, k = (chunks.spread(each.repeat_interleave(repeat, dim=2)) for each in (query, key))
    v, rate = chunks.spread(value), chunks.spread(beta)[..., None]
    if unit:
        q, k = (each * (each.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for each in (q, k))
    q = q / math.sqrt(q.shape[-1])
    total = chunks.spread(g).cumsum(-1)  # the decay since the chunk's beginning
    between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    # What each token adds to the state is u − w S, with the state S before its chunk.
    system = (rate * k) @ k.mT * between
    wanted = torch.cat([rate * v, rate * k * total[..., None].exp()], dim=-1)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    seen = q @ k.mT * between
    asks = q * total[..., None].exp()
    leaves = k * (total[..., -1:] - total)[..., None].exp()
    fades = total[..., -1:, None].exp()
    found, state = [], None
    for first, end in chunks.rounds:
        added = u[first:end]
        if state is not None:
            state = state[: end - first]
            added = added - w[first:end] @ state
        answer = seen[first:end] @ added
        left = leaves[first:end].mT @ added
        if state is not None:
            answer = answer + asks[first:end] @ state
            left = left + fades[first:end] * state
        found.append(answer)
        state = left
    return chunks.gather(torch.cat(found))


def _convolution(
    own: Callable[..., Any],
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """The convolution over the last few tokens, with as many zeros before each example as it looks back.

    Args:
        own: transformers' code, for what is not packed.
        hidden: (1, width, tokens).
        weight: (width, tokens that are looked at).
        bias: (width,).
        activation: of transformers.
        cu_seq_lens_q: bounds of the examples.
        more: for transformers' code.
    """
    if cu_seq_lens_q is None:
        return own(hidden, weight, bias, activation=activation, **more)
    back, tokens, examples = weight.shape[-1] - 1, hidden.shape[-1], len(cu_seq_lens_q) - 1
    place = torch.arange(tokens, device=hidden.device, dtype=cu_seq_lens_q.dtype)
    after = place + back * torch.searchsorted(cu_seq_lens_q, place, right=True)
    apart = hidden.new_zeros(*hidden.shape[:2], tokens + back * examples, dtype=weight.dtype)
    apart = apart.index_copy(2, after, hidden.to(weight.dtype))
    found = torch.nn.functional.conv1d(apart, weight[:, None], bias, groups=len(weight))
    found = found[..., after - back]
    if activation is not None:
        from transformers.activations import ACT2FN

        found = ACT2FN[activation](found)
    return found.to(hidden.dtype)
