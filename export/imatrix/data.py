"""An importance matrix for the model that is being exported, collected on the user's own texts.

The matrix is that of base + adapter. Chats are rendered and tokenized as in training, so it weighs what the
model will see in use; a plain text is cut into chunks of `CHUNK_TOKENS` tokens, as llama-imatrix does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.proof.reference.answers import LayeredReference, config_of
from lorafold.export.proof.reference.blank import BlankModel
from lorafold.libraries.causal_lm import REFUSALS, told
from lorafold.machine import memory_available
from lorafold.progress import Progress
from lorafold.records.chats import read_chats
from lorafold.tokenizer.loading import load_tokenizer

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

CHUNK_TOKENS = 512  # tokens; llama-imatrix's default
MOST_CHUNKS = 1000  # more texts hardly move the means any more
_ELSEWHERE = "collect one elsewhere (llama-imatrix on an F16 export), and pass it with --imatrix"


def check_can_collect(inputs: Inputs, data: Path) -> None:
    """See before any work whether a matrix can be collected.

    Raises:
        InputError: the file is missing or holds no text, or the model cannot be run on this machine.
    """
    next(_sequences(inputs, data), None)
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


def collect_importance(
    inputs: Inputs, tensors: Sequence[MappedTensor], data: Path, progress: Progress
) -> Imatrix:
    """Run the texts through base + adapters and sum up what enters every weight.

    Args:
        inputs: the model.
        tensors: its GGUF tensors.
        data: the texts.
        progress: told the tokens done.

    Raises:
        InputError: there is no text in the file, or transformers cannot run the model.
        SystemFault: torch is not installed.
    """
    sequences = list(_sequences(inputs, data))
    return collect(folded_model(inputs), tensors, sequences, dataset=data.name, progress=progress)


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


def _sequences(inputs: Inputs, data: Path) -> Iterator[list[int]]:
    """Token ids, chunk by chunk."""
    found = 0
    for ids in _texts(inputs, data):
        for start in range(0, len(ids), CHUNK_TOKENS):
            if found == MOST_CHUNKS:
                return
            found += 1
            yield ids[start : start + CHUNK_TOKENS]
    if not found:
        raise InputError("there is no text in it", at=data, fix="pass plain text, or chats as JSON lines")


def _texts(inputs: Inputs, data: Path) -> Iterator[list[int]]:
    """Token ids of every chat and every plain text."""
    chats: ChatTokenizer | None = None
    plain: Tokenizer | None = None
    for example in read_chats(data, text="whole"):
        if example.text is None:
            chats = chats or ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
            yield chats.encode_chat(example.messages).ids
        else:
            plain = plain or _plain_tokenizer(inputs.tokenizer)
            ids: list[int] = plain.encode(example.text, add_special_tokens=False).ids
            yield ids


def _plain_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("there is no tokenizer.json to cut the text with", at=folder, fix="add one")
    return load_tokenizer(path)
