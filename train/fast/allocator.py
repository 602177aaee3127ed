"""Tells torch how to cut the GPU's memory into blocks, so that packs of every length reuse them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_ROUNDED = "roundup_power2_divisions:8"


def round_blocks() -> None:
    """Let torch round the sizes of blocks up to an eighth of a power of two from now on.

    No two packs have the same length, and of blocks that almost fitted the next one torch piled up the whole
    card (docs/log.md). What the user has set in the environment stays. A torch that cannot be told goes on
    without it, at the cost of memory.
    """
    _tell_allocator(_ROUNDED)


@contextlib.contextmanager
def growing_segments() -> Iterator[None]:
    """Let the blocks taken within be cut from one piece of memory that grows.

    CUDA graphs are captured in the order in which their sizes come. A large one finds no block that a smaller
    one has left, unless what lies side by side is one piece. Passes that are launched would pay for it with a
    fifth of their speed (docs/log.md), replayed ones do not.
    """
    _tell_allocator(f"{_ROUNDED},expandable_segments:True")
    try:
        yield
    finally:
        _tell_allocator(f"{_ROUNDED},expandable_segments:False")


def _tell_allocator(settings: str) -> None:
    import torch

    if any(name in os.environ for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")):
        return
    setters = ("_accelerator_setAllocatorSettings", "_cuda_cudaCachingAllocator_set_allocator_settings")
    setter = next((getattr(torch._C, name) for name in setters if hasattr(torch._C, name)), None)
    if setter is not None:
        setter(settings)
