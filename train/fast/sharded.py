"""The base's frozen weights, a part of each layer on every worker, collected when the layer computes.

There are two rooms, each as large as a layer. While one layer computes in its room, the parts of the next
one come into the other from all workers. Which room a layer's weights lie in never changes, and nothing is
allocated on the way, so passes can be captured as CUDA graphs (`graphs.py`), which those of torch's
`fully_shard` cannot.

A layer's bytes, whatever their types; each weight begins at a multiple of `_ALIGNED`, and so does each part:

    | weight | weight | …   | filling |
    | part of worker 0 | part of worker 1 |
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lorafold.errors import UsageError
from lorafold.train.config import TrainConfig
from lorafold.train.fast.forward import causal_model
from lorafold.train.workers import Workers

_MOST_WHOLE = 0.5  # of a GPU that the base may take whole on each, if nothing is said
_ALIGNED = 256  # bytes: kernels read weights in wide pieces


def choose_sharing(config: TrainConfig, needed: int, room: int, count: int) -> tuple[bool, str]:
    """Whether the base is shared out among GPUs, and why, in words.

    Whole on each it is the faster way, by some 5% (docs/benchmarks.md). It is shared out if whole it would
    leave too little for what is computed.

    Args:
        config: of the run; its `fsdp` wins.
        needed: bytes of the base's weights.
        room: bytes that there are on the GPU of the worker that has least.
        count: workers.
    """
    whole = config.method == "full" or config.device_map or needed <= _MOST_WHOLE * room
    shared = not whole if config.fsdp is None else config.fsdp
    size = f"{needed / 2**30:.1f} of {room / 2**30:.1f} GiB"
    if shared:
        return True, f"{count} GPUs share the base's weights, which take {size} (--no-fsdp: whole on each)"
    return False, f"each of {count} GPUs has the base's weights whole, {size} of it (--fsdp: shared)"


def shard(model: Any, workers: Workers, device: torch.device) -> None:
    """Share the frozen weights of each decoder layer out among the workers, in place.

    Args:
        model: a causal language model with peft's adapter; trained parameters stay whole.
        workers: the place of this one.
        device: of this worker; what is not shared out moves there.

    Raises:
        UsageError: there is one worker.
    """
    if workers.count == 1:
        problem = "there is only one worker"
        raise UsageError(problem, at="--fsdp", fix="start it with torchrun")
    ShardedLayers(causal_model(model).base_model, workers, device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != device.type:
            tensor.data = tensor.data.to(device)


class ShardedLayers:
    """Frozen weights of a decoder's layers, shared out among workers.

    A pass must go through the layers alike on every worker. What is trained stays whole, and so does a weight
    that several layers share.

    Args:
        decoder: of a transformers model, with `layers`; changed in place.
        workers: the place of this one.
        device: of this worker.
    """

    def __init__(self, decoder: Any, workers: Workers, device: torch.device) -> None:
        layers = list(decoder.layers)
        owners = Counter(id(value) for layer in layers for value in layer.parameters())
        frozen = [
            [value for value in layer.parameters() if not value.requires_grad and owners[id(value)] == 1]
            for layer in layers
        ]
        sizes = [_aligned(sum(map(_room_of, values)), workers.count * _ALIGNED) for values in frozen]
        rooms = [
            torch.empty(max(sizes[parity::2], default=0), dtype=torch.uint8, device=device)
            for parity in (0, 1)
        ]
        self._places = [rooms[number % 2][:size] for number, size in enumerate(sizes)]
        self._parts = [
            _keep_part(values, place, workers) for values, place in zip(frozen, self._places, strict=True)
        ]
        self._there = [-1, -1]  # the layer whose weights are in a room, or on their way
        self._arriving: list[torch.cuda.Event | None] = [None, None]
        self._back = False  # the pass has turned: layers are gone through from the last to the first
        self._sloped = [False] * len(layers)  # whether the backward pass reaches a layer
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        decoder.register_forward_pre_hook(self._begin)
        for number, layer in enumerate(layers):
            # torch.compile, which takes a layer at a time, is to leave these as they are.
            enter, leave = (functools.partial(hook, number) for hook in (self._enter, self._leave))
            layer.register_forward_pre_hook(torch.compiler.disable(enter))
            layer.register_forward_hook(torch.compiler.disable(leave))

    def _begin(self, decoder: Any, inputs: Any) -> None:
        """Forget what is in the rooms: a graph collects all that it needs, whatever came before it."""
        self._there, self._arriving = [-1, -1], [None, None]
        self._back = False

    def _enter(self, number: int, layer: Any, inputs: Any) -> None:
        """Before a layer computes, for the first time or again for gradient checkpointing."""
        self._need(number)

    def _leave(self, number: int, layer: Any, inputs: Any, output: Any) -> None:
        """The gradient of what a layer gives is there just before the layer's own backward pass."""
        hidden = output[0] if isinstance(output, tuple) else output
        self._sloped[number] = hidden.requires_grad
        if hidden.requires_grad:
            hidden.register_hook(functools.partial(self._turn, number))

    def _turn(self, number: int, slope: torch.Tensor) -> None:
        self._back = True
        self._need(number)

    def _need(self, number: int) -> None:
        """Have a layer's weights in their room, and the next one's on their way."""
        self._collect(number)
        event = self._arriving[number % 2]
        if event is not None:
            torch.cuda.current_stream().wait_event(event)
            self._arriving[number % 2] = None
        following = number - 1 if self._back else number + 1
        # What no one will wait for must not be on its way at the end of a capture.
        if 0 <= following < len(self._parts) and (not self._back or self._sloped[following]):
            self._collect(following)

    def _collect(self, number: int) -> None:
        """Begin to collect a layer's weights, unless they are there, once all that was launched is done."""
        if self._there[number % 2] == number:
            return
        self._there[number % 2] = number
        place, part = self._places[number], self._parts[number]
        if self._stream is None:
            _gather(place, part)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _gather(place, part)
        self._arriving[number % 2] = self._stream.record_event()


def _keep_part(values: Sequence[Any], place: torch.Tensor, workers: Workers) -> torch.Tensor:
    """Move the weights of a layer into their room, and return the bytes of this worker's part of them."""
    whole = torch.zeros(place.shape, dtype=torch.uint8)
    start = 0
    for value in values:
        own = value.data.as_subclass(torch.Tensor)
        end = start + own.nbytes
        whole[start:end] = own.contiguous().flatten().view(torch.uint8).cpu()
        value.data = place[start:end].view(own.dtype).view(own.shape)
        if getattr(value, "CB", None) is not None:  # by which bitsandbytes' 8-bit layers compute
            value.CB = value.data
        start += _room_of(value)
    return whole.view(workers.count, -1)[workers.rank].to(place.device, copy=True)


def _gather(whole: torch.Tensor, part: torch.Tensor) -> None:
    """Put the parts of all workers side by side; torch 2.13 has given it a new name."""
    name = (
        "all_gather_single" if hasattr(torch.distributed, "all_gather_single") else "all_gather_into_tensor"
    )
    getattr(torch.distributed, name)(whole, part)


def _room_of(value: Any) -> int:
    """Bytes that a weight takes in its room."""
    return _aligned(value.numel() * value.element_size(), _ALIGNED)


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to
