"""Triton kernels for the thin products of a LoRA layer, with dropout that is never stored.

A rank of 8 to 64 makes every product with A or B a matter of reading the activations once; a framework's
separate steps (cast, dropout, product, scale, add) read and write them many times. The three products here,
with D the dropout of the layer's input (rows: tokens):

    project      h = s · D(x) Aᵀ    forward, and backward as dh = s · dy B
    expand_add   y += h Bᵀ          forward, and backward as dx += D(dh A)
    gram         hᵀ D(x)            backward: dA = dhᵀ D(x), dBᵀ = hᵀ dy

D keeps an element if a hash of its place and a seed is large enough, so it comes out alike in all three
and takes no memory. The hash is `lowbias32` (Wellons, 2018, "Prospecting for hash functions"): two
multiplications whose avalanche is measured to be near ideal.

Sums are taken in float32, in an order that does not change from run to run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

_ROWS = 64  # tokens in a block
_FULL = 132 * 64  # tokens from which blocks of that size occupy a whole GPU
_COLS = 128  # columns in a block
_MAX_RANK = 128  # beyond it a block of A or B no longer fits; larger ranks go the ordinary way
_SPLITS = 32  # partial sums over the tokens in `gram`


def supports(rank: int, elements: int) -> bool:
    """Whether the kernels take this rank and an activation of so many elements (places are 32-bit)."""
    return rank <= _MAX_RANK and elements < 2**31


@triton.jit
def _dropped(block, places, seed, THRESHOLD: tl.constexpr):
    """The block with zeros where hash(place xor seed) < threshold, all uint32."""
    bits = places.to(tl.uint32) ^ tl.load(seed).to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return tl.where((bits ^ (bits >> 16)) >= THRESHOLD, block, 0.0)


@triton.jit
def _project(
    x,
    a,
    h,
    tokens,
    width,
    rank,
    step_rank,
    step_width,
    scale,
    seed,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK: tl.constexpr,
):
    """h[t, r] = scale · sum over k of D(x)[t, k] · a[r, k]; a program sums a block of tokens."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), dtype=tl.float32)
    for start in range(0, width, COLS):
        cols = start + tl.arange(0, COLS)
        places = rows[:, None] * width + cols[None, :]
        inside = (rows[:, None] < tokens) & (cols[None, :] < width)
        block = tl.load(x + places, mask=inside, other=0.0)
        if THRESHOLD:
            block = _dropped(block, places, seed, THRESHOLD)
        known = (ranks[None, :] < rank) & (cols[:, None] < width)
        weights = tl.load(a + ranks[None, :] * step_rank + cols[:, None] * step_width, mask=known, other=0.0)
        total = tl.dot(block, weights.to(block.dtype), total)
    out = rows[:, None] * rank + ranks[None, :]
    inside = (rows[:, None] < tokens) & (ranks[None, :] < rank)
    tl.store(h + out, (total * scale).to(h.dtype.element_ty), mask=inside)


@triton.jit
def _expand_add(
    y,
    h,
    b,
    tokens,
    width,
    rank,
    step_width,
    step_rank,
    scale,
    seed,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK: tl.constexpr,
):
    """y[t, n] += scale · D(sum over r of h[t, r] · b[n, r]); a program owns a block of y."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    ranks = tl.arange(0, RANK)
    known = (rows[:, None] < tokens) & (ranks[None, :] < rank)
    left = tl.load(h + rows[:, None] * rank + ranks[None, :], mask=known, other=0.0)
    known = (ranks[:, None] < rank) & (cols[None, :] < width)
    right = tl.load(b + cols[None, :] * step_width + ranks[:, None] * step_rank, mask=known, other=0.0)
    added = tl.dot(left, right.to(left.dtype)) * scale
    places = rows[:, None] * width + cols[None, :]
    if THRESHOLD:
        added = _dropped(added, places, seed, THRESHOLD)
    inside = (rows[:, None] < tokens) & (cols[None, :] < width)
    old = tl.load(y + places, mask=inside, other=0.0)
    tl.store(y + places, (old.to(tl.float32) + added).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gram(
    h,
    x,
    partial,
    tokens,
    width,
    rank,
    per_split,
    scale,
    seed,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK: tl.constexpr,
):
    """partial[s, r, k] = scale · sum over the tokens of split s of h[t, r] · D(x)[t, k]."""
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    split = tl.program_id(1)
    ranks = tl.arange(0, RANK)
    total = tl.zeros((RANK, COLS), dtype=tl.float32)
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, tokens), ROWS):
        rows = start + tl.arange(0, ROWS)
        places = rows[:, None] * width + cols[None, :]
        inside = (rows[:, None] < tokens) & (cols[None, :] < width)
        block = tl.load(x + places, mask=inside, other=0.0)
        if THRESHOLD:
            block = _dropped(block, places, seed, THRESHOLD)
        known = (rows[None, :] < tokens) & (ranks[:, None] < rank)
        left = tl.load(h + rows[None, :] * rank + ranks[:, None], mask=known, other=0.0)
        total = tl.dot(left, block.to(left.dtype), total)
    out = split * rank * width + ranks[:, None] * width + cols[None, :]
    known = (ranks[:, None] < rank) & (cols[None, :] < width)
    tl.store(partial + out, total * scale, mask=known)


def _drop(p: float) -> tuple[int, float]:
    """Threshold of the hash and the scale of what is kept."""
    return round(p * 2**32), 1.0 / (1.0 - p)


def _padded(rank: int) -> int:
    return max(16, 1 << (rank - 1).bit_length())  # a product on tensor cores is at least 16 wide


def project(
    x: torch.Tensor, a: torch.Tensor, scale: float, seed: torch.Tensor | None, p: float
) -> torch.Tensor:
    """h = scale · D(x) aᵀ.

    Args:
        x: (tokens, width), contiguous.
        a: (rank, width), any strides and type.
        scale: of the product.
        seed: int32, one number in the GPU's memory; None if nothing is dropped.
        p: probability of dropping; 0 keeps all.

    Returns:
        (tokens, rank) in x's type.
    """
    (tokens, width), rank = x.shape, a.shape[0]
    h = torch.empty((tokens, rank), dtype=x.dtype, device=x.device)
    threshold, grown = _drop(p)
    # A program reads whole rows, so few tokens need small blocks; 64 take twice as long for a transposed `a`.
    rows = _ROWS // 2 if tokens >= _FULL else 16
    _project[(triton.cdiv(tokens, rows),)](
        x,
        a,
        h,
        tokens,
        width,
        rank,
        a.stride(0),
        a.stride(1),
        scale * grown,
        seed,
        THRESHOLD=threshold,
        ROWS=rows,
        COLS=_COLS,
        RANK=_padded(rank),
        num_stages=3,
    )
    return h


def expand_add(
    y: torch.Tensor, h: torch.Tensor, b: torch.Tensor, seed: torch.Tensor | None, p: float
) -> None:
    """y += D(h bᵀ), in place.

    Args:
        y: (tokens, width), contiguous.
        h: (tokens, rank), contiguous.
        b: (width, rank), any strides and type.
        seed: of the dropout, or None.
        p: probability of dropping.
    """
    (tokens, width), rank = y.shape, h.shape[1]
    threshold, grown = _drop(p)
    _expand_add[(triton.cdiv(tokens, _ROWS), triton.cdiv(width, _COLS))](
        y,
        h,
        b,
        tokens,
        width,
        rank,
        b.stride(0),
        b.stride(1),
        grown,
        seed,
        THRESHOLD=threshold,
        ROWS=_ROWS,
        COLS=_COLS,
        RANK=_padded(rank),
    )


def gram(h: torch.Tensor, x: torch.Tensor, seed: torch.Tensor | None, p: float) -> torch.Tensor:
    """hᵀ D(x).

    Args:
        h: (tokens, rank), contiguous.
        x: (tokens, width), contiguous.
        seed: of the dropout, or None.
        p: probability of dropping.

    Returns:
        (rank, width), float32.
    """
    (tokens, width), rank = x.shape, h.shape[1]
    threshold, grown = _drop(p)
    per_split = max(_ROWS, _ROWS * math.ceil(tokens / _ROWS / _SPLITS))
    splits = math.ceil(tokens / per_split)
    partial = torch.empty((splits, rank, width), dtype=torch.float32, device=x.device)
    _gram[(triton.cdiv(width, _COLS), splits)](
        h,
        x,
        partial,
        tokens,
        width,
        rank,
        per_split,
        grown,
        seed,
        THRESHOLD=threshold,
        ROWS=_ROWS,
        COLS=_COLS,
        RANK=_padded(rank),
        num_stages=3,
    )
    return partial.sum(dim=0)
