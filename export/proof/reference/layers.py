"""The model that an export is held against, computed layer by layer, in memory for one layer.

transformers' own `forward` is in charge: masks, rotation, caches and what layers share are its business. Just
before a module computes, its weights are read from a source of rows, and after it they are dropped. All
conversations go through in one batch, so every weight is read once; they are filled up at the right end,
which a causal model does not see from the tokens before. The embedding gets only the rows of the tokens that
occur, and the output head is multiplied row block by row block, at the answers' tokens alone.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.proof.measured import Answers
from lorafold.export.proof.reference.blank import BlankModel
from lorafold.export.proof.reference.rounding import rounded_activations
from lorafold.export.proof.sample import AskedChat
from lorafold.libraries.causal_lm import quiet_transformers
from lorafold.machine import cores, return_free_memory
from lorafold.probabilities import log_softmax
from lorafold.weights import TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch

_AT_ONCE = 150_000_000  # bytes of weights that are in place at once, unless one parameter alone is larger
_HEAD_WEIGHTS = 1 << 22  # weights of the output head that are multiplied at once


@dataclass(frozen=True, slots=True)
class Gate:
    """A module whose weights come before it computes, and go after it.

    Attributes:
        module: the module.
        names: full names of its parameters, of all modules in it or of itself alone.
    """

    module: torch.nn.Module
    names: tuple[str, ...]


class LayeredModel:
    """A model that reads its weights while it computes.

    Args:
        config: its config.json.
        tensors: what the checkpoint holds.
        device: where it is computed.
        at_once: bytes of weights that are in place at once; a single parameter may be larger.

    Attributes:
        blank: the model without weights, and where each tensor goes.

    Raises:
        as `BlankModel`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        device: str = "cpu",
        at_once: int = _AT_ONCE,
    ) -> None:
        import torch

        self.blank = BlankModel(config, tensors, device)
        self._at_once = at_once
        self._model = self.blank.model
        self._source: TensorSource | None = None
        self._asked: torch.Tensor | None = None  # the places of the answers in the flattened batch
        head = self._model.get_output_embeddings()
        self._head = head if type(head) is torch.nn.Linear else None
        self._paths = {id(module): path for path, module in self._model.named_modules()}
        self.gates = list(self._gates("", self._model))
        for gate in self.gates:
            gate.module.register_forward_pre_hook(partial(self._come, gate))
            gate.module.register_forward_hook(partial(self._go, gate))
        for module in self._embeddings():
            module.register_forward_pre_hook(self._look_up, with_kwargs=True)
            module.register_forward_hook(self._forget)
        for module in self._model.modules():
            if type(module) is torch.nn.Linear:
                module.forward = partial(_through, module)
        if self._head is not None:
            self._head.forward = self._multiply_head

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    @property
    def largest(self) -> int:
        """Bytes of the largest gate's weights."""
        sizes = {name: 4 * each.numel() for name, each in self._model.named_parameters()}
        return max((sum(sizes.get(name, 0) for name in gate.names) for gate in self.gates), default=0)

    def answers(
        self,
        source: TensorSource,
        conversations: Sequence[AskedChat],
        width: int,
        inputs: Mapping[str, Type] | None = None,
    ) -> list[Answers]:
        """Run all conversations through the model.

        Args:
            source: its weights.
            conversations: what is read; only the tokens of the answers count.
            width: how many tokens of the vocabulary count.
            inputs: parameters whose module's input is rounded as ggml rounds it, with the types of their
                weights in the file.

        Returns:
            The answers; with `inputs` two, one without and one with rounded inputs.

        Raises:
            RuntimeError, ValueError, …: the model cannot be computed in this way (`causal_lm.REFUSALS`).
        """
        import torch

        ids, places = self.batch(conversations)
        if inputs is not None:
            ids = torch.cat([ids, ids])
            places += [ids.numel() // 2 + place for place in places]
        rounding = self._rounding(inputs or {}, ids.shape)
        with torch.no_grad(), quiet_transformers(), rounding, self.reading(source, places):
            logits = self._model(input_ids=ids.to(self.blank.device)).logits
        if self._head is None:
            logits = logits.flatten(0, 1)[self._asked]
        found = logits.reshape(len(places), -1)[:, :width].float().cpu().numpy()
        lengths = [len(each.ids) - each.start for each in conversations]
        lengths *= 1 if inputs is None else 2
        answers = _divided(found, lengths)
        return [answers] if inputs is None else [answers[: len(conversations)], answers[len(conversations) :]]

    def batch(self, conversations: Sequence[AskedChat]) -> tuple[torch.Tensor, list[int]]:
        """All conversations as one batch of ids, filled up at the end, and the places that are asked."""
        import torch

        longest = max(len(each.ids) for each in conversations)
        ids = torch.tensor([each.ids + [0] * (longest - len(each.ids)) for each in conversations])
        places = [
            row * longest + place
            for row, each in enumerate(conversations)
            for place in range(each.start - 1, len(each.ids) - 1)
        ]
        return ids, places

    @contextmanager
    def reading(self, source: TensorSource, places: Sequence[int]) -> Iterator[None]:
        """Take weights from a source for a while.

        Args:
            source: the weights.
            places: what the output head is asked, in the flattened batch.
        """
        import torch

        self._asked = torch.tensor(places, device=self.blank.device)
        self._source = source
        try:
            self.blank.fill(self.blank.buffers(), source)
            yield
        finally:
            self.blank.empty()
            self._source = None

    # Weights that come and go.

    def _gates(self, path: str, module: torch.nn.Module) -> Iterator[Gate]:
        """The largest modules that fit; embeddings and the head are left out, they are not read whole."""
        import torch

        aside = [*self._embeddings(), *([] if self._head is None else [self._head])]
        if any(module is each for each in aside):
            return
        names = self.blank.names(module, path)
        if not names:
            return
        size = sum(4 * each.numel() for each in module.parameters())
        within = set(map(id, module.modules()))
        computes = type(module).forward is not torch.nn.Module.forward
        if computes and size <= self._at_once and not any(id(each) in within for each in aside):
            yield Gate(module, tuple(names))
            return
        if own := self.blank.names(module, path, inside=False):
            yield Gate(module, tuple(own))
        for name, child in module.named_children():
            yield from self._gates(f"{path}.{name}" if path else name, child)

    def _embeddings(self) -> list[torch.nn.Module]:
        import torch

        return [module for module in self._model.modules() if isinstance(module, torch.nn.Embedding)]

    def _come(self, gate: Gate, module: torch.nn.Module, arguments: object) -> None:
        assert self._source is not None
        self.blank.fill(gate.names, self._source)

    def _go(self, gate: Gate, module: torch.nn.Module, arguments: object, result: object) -> None:
        self.blank.empty(gate.names)

    def _tensor_of(self, module: torch.nn.Module, own: str = "weight") -> str:
        """The checkpoint's tensor that is a parameter of an embedding or of the head."""
        name = f"{self._paths[id(module)]}.{own}"
        found = self.blank.tensor_of(name)
        if found is None:
            raise ValueError(f"no tensor of the checkpoint is {name}")
        return found

    def _look_up(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Put the rows of the tokens that occur in place."""
        import torch

        assert self._source is not None
        asked = arguments[0] if arguments else named["input"]
        tensor, (rows, cols) = self._tensor_of(module), module.weight.shape
        table = _untouched(rows, cols)
        for row in asked.unique().tolist():
            table[row] = self._source.rows(tensor, row, row + 1)[0]
        self.blank.put(f"{self._paths[id(module)]}.weight", torch.from_numpy(table).to(self.blank.device))

    def _forget(self, module: torch.nn.Module, arguments: object, result: object) -> None:
        self.blank.empty([f"{self._paths[id(module)]}.weight"])

    def _multiply_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output head's `forward`: logits (1, answers' tokens, vocabulary), block by block."""
        import torch

        source, head = self._source, self._head
        assert source is not None and head is not None and self._asked is not None
        if hidden.shape[:-1].numel() <= int(self._asked.max()):
            raise ValueError("the output head is not asked at every token")
        asked = hidden.reshape(-1, hidden.shape[-1])[self._asked]  # (tokens, width)
        logits = torch.empty(len(asked), head.weight.shape[0], device=self.blank.device)
        for (start, stop), weights in self.head_blocks():
            logits[:, start:stop] = product(asked, weights)
        if head.bias is not None:
            bias = source.rows(self._tensor_of(head, "bias"), 0, 1)[0]
            logits += torch.from_numpy(bias).to(self.blank.device)
        return_free_memory()
        return logits[None]

    def head_blocks(self) -> Iterator[tuple[tuple[int, int], torch.Tensor]]:
        """The output head's weights: first row, one past the last, and these rows."""
        import torch

        source, head = self._source, self._head
        assert source is not None and head is not None
        rows, cols = head.weight.shape
        step = max(_HEAD_WEIGHTS // cols, 1)
        read = partial(source.rows, self._tensor_of(head))
        blocks = ((start, min(start + step, rows)) for start in range(0, rows, step))
        for block, weights in _ahead(lambda block: read(*block), blocks):
            yield block, torch.from_numpy(weights).to(self.blank.device)

    # What a file's types do to what enters a product.

    @contextmanager
    def _rounding(self, inputs: Mapping[str, Type], shape: Sequence[int]) -> Iterator[None]:
        """Round the inputs of modules in the second half of the batch for a while."""
        import torch

        handles = []
        for path, module in self._model.named_modules():
            kinds = [inputs[name] for name in self._held(module, path) if name in inputs]
            if kinds and kinds[0] != Type.F32 and not isinstance(module, torch.nn.Embedding):
                hook = partial(_round_second_half, kinds[0], tuple(shape))
                handles.append(module.register_forward_pre_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _held(self, module: torch.nn.Module, path: str) -> list[str]:
        return self.blank.names(module, path, inside=False)


def _through(module: torch.nn.Linear, entering: torch.Tensor) -> torch.Tensor:
    """A linear layer's `forward`."""
    return product(entering, module.weight, module.bias)


def product(entering: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What `torch.nn.functional.linear` gives, in float32; on a CPU by oneDNN.

    torch itself takes MKL there, which is half as fast on AMD's processors: 95 and 190 GFLOP/s of one Zen 5
    core, on 268 tokens and weights of (4864, 896).
    """
    import torch

    if entering.device.type != "cpu" or not entering.numel() or not torch.backends.mkldnn.is_available():
        return torch.nn.functional.linear(entering, weight, bias)
    blocked = entering.contiguous().to_mkldnn()
    found: torch.Tensor = torch.nn.functional.linear(blocked, weight, bias).to_dense()
    return found


def _round_second_half(
    kind: Type, shape: tuple[int, ...], module: torch.nn.Module, arguments: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """Round the second half of what enters a module: (batch, …) or (batch · tokens, …)."""
    import torch

    if not arguments:  # the input has a name: leave it
        return None
    entering = arguments[0]
    if len(entering) not in (shape[0], shape[0] * shape[1]):
        raise ValueError(f"{len(entering)} rows enter {type(module).__name__}, which is no batch")
    half = len(entering) // 2
    rounded = rounded_activations(entering[half:], kind)
    return (torch.cat([entering[:half], rounded]), *arguments[1:])


def _untouched(rows: int, cols: int) -> NDArray[np.float32]:
    """Zeros that take memory only where something is written."""
    pages = mmap.mmap(-1, 4 * rows * cols)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # else 2 MB for each row
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(rows, cols)


def _ahead(
    read: Callable[[tuple[int, int]], NDArray[np.float32]], blocks: Iterator[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
    """Blocks with what was read for them, a few of them read ahead."""
    threads = cores()
    waiting: deque[tuple[tuple[int, int], Future[NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for block in blocks:
            waiting.append((block, pool.submit(read, block)))
            if len(waiting) > threads:
                first, found = waiting.popleft()
                yield first, found.result()
        while waiting:
            first, found = waiting.popleft()
            yield first, found.result()


def _divided(logits: NDArray[np.float32], lengths: Sequence[int]) -> Answers:
    """Log-probabilities by conversation, in the place of the logits."""
    answers = np.split(logits, np.cumsum(lengths)[:-1])
    for answer in answers:
        answer[...] = log_softmax(answer)
    return answers
