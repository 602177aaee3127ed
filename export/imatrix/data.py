"""The importance matrices of the model that is being exported, base + adapter: on the user's texts, and on
general ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.errors import InputError
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect, collect_by_layer
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.imatrix.mixture import mixed
from lorafold.export.imatrix.texts import Texts, check_text
from lorafold.export.inputs import Inputs
from lorafold.export.proof.reference.answers import LayeredReference, config_of
from lorafold.export.proof.reference.blank import BlankModel
from lorafold.export.quant.mixture import Importance
from lorafold.libraries.causal_lm import REFUSALS, told
from lorafold.machine import memory_available
from lorafold.progress import Progress

if TYPE_CHECKING:
    import torch

    from lorafold.export.proof.reference.layers import LayeredModel

_WHOLE = 1e9  # bytes of float32 weights; larger models are run a layer at a time
_ELSEWHERE = "collect one elsewhere (llama-imatrix on an F16 export), and pass it with --imatrix"


def check_can_collect(inputs: Inputs, data: Path) -> None:
    """See before any work whether a matrix can be collected.

    Raises:
        InputError: the file is missing or holds no text, or the model cannot be run on this machine.
    """
    check_text(inputs, data)
    if reason := LayeredReference.obstacle(inputs):
        raise InputError(
            f"no importance matrix can be collected here: {reason}", at="--imatrix-data", fix=_ELSEWHERE
        )


@dataclass(frozen=True, slots=True)
class Matrices:
    """Two importance matrices of one model.

    Attributes:
        own: of the user's texts.
        general: of the general ones.
    """

    own: Imatrix
    general: Imatrix

    def mixed(self, share: float) -> Imatrix:
        """Both, with this share of the user's texts; see `mixture.mixed`."""
        return mixed(self.own, self.general, share)


def weights_of(matrix: Imatrix, tensors: Iterable[MappedTensor]) -> Importance:
    """A matrix as the weights of a model's tensors.

    Raises:
        InputError: it is of another model.
    """
    return matrix.weights([(tensor.name, tensor.shape) for tensor in tensors])


def collect_both(
    inputs: Inputs,
    tensors: Sequence[MappedTensor],
    texts: Texts,
    progress: Progress,
    whole: float = _WHOLE,
) -> Matrices:
    """Run both kinds of text through base + adapters and sum up what enters every weight.

    Args:
        inputs: the model.
        tensors: its GGUF tensors.
        texts: what is read.
        progress: told the tokens done.
        whole: bytes of float32 weights that are held at once; a larger model is run a layer at a time, in
            memory for one layer, unless transformers cannot do that.

    Raises:
        InputError: transformers cannot run the model.
        SystemFault: torch is not installed.
    """
    named = ((texts.own, texts.name), (texts.general, "general"))
    needed = 4 * inputs.parameters
    room = 0.7 * (memory_available() or math.inf)
    if needed > min(whole, room):
        try:
            with _refusals(inputs):
                layers = layered_model(inputs)
                return Matrices(
                    *(
                        collect_by_layer(layers, inputs.source, tensors, ids, dataset=name, progress=progress)
                        for ids, name in named
                    )
                )
        except InputError:
            if needed > room:
                raise
    model = folded_model(inputs)
    return Matrices(*(collect(model, tensors, ids, dataset=name, progress=progress) for ids, name in named))


def layered_model(inputs: Inputs) -> LayeredModel:
    """transformers' model, into which the weights of the fold come a layer at a time.

    Raises:
        InputError: transformers does not know it, or has no place for its weights.
    """
    from lorafold.export.proof.reference.layers import LayeredModel

    with _refusals(inputs):
        return LayeredModel(config_of(inputs), inputs.source.tensors)


def folded_model(inputs: Inputs) -> torch.nn.Module:
    """transformers' model with the weights of the fold: any base that can be read, any adapters.

    Raises:
        InputError: transformers does not know it, or has no place for its weights.
    """
    with _refusals(inputs):
        blank = BlankModel(config_of(inputs), inputs.source.tensors)
        blank.fill([*blank.names(blank.model, ""), *blank.buffers()], inputs.source)
    model: torch.nn.Module = blank.model
    return model


@contextmanager
def _refusals(inputs: Inputs) -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        raise InputError(
            f"transformers cannot run it ({type(error).__name__}: {told(error)})",
            at=inputs.base.folder,
            fix=_ELSEWHERE,
        ) from error
