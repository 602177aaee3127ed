"""What base + adapter answers, the base alone, and base + adapter rounded as a file is, in two ways.

Layer by layer (`LayeredReference`): transformers' model, weights from the fold, memory for one layer. As a
whole (`WholeReference`): the base in transformers, PEFT's adapter beside it, memory for all of it. What each
way cannot do is an `InputError`, and then the other one is asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import TypedTensor
from lorafold.export.inputs import Inputs
from lorafold.export.proof.measured import Answers
from lorafold.export.proof.reference.blank import model_class
from lorafold.export.proof.reference.layers import LayeredModel
from lorafold.export.proof.reference.rounding import BLOCK, RoundedSource, parameters_of, round_weights
from lorafold.export.proof.reference.whole import (
    OWN_CODE,
    load_base,
    missing_packages,
    why_no_reference,
    with_adapter,
)
from lorafold.export.proof.sample import AskedChat
from lorafold.export.quant.mixture import Importance
from lorafold.libraries.causal_lm import REFUSALS, told
from lorafold.machine import memory_available
from lorafold.packed.formats import without_packing
from lorafold.probabilities import log_softmax
from lorafold.weights import TensorSource

if TYPE_CHECKING:
    import torch

ReferenceWay = Literal["auto", "layers", "peft"]
"""How the answers are computed; auto: in the first way that can."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """How base + adapter answers with a file's types.

    Attributes:
        weights_only: with rounded weights; None if the file rounds nothing.
        both: with rounded weights, and rounded activations as ggml multiplies them.
        missing: the share of the file's weights that have no place in transformers' model.
    """

    weights_only: Answers | None
    both: Answers
    missing: float


class ProofReference(Protocol):
    """A way to compute the answers."""

    @property
    def words(self) -> str:
        """What computes them, for people."""

    def answers(self, conversations: Sequence[AskedChat]) -> tuple[Answers, Answers | None]:
        """Those of base + adapter and of the base alone; without an adapter of the base, and None.

        Raises:
            InputError: it cannot be computed in this way.
        """

    def rounded(
        self, tensors: Sequence[TypedTensor], conversations: Sequence[AskedChat], tuned: Answers
    ) -> Rounded:
        """Those of base + adapter, rounded as a file is.

        Args:
            tensors: all tensors of the file.
            conversations: as for `answers`.
            tuned: what `answers` gave.

        Raises:
            InputError: it cannot be computed in this way.
        """


class LayeredReference:
    """transformers' own model, whose weights come from the fold, a layer at a time.

    Args:
        inputs: base and adapters.
        width: tokens that the files know; an embedding may have more rows.
        imatrix: the importance weights of the export.

    Raises:
        InputError: the model is not in transformers, or memory for a layer is not free.
    """

    words = "transformers, layer by layer, with the weights of the fold"

    @staticmethod
    def obstacle(inputs: Inputs) -> str | None:
        """See `OpensReference.obstacle`."""
        if inputs.config.get("auto_map"):
            return OWN_CODE
        return missing_packages("torch", "transformers", "accelerate")

    @staticmethod
    def prepare(inputs: Inputs) -> None:
        """See `OpensReference.prepare`."""
        with suppress(*REFUSALS):
            model_class(config_of(inputs))

    def __init__(self, inputs: Inputs, width: int, imatrix: Importance | None) -> None:
        import torch

        source = inputs.source
        self._source = source
        self._exact = source.exact
        self._base = BaseAlone(self._exact) if inputs.adapters else None
        self._width = width
        self._imatrix = imatrix
        with self._refusals():
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._model = LayeredModel(config_of(inputs), self._exact.tensors, device)
        needed, free = 2 * self._model.largest, memory_available()
        if free and needed > 0.7 * free:
            raise InputError(
                f"one layer needs {needed / 1e9:.0f} GB in float32, and {free / 1e9:.0f} are free",
                fix="close other programs",
            )

    def answers(self, conversations: Sequence[AskedChat]) -> tuple[Answers, Answers | None]:
        """See `ProofReference.answers`."""
        tuned = self._read(self._exact, conversations)
        return tuned, None if self._base is None else self._read(self._base, conversations)

    def tuned(self, conversations: Sequence[AskedChat]) -> Answers:
        """The first of `answers` alone."""
        return self._read(self._exact, conversations)

    def in_types(self, tensors: Sequence[TypedTensor], conversations: Sequence[AskedChat]) -> Answers:
        """Base + adapter with the weights rounded as a file's types round them, and nothing else.

        Args:
            tensors: all tensors of the file.
            conversations: as for `answers`.

        Raises:
            InputError: it cannot be computed in this way.
        """
        return self._read(RoundedSource(tensors, self._source, self._exact, self._imatrix), conversations)

    def rounded(
        self, tensors: Sequence[TypedTensor], conversations: Sequence[AskedChat], tuned: Answers
    ) -> Rounded:
        """See `ProofReference.rounded`."""
        source = RoundedSource(tensors, self._source, self._exact, self._imatrix)
        if not source.weights:
            return Rounded(None, tuned, 0.0)
        blank = self._model.blank
        targets = blank.targets
        total = sum(source.weights.values())
        found = sum(count for name, count in source.weights.items() if name in targets)
        inputs = {
            same: kind
            for name, kind in source.types.items()
            for target in targets.get(name, ())
            for same in blank.tied(target)
        }
        with self._refusals():
            weights_only, both = self._model.answers(source, conversations, self._width, inputs)
        return Rounded(weights_only, both, 1 - found / total)

    def _read(self, source: TensorSource, conversations: Sequence[AskedChat]) -> Answers:
        with self._refusals():
            (answers,) = self._model.answers(source, conversations, self._width)
            return answers

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except REFUSALS as error:
            problem = f"transformers cannot compute it layer by layer ({type(error).__name__}: {told(error)})"
            raise InputError(problem, fix="update transformers") from error


def config_of(inputs: Inputs) -> dict[str, Any]:
    """The base's config.json, read again, with what adapters change of it: vocabulary, and a head untied."""
    config = without_packing(inputs.base.config())
    for name in ("vocab_size", "tie_word_embeddings"):
        if name in inputs.config:
            config[name] = inputs.config[name]
    text, now = config.get("text_config"), inputs.config.get("text_config")
    if isinstance(text, dict) and isinstance(now, dict) and "vocab_size" in now:
        config["text_config"] = {**text, "vocab_size": now["vocab_size"]}
    return config


class BaseAlone:
    """The base under the names and shapes that its adapters leave; a `TensorSource`.

    An untied head has the embedding's rows. Rows of new tokens are the mean of those that the base knows, as
    transformers begins them.

    Args:
        folded: the base with its adapters.
    """

    def __init__(self, folded: Folded) -> None:
        self.tensors = folded.tensors
        self._folded = folded
        self._means: dict[str, NDArray[np.float32]] = {}

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """See `TensorSource.rows`."""
        base, origin = self._folded.base, self._folded.origin(name)
        known = base.tensors[origin].rows
        rows = base.rows(origin, min(start, known), min(stop, known))
        if stop <= known:
            return rows
        mean = np.broadcast_to(self._mean(origin), (stop - max(start, known), rows.shape[1]))
        return np.concatenate([rows, mean])

    def _mean(self, name: str) -> NDArray[np.float32]:
        if name not in self._means:
            info = self._folded.base.tensors[name]
            step = max(BLOCK // info.cols, 1)
            starts = range(0, info.rows, step)
            blocks = (self._folded.base.rows(name, at, min(at + step, info.rows)) for at in starts)
            total = sum(block.sum(0, dtype=np.float64) for block in blocks)
            self._means[name] = np.asarray(total / info.rows, np.float32)
        return self._means[name]


class WholeReference:
    """The base in transformers, and PEFT's adapter beside it, not merged.

    Args:
        inputs: base and adapters.
        width: tokens that the files know; an embedding may have more rows.
        imatrix: the importance weights of the export.

    Raises:
        InputError: the model or the adapter cannot be loaded.
    """

    words = "transformers and PEFT, as a whole"

    @staticmethod
    def obstacle(inputs: Inputs) -> str | None:
        """See `OpensReference.obstacle`."""
        return why_no_reference(inputs)

    @staticmethod
    def prepare(inputs: Inputs) -> None:
        """See `OpensReference.prepare`."""
        with suppress(*REFUSALS):
            importlib.import_module("peft")

    def __init__(self, inputs: Inputs, width: int, imatrix: Importance | None) -> None:
        source = inputs.source
        self._inputs = inputs
        self._exact = source.exact
        self._width = width
        self._imatrix = imatrix

    def answers(self, conversations: Sequence[AskedChat]) -> tuple[Answers, Answers | None]:
        """See `ProofReference.answers`."""
        plain = load_base(self._inputs)
        if not self._inputs.adapters:
            return self._run(plain, conversations), None
        base = self._run(plain, conversations)
        return self._run(with_adapter(plain, self._inputs), conversations), base

    def rounded(
        self, tensors: Sequence[TypedTensor], conversations: Sequence[AskedChat], tuned: Answers
    ) -> Rounded:
        """See `ProofReference.rounded`; the model is loaded again, since rounding changes it for good."""
        plain = load_base(self._inputs)
        parameters = parameters_of(plain)
        whole = with_adapter(plain, self._inputs)
        change = round_weights(whole, parameters, tensors, self._inputs.source, self._exact, self._imatrix)
        if not change.weights:
            return Rounded(None, tuned, 0.0)
        weights_only = self._run(whole, conversations)
        change.round_activations()
        return Rounded(weights_only, self._run(whole, conversations), change.missing)

    def _run(self, model: torch.nn.Module, conversations: Sequence[AskedChat]) -> Answers:
        import torch

        with torch.inference_mode():
            logits = (
                model(input_ids=torch.tensor([s.ids])).logits[0, s.start - 1 : -1] for s in conversations
            )
            return [log_softmax(each[:, : self._width].float().numpy()) for each in logits]


class OpensReference(Protocol):
    """The class of a reference."""

    words: str

    def obstacle(self, inputs: Inputs) -> str | None:
        """Why it cannot be computed here, as far as that is seen without torch; or None."""

    def prepare(self, inputs: Inputs) -> None:
        """Import its libraries; what does not work will be said by who needs them."""

    def __call__(self, inputs: Inputs, width: int, imatrix: Importance | None) -> ProofReference:
        """Open it."""


WAYS: dict[ReferenceWay, tuple[OpensReference, ...]] = {
    "auto": (LayeredReference, WholeReference),
    "layers": (LayeredReference,),
    "peft": (WholeReference,),
}
"""What is tried, in this order."""
