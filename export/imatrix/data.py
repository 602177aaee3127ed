"""An importance matrix for the model that is being exported, collected on the user's own texts.

The matrix is that of base + adapter. Chats are rendered and tokenized as in training, so it weighs what the
model will see in use; a plain text is cut into chunks of `CHUNK_TOKENS` tokens, as llama-imatrix does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.arch.table import find
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.proof.reference.whole import load_base, why_no_reference, with_adapter
from lorafold.progress import Progress
from lorafold.records.chats import read_chats

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_TOKENS = 512  # tokens; llama-imatrix's default
MOST_CHUNKS = 1000  # more texts hardly move the means any more


# Architectures whose inputs are not yet measured here, or not yet held against llama-imatrix's.
NOT_COLLECTED = (
    *("afmoe", "apertus", "bloom", "chatglm", "cohere2moe", "deepseek2", "exaone-moe", "gemma4", "gpt-oss"),
    *("granitehybrid", "hunyuan-moe", "hunyuan_vl", "hy_v3", "jais2", "jamba", "laguna", "llama4", "mamba"),
    *("mamba2", "minimax-m2", "nemotron_h", "nemotron_h_moe", "paddleocr", "phimoe", "qwen35", "qwen35moe"),
    *("qwen3next", "qwen3vlmoe", "starcoder"),
)


def check_can_collect(inputs: Inputs, data: Path) -> None:
    """See before any work whether a matrix can be collected.

    Raises:
        InputError: the file is missing or holds no text, or the model cannot be run on this machine.
    """
    next(_sequences(inputs, data), None)
    arch = find(inputs.config).gguf
    reason = f"not for {arch} yet" if arch in NOT_COLLECTED else why_no_reference(inputs)
    if reason:
        raise InputError(
            f"no importance matrix can be collected here: {reason}",
            at="--imatrix-data",
            fix="collect one elsewhere (llama-imatrix on an F16 export), and pass it with --imatrix",
        )


def collect_importance(
    inputs: Inputs, tensors: Sequence[MappedTensor], data: Path, progress: Progress
) -> Imatrix:
    """Run the texts through base + adapter and sum up the inputs of every linear layer.

    Args:
        inputs: the model.
        tensors: its GGUF tensors.
        data: the texts.
        progress: told the tokens done.

    Raises:
        InputError: there is no text in the file.
        SystemFault: torch is not installed.
    """
    model = with_adapter(load_base(inputs), inputs)
    sequences = list(_sequences(inputs, data))
    return collect(model, tensors, sequences, dataset=data.name, progress=progress)


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
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("there is no tokenizer.json to cut the text with", at=folder, fix="add one")
    return Tokenizer.from_file(str(path))
