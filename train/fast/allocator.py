"""Tells torch how to cut the GPU's memory into blocks, and how much to leave."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROUNDED = "roundup_power2_divisions:8"
_GROWING = "expandable_segments"
_SPARED = 256 << 20  # bytes of the GPU that are not for tensors


@contextlib.contextmanager
def growing_segments(rounded: bool = True) -> Iterator[None]:
    """Let the blocks taken within be cut from one piece of memory that grows and gives back what is free.

    CUDA graphs are captured in the order in which their sizes come. A large one finds no block that a smaller
    one has left, unless what lies side by side is one piece. And transformers loads a model into one block,
    of which nothing could be given back when a part of the weights goes (docs/log.md). Passes that are
    launched would pay for it with a fifth of their speed, replayed ones do not.

    Afterwards torch rounds the sizes of blocks up to an eighth of a power of two: no two packs have the same
    length, and of blocks that almost fitted the next one torch piled up the whole card (docs/log.md). What
    the user has set in the environment stays. A torch that cannot be told goes on without it, at the cost of
    memory.

    Args:
        rounded: whether sizes are rounded up meanwhile, too.
    """
    _tell_allocator(f"{_ROUNDED},{_GROWING}:True" if rounded else f"{_GROWING}:True")
    try:
        yield
    finally:
        _tell_allocator(f"{_ROUNDED},{_GROWING}:False")


def spare_some(device: torch.device) -> None:
    """Keep torch from taking the last of the GPU: CUDA loads a kernel there when it is first called.

    cuBLAS fails without that room (`CUBLAS_STATUS_ALLOC_FAILED`), while torch, at a limit of its own, gives
    back what it holds and does not use.
    """
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + free_bytes(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)


def free_bytes(device: torch.device) -> int:
    """Bytes of the GPU that nothing holds, without those that are not for tensors."""
    import torch

    return max(0, int(torch.cuda.mem_get_info(device)[0]) - _SPARED)


def _tell_allocator(settings: str) -> None:
    import torch

    own = any(name in os.environ for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    if own or not torch.cuda.is_available():
        return
    setters = ("_accelerator_setAllocatorSettings", "_cuda_cudaCachingAllocator_set_allocator_settings")
    setter = next((getattr(torch._C, name) for name in setters if hasattr(torch._C, name)), None)
    if setter is not None:
        setter(settings)
