"""The memory that there is for a run, and what the base's weights take of it, before they are loaded."""

from __future__ import annotations

import math
from typing import Any

from lorafold.machine import memory_available, memory_held
from lorafold.models import Base
from lorafold.train.config import TrainConfig
from lorafold.train.methods import METHODS
from lorafold.train.model.base import pick_device, pick_dtype
from lorafold.train.model.packing import in_4bit, packing_of, packs
from lorafold.weights import Checkpoint

_4BIT = 0.6  # bytes a weight in 4 bit, its scales and what stays in 16 bit included


def least_memory(config: TrainConfig, base: Base) -> tuple[int, int, str]:
    """Bytes of the base's weights by their headers, bytes that there are, and where."""
    method, device = METHODS[config.method], pick_device()
    room = device_room(device)[1], device.type
    tensors = Checkpoint.open(base.folder).tensors.values()
    if packing_of(base) is not None:  # it stays as it lies there
        return sum(info.nbytes for info in tensors), *room
    each: float = pick_dtype("float32" if method.peft is None else config.dtype, device).itemsize
    if packs(config, method):
        each = _4BIT if in_4bit(config) else 1
    return int(sum(math.prod(info.shape) for info in tensors) * each), *room


def device_room(device: Any) -> tuple[int, int]:
    """Bytes that are held with the model loaded, and bytes that there are for it."""
    import torch

    if device.type == "cuda":
        held = int(torch.cuda.memory_allocated(device))
        return held, int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))
    held = memory_held()
    free = memory_available()
    return held, held + free if free else 0
