"""The importance matrices of the model that is being exported, base + adapter: on the user's texts, and on
general ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.errors import InputError
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.imatrix.texts import Texts, check_text
from lorafold.export.inputs import Inputs
from lorafold.export.proof.reference.answers import LayeredReference, config_of
from lorafold.export.proof.reference.blank import BlankModel
from lorafold.libraries.causal_lm import REFUSALS, told
from lorafold.machine import memory_available
from lorafold.progress import Progress

if TYPE_CHECKING:
    import torch

_ELSEWHERE = "collect one elsewhere (llama-imatrix on an F16 export), and pass it with --imatrix"


def check_can_collect(inputs: Inputs, data: Path) -> None:
    """See before any work whether a matrix can be collected.

    Raises:
        InputError: the file is missing or holds no text, or the model cannot be run on this machine.
    """
    check_text(inputs, data)
    if reason := LayeredReference.obstacle(inputs) or _too_large(inputs):
        raise InputError(
            f"no importance matrix can be collected here: {reason}", at="--imatrix-data", fix=_ELSEWHERE
        )


def _too_large(inputs: Inputs) -> str | None:
    needed = sum(4 * math.prod(info.shape) for info in inputs.source.tensors.values())
    free = memory_available()
    if not free or needed <= 0.7 * free:
        return None
    return f"the model needs {needed / 1e9:.0f} GB in float32 and {free / 1e9:.0f} GB are free"


@dataclass(frozen=True, slots=True)
class Matrices:
    """Two importance matrices of one model.

    Attributes:
        own: of the user's texts.
        general: of the general ones.
    """

    own: Imatrix
    general: Imatrix


def collect_both(
    inputs: Inputs, tensors: Sequence[MappedTensor], texts: Texts, progress: Progress
) -> Matrices:
    """Run both kinds of text through base + adapters and sum up what enters every weight.

    Args:
        inputs: the model.
        tensors: its GGUF tensors.
        texts: what is read.
        progress: told the tokens done.

    Raises:
        InputError: transformers cannot run the model.
        SystemFault: torch is not installed.
    """
    model = folded_model(inputs)
    own = collect(model, tensors, texts.own, dataset=texts.name, progress=progress)
    return Matrices(own, collect(model, tensors, texts.general, dataset="general", progress=progress))


def folded_model(inputs: Inputs) -> torch.nn.Module:
    """transformers' model with the weights of the fold: any base that can be read, any adapters.

    Raises:
        InputError: transformers does not know it, or has no place for its weights.
    """
    try:
        blank = BlankModel(config_of(inputs), inputs.source.tensors)
        blank.fill([*blank.names(blank.model, ""), *blank.buffers()], inputs.source)
    except REFUSALS as error:
        raise InputError(
            f"transformers cannot run it ({type(error).__name__}: {told(error)})",
            at=inputs.base.folder,
            fix=_ELSEWHERE,
        ) from error
    model: torch.nn.Module = blank.model
    return model
