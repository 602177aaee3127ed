"""Base + adapter as it is asked while a mixture is chosen: its gradients, and its distance from mixtures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lorafold.errors import InputError
from lorafold.export.gguf.header import place_tensors
from lorafold.export.inputs import Inputs
from lorafold.export.proof.measured import Answers, PerToken, kl
from lorafold.export.proof.reference.answers import LayeredReference, config_of
from lorafold.export.proof.reference.gradients import GradientModel, Watch
from lorafold.export.proof.reference.rounding import RoundedSource
from lorafold.export.proof.sample import HELD_LOGITS, AskedChat, evenly
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.survey import TypedModel
from lorafold.libraries.causal_lm import REFUSALS, told
from lorafold.machine import memory_available


class MeasuredModel:
    """transformers' model with the weights of the fold, a layer at a time.

    Args:
        inputs: base and adapters.

    Attributes:
        exact: the weights, without a rounding on the way.
        vocabulary: how many tokens the model knows.

    Raises:
        InputError: the model cannot be computed here, or a layer does not fit into memory.
    """

    def __init__(self, inputs: Inputs) -> None:
        obstacle = LayeredReference.obstacle(inputs)
        if obstacle is not None:
            raise InputError(
                obstacle, fix="leave out what asks the model, or export on a machine that has it"
            )
        import torch

        self._source = inputs.source
        self.exact = inputs.source.exact
        with _refusals():
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._model = GradientModel(config_of(inputs), self.exact.tensors, device)
        self.vocabulary = self._model.vocabulary
        needed, free = 2 * self._model.largest_layer, memory_available()
        if free and needed > 0.7 * free:
            raise InputError(
                f"a layer takes {needed / 1e6:,.0f} MB on the way back, and {free / 1e6:,.0f} are free",
                fix="close other programs, or leave out what asks the model",
            )
        self._tuned: tuple[Sequence[AskedChat], Answers] | None = None  # what was asked last

    def gradients(self, chats: Sequence[AskedChat], watch: Watch) -> int:
        """See `GradientModel.gradients`.

        Raises:
            InputError: the model cannot be differentiated layer by layer.
        """
        with _refusals():
            return self._model.gradients(self.exact, chats, watch)

    def distance(
        self, model: TypedModel, chats: Sequence[AskedChat], imatrix: Importance | None = None
    ) -> float:
        """Mean of `distances`."""
        return self.distances(model, chats, imatrix).mean

    def distances(
        self, model: TypedModel, chats: Sequence[AskedChat], imatrix: Importance | None = None
    ) -> PerToken:
        """KL of a mixture from base + adapter at each token of the answers, in nats.

        Args:
            model: tensors with their types.
            chats: what is asked; the same object again is answered by base + adapter only once.
            imatrix: importance weights by tensor, with which it is rounded.
        """
        rounded = RoundedSource(place_tensors(list(model)), self._source, self.exact, imatrix)
        with _refusals():
            if self._tuned is None or self._tuned[0] is not chats:
                self._tuned = chats, self._model.answers(self.exact, chats, self.vocabulary)[0]
            (answers,) = self._model.answers(rounded, chats, self.vocabulary)
        return PerToken(kl(self._tuned[1], answers))


def held_at_once(chats: Sequence[AskedChat], vocabulary: int, share: float = 1.0) -> list[AskedChat]:
    """So many of the chats, evenly spread, that the logits of their answers can be held; one at least.

    Args:
        chats: in their order.
        vocabulary: tokens that the model knows.
        share: of all logits that are held.
    """
    tokens = max(int(HELD_LOGITS * share) // vocabulary, 64)
    for count in range(len(chats), 1, -1):
        picked = evenly(chats, count)
        if sum(len(each.ids) - each.start for each in picked) <= tokens:
            return picked
    return list(chats[:1])


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        problem = f"transformers cannot compute it layer by layer ({type(error).__name__}: {told(error)})"
        raise InputError(problem, fix="update transformers") from error
