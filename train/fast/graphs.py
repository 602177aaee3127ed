"""The decoder as CUDA graphs: its thousands of small launches replayed as one.

With short steps the processor that launches kernels is slower than the GPU that runs them. A graph needs
fixed shapes, so packs are filled up to one of a few sizes; the filling is a sequence of its own that nothing
attends to and nothing is trained on. The first pass of a run is launched, filled up as well, which compiles
the kernels; after that a size is captured when it first comes.

A size has two graphs, forward and backward, between which the loss is launched: it works on the trained
positions alone, whose number changes. With gradient checkpointing the second one computes the layers again.
It adds to the gradients in the place where they lie, so they are zeroed and never made again.

All graphs work in the same memory, since no two of them run at once; each keeps only its inputs and outputs
to itself. That memory is beside the one of passes launched in the ordinary way, so graphs are for packs that
are launched more slowly than computed (`launched_slower`) and stop being made when they hold their share.
Packs so short that they have few sizes (`FEW`) are all captured and leave little to the others. If captures
fail, the run goes on without graphs.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from lorafold.train.fast.allocator import growing_segments
from lorafold.train.fast.attention import packed_inputs
from lorafold.train.tokens.collate import Batch

SHORT = 8_192  # tokens of a pack that is always captured
_LONGEST = 16_384  # and of one in a model whose layers are small
_WORK = 9.6e11  # tokens · weights of a layer that are computed in the time of its launches (docs/log.md)
FEW = 4_096  # tokens in a pack up to which there are at most 16 sizes, fewer than graphs
_SHARE = 0.5  # of the memory for passes: the other half is for those that are launched
_SHARE_OF_FEW = 0.7  # if none is launched but the first, and those that only evaluate
_FINEST = 256  # tokens between two sizes of short packs
_PARTS = 16  # sizes between a power of two and the next: at most a sixteenth is filling
_MOST = 24  # graphs; each keeps its inputs and outputs
_TRIES = (
    2  # at capturing a size: it may have kernels of its own, which the first try shows and cannot compile
)


@dataclass(slots=True)
class DecoderGraphs:
    """Graphs of a decoder by size.

    Attributes:
        decoder: of a transformers model, with varlen attention.
        device: of the model.
        attention: name of its attention.
        sums: tokens of the shortest sequence, of the two shortest, and so on to the most of a pack.
        longest: most tokens of a sequence.
        budget: most bytes that graphs may hold.
        most: tokens of the longest pack that is captured.
        fault: why captures have failed; no graph is used after that.
    """

    decoder: Any
    device: torch.device
    attention: str
    sums: list[int]
    longest: int
    budget: int
    most: int = SHORT
    fault: str = ""
    _held: int = 0
    _tries: dict[int, int] = field(default_factory=dict)
    _launched: bool = False
    _graphs: dict[int, _Pass] = field(default_factory=dict)
    _pool: Any = None

    def hidden(self, batch: Batch) -> torch.Tensor | None:
        """The decoder's output (1, size, width) for a pack, or None if the pack is not to be filled up.

        The result is overwritten by the next call.
        """
        size = filled_size(batch.tokens)
        if self.fault or size > self.most:
            return None
        inputs = self._filled(batch, size)
        if size not in self._graphs and self._launched and self._has_room(size):
            before = _reserved()
            self._capture(size, inputs)
            self._held += max(0, _reserved() - before)
        if size in self._graphs:
            return self._graphs[size](inputs)
        self._launched = True
        return self._launch(*inputs)

    def _has_room(self, size: int) -> bool:
        """Whether another graph fits: memory grows with the largest one."""
        if len(self._graphs) >= _MOST:
            return False
        largest = max(self._graphs, default=0)
        each = self._held / largest if largest else 0.0
        return self._held + each * max(0, size - largest) <= self.budget

    def _filled(self, batch: Batch, size: int) -> tuple[torch.Tensor, ...]:
        """Ids, positions and bounds of fixed shapes; after the filling come sequences of no tokens.

        They are no more than could be needed: FlashAttention holds 128 rows in float32 for each.
        """
        assert batch.position_ids is not None and batch.bounds is not None, "a packed batch"
        filling = size - batch.tokens
        ids = torch.nn.functional.pad(batch.input_ids, (0, filling))
        positions = torch.cat([batch.position_ids, torch.arange(filling)[None]], dim=1)
        bounds = torch.full((bisect.bisect_right(self.sums, size) + 2,), size, dtype=torch.int32)
        bounds[: len(batch.bounds)] = batch.bounds
        return tuple(part.to(self.device) for part in (ids, positions, bounds))

    def _launch(self, ids: torch.Tensor, positions: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        longest = max(self.longest, _step(ids.shape[1]))  # the filling is shorter than a step
        inputs = packed_inputs(positions, bounds, longest, self.attention)
        hidden: torch.Tensor = self.decoder(input_ids=ids, **inputs).last_hidden_state
        return hidden

    def _capture(self, size: int, inputs: tuple[torch.Tensor, ...]) -> None:
        """Record both passes of a size; nothing is computed, and the random generator is where it was."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        # A graph keeps the nodes that add up gradients, made on its own stream: so it is meant to be.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        # Nodes of an earlier pass that wait for the collector would draw torch's own stream into the capture.
        gc.collect()
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with _no_generator_state(self.decoder), growing_segments():
                with torch.cuda.graph(forward, pool=self._pool):
                    output = self._launch(*inputs)
                slope = torch.empty_like(output)
                with torch.cuda.graph(backward, pool=self._pool):
                    torch.autograd.backward([output], [slope])
        except RuntimeError as error:
            self._tries[size] = self._tries.get(size, 0) + 1
            if self._tries[size] == _TRIES:
                self.fault = str(error.__context__ or error).splitlines()[0][:200]
                self._graphs.clear()
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(state)  # it still believes that it is being captured
            torch.cuda.synchronize()
            return
        self._graphs[size] = _Pass(self.decoder, inputs, output.detach(), slope, forward, backward)


class _Pass:
    """Both graphs of a size, to be called like the decoder."""

    def __init__(
        self,
        decoder: Any,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
        slope: torch.Tensor,
        forward: torch.cuda.CUDAGraph,
        backward: torch.cuda.CUDAGraph,
    ) -> None:
        self.inputs, self.output, self.slope = inputs, output, slope
        self.forward, self.backward = forward, backward
        self.trained = [value for value in decoder.parameters() if value.requires_grad]
        self.places = [value.grad for value in self.trained]

    def __call__(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The output (1, size, width) for inputs of this size."""
        here = zip(self.trained, self.places, strict=True)
        assert all(value.grad is place for value, place in here), "gradients lie where they did"
        hidden: torch.Tensor = _Replay.apply(self.trained[0], self, inputs)
        return hidden


class _Replay(torch.autograd.Function):  # type: ignore[misc]
    """Replays a pass; its first argument only tells autograd that there is something to train."""

    @staticmethod
    def forward(
        ctx: Any, trained: torch.Tensor, graphs: _Pass, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        for place, value in zip(graphs.inputs, inputs, strict=True):
            place.copy_(value)
        graphs.forward.replay()
        ctx.graphs = graphs
        return graphs.output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.graphs.slope.copy_(gradients[0])
        ctx.graphs.backward.replay()
        return None, None, None


@contextlib.contextmanager
def _no_generator_state(decoder: Any) -> Iterator[None]:
    """Let checkpointed layers be captured: for the block, the generator's state is neither read nor put back.

    The graphs are made only if nothing that draws from it is computed twice (`speed.graphs_possible`).
    """
    name = "_gradient_checkpointing_func"  # of transformers, a partial of torch's `checkpoint`
    own = {module: vars(module)[name] for module in decoder.modules() if name in vars(module)}
    try:
        for module, function in own.items():
            setattr(module, name, functools.partial(function, preserve_rng_state=False))
        yield
    finally:
        for module, function in own.items():
            setattr(module, name, function)


def _reserved() -> int:
    """Bytes that torch holds of the GPU and cannot give back."""
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def launched_slower(decoder: Any) -> int:
    """Tokens of a pack up to which launching its kernels takes longer than computing them.

    Args:
        decoder: of a transformers model, with `layers` of linear layers; packed weights count as unpacked.
    """
    first = next(iter(decoder.layers))
    linear = [module for module in first.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(module.in_features * module.out_features for module in linear)
    return int(min(max(SHORT, _WORK / max(weights, 1)), _LONGEST))


def share(capacity: int) -> float:
    """Of the memory for passes, the part that graphs of packs up to a length may hold."""
    return _SHARE_OF_FEW if capacity <= FEW else _SHARE


def filled_size(tokens: int) -> int:
    """The size that a pack of so many tokens is filled up to."""
    step = _step(tokens)
    return -(-tokens // step) * step


def _step(tokens: int) -> int:
    """Tokens between one size and the next."""
    return int(max(_FINEST, 2 ** (tokens.bit_length() - 1) // _PARTS))
