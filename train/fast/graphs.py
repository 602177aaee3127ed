"""The decoder as CUDA graphs: its thousands of small launches replayed as one.

With short steps the processor that launches kernels is slower than the GPU that runs them. A graph needs
fixed shapes, so packs are filled up to one of a few sizes; the filling is a sequence of its own that nothing
attends to and nothing is trained on. A size is captured when it comes for the second time.

A graph's memory is its own, beside that of passes launched in the ordinary way, so graphs are for short steps
(`SHORT`) and stop being made when they hold their share of the memory (`SHARE`).

Only the decoder is captured: the loss works on the trained positions alone, whose number changes. If a
capture fails, the run goes on without graphs.
"""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

from lorafold.train.fast.attention import packed_inputs
from lorafold.train.tokens.collate import Batch

SHORT = 8_192  # tokens of a step up to which launching takes longer than computing (docs/log.md)
SHARE = 0.5  # of the memory for passes: the other half is for those that are launched
_FINEST = 256  # tokens between two sizes of short packs
_PARTS = 16  # sizes between a power of two and the next: at most a sixteenth is filling
_MOST = 24  # graphs; each keeps its inputs and outputs
_WARM = 1  # passes before a capture, in which kernels are compiled


@dataclass(slots=True)
class DecoderGraphs:
    """Graphs of a decoder by size.

    Attributes:
        decoder: of a transformers model, with varlen attention.
        device: of the model.
        attention: name of its attention.
        examples: most sequences in a pack.
        longest: most tokens of a sequence.
        budget: most bytes that graphs may hold; none after a capture has failed.
        fault: why a capture has failed.
    """

    decoder: Any
    device: torch.device
    attention: str
    examples: int
    longest: int
    budget: int
    fault: str = ""
    _held: int = 0
    _seen: dict[int, int] = field(default_factory=dict)
    _graphs: dict[int, Any] = field(default_factory=dict)
    _pool: Any = None

    def hidden(self, batch: Batch) -> torch.Tensor | None:
        """The decoder's output (1, size, width) for a pack, or None if this size has no graph.

        The result is overwritten by the next call.
        """
        if self.fault:  # the generator has another state now than the graphs were captured with
            return None
        size = filled_size(batch.tokens)
        self._seen[size] = self._seen.get(size, 0) + 1
        if size not in self._graphs:
            if self._seen[size] < 2 or len(self._graphs) >= _MOST or not self._has_room(size):
                return None
            before = _reserved()
            drawn = torch.cuda.get_rng_state(self.device)
            graph = self._capture(self._filled(batch, size))
            # Warming up has drawn too; this pass is to drop what it would with the graph there already.
            torch.cuda.set_rng_state(drawn, self.device)
            if graph is None:
                return None
            self._graphs[size] = graph
            self._held += max(0, _reserved() - before)
        return self._graphs[size](*self._filled(batch, size))

    def _has_room(self, size: int) -> bool:
        """Whether another graph fits: the first one tells what a token takes."""
        if size > SHORT:
            return False
        each = self._held / sum(self._graphs) if self._graphs else 0.0
        return self._held + each * size <= self.budget

    def _filled(self, batch: Batch, size: int) -> tuple[torch.Tensor, ...]:
        """Ids, positions and bounds of fixed shapes; after the filling come sequences of no tokens."""
        assert batch.position_ids is not None and batch.bounds is not None, "a packed batch"
        filling = size - batch.tokens
        ids = torch.nn.functional.pad(batch.input_ids, (0, filling))
        positions = torch.cat([batch.position_ids, torch.arange(filling)[None]], dim=1)
        bounds = torch.full((self.examples + 2,), size, dtype=torch.int32)
        bounds[: len(batch.bounds)] = batch.bounds
        return tuple(part.to(self.device) for part in (ids, positions, bounds))

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> Any:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        longest = max(self.longest, _step(2 * SHORT))  # the filling is shorter than a step
        part = _Decoder(self.decoder, self.attention, longest)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.clone_state()
        # A graph keeps the nodes that add up gradients, made on its own stream: so it is meant to be.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        # Nodes of an earlier pass that wait for the collector would draw torch's own stream into the capture.
        gc.collect()
        try:
            return torch.cuda.make_graphed_callables(part, inputs, num_warmup_iters=_WARM, pool=self._pool)
        except RuntimeError as error:
            self.fault = str(error.__context__ or error).splitlines()[0][:200]
        generator.graphsafe_set_state(state)  # the generator still believes that it is being captured
        torch.cuda.synchronize()
        return None


class _Decoder(torch.nn.Module):  # type: ignore[misc]
    """The decoder as a function of tensors alone."""

    def __init__(self, decoder: Any, attention: str, longest: int) -> None:
        super().__init__()
        self.decoder, self.attention, self.longest = decoder, attention, longest

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, bounds: torch.Tensor
    ) -> torch.Tensor:
        inputs = packed_inputs(position_ids, bounds, self.longest, self.attention)
        output = self.decoder(input_ids=input_ids, **inputs)
        return output.last_hidden_state


def _reserved() -> int:
    """Bytes that torch holds of the GPU and cannot give back."""
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def filled_size(tokens: int) -> int:
    """The size that a pack of so many tokens is filled up to."""
    step = _step(tokens)
    return -(-tokens // step) * step


def _step(tokens: int) -> int:
    """Tokens between one size and the next."""
    return int(max(_FINEST, 2 ** (tokens.bit_length() - 1) // _PARTS))
