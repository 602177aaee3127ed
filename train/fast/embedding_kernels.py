"""The table of input embeddings in the CPU's memory, of which the GPU fetches the rows that it needs.

Of a 7B model in 4 bit the frozen table is a sixth of the memory, and a pass reads a few megabytes of it. It
is pinned, so that a kernel reads it over the bus: no wait for the CPU, and a CUDA graph may hold it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

_COLS = 1024  # columns that a program copies at a time


@triton.jit
def _copy_rows(table, ids, rows, width, COLS: tl.constexpr):
    """rows[n] = table[ids[n]]; a program copies a part of a row."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    number = tl.load(ids + row).to(tl.int64)
    part = tl.load(table + number * width + cols, mask=cols < width)
    tl.store(rows + row * width + cols, part, mask=cols < width)


def move_out(causal: Any) -> bool:
    """Move the input embedding to the CPU's memory, if it is frozen and nothing else uses it.

    It is no parameter of the model after that: the first of these tells transformers where the model is.

    Args:
        causal: a causal language model of transformers on a CUDA GPU.

    Returns:
        Whether it was moved.
    """
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    if type(embedding) is not torch.nn.Embedding or embedding.max_norm is not None:
        return False
    weight = embedding._parameters.get("weight")
    if weight is None or weight.requires_grad or not weight.is_cuda:
        return False
    if head is not None and head.weight.data_ptr() == weight.data_ptr():
        return False
    try:
        table = weight.detach().cpu().pin_memory()
    except RuntimeError:  # the system does not let so much be pinned
        return False
    del embedding.weight
    embedding.weight = table
    embedding.forward = functools.partial(_rows, embedding)
    del weight
    torch.cuda.empty_cache()
    return True


def _rows(embedding: Any, ids: torch.Tensor) -> torch.Tensor:
    table = embedding.weight  # (vocabulary, width)
    width = table.shape[1]
    rows = torch.empty((*ids.shape, width), dtype=table.dtype, device=ids.device)
    flat = ids.contiguous()
    _copy_rows[(flat.numel(), triton.cdiv(width, _COLS))](table, flat, rows, width, COLS=_COLS)
    return rows
