"""An importance matrix for the model that is being exported, collected on the user's own texts.

The matrix is that of base + adapter. Chats are rendered and tokenized as in training, so it weighs what the
model will see in use; a plain text is cut into chunks of `CHUNK_TOKENS` tokens, as llama-imatrix does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.proof.chats import read_chats
from lorafold.export.proof.reference import load_base, why_no_reference, with_adapter
from lorafold.progress import Progress

CHUNK_TOKENS = 512  # tokens; llama-imatrix's default
MOST_CHUNKS = 1000  # more texts hardly move the means any more


def check_can_collect(inputs: Inputs, data: Path) -> None:
    """See before any work whether a matrix can be collected.

    Raises:
        InputError: the file is missing or holds no text, or the model cannot be run on this machine.
    """
    next(_sequences(inputs, data), None)
    if reason := why_no_reference(inputs):
        raise InputError(
            f"no importance matrix can be collected here: {reason}",
            at="--imatrix-data",
            fix="collect one elsewhere (llama-imatrix on an F16 export), and give it with --imatrix",
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
        raise InputError("there is no text in it", at=data, fix="give plain text, or chats as JSON lines")


def _texts(inputs: Inputs, data: Path) -> Iterator[list[int]]:
    """Token ids of every chat, or of the whole plain text."""
    if data.suffix in (".json", ".jsonl"):
        tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
        for chat in read_chats(data):
            yield tokenizer.encode_chat(chat).ids
        return
    from tokenizers import Tokenizer

    path = inputs.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            "there is no tokenizer.json to cut the text with", at=inputs.tokenizer, fix="add one"
        )
    try:
        text = data.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", at=data, fix="give a UTF-8 text file") from error
    ids: list[int] = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    yield ids
