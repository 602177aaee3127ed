"""SentencePiece's tokenizer.model: a protobuf `ModelProto` of its sentencepiece_model.proto.

The sentencepiece library reads the pieces with their scores and types. It does not tell what the tokenizer
does to a text before it cuts it, so those settings are taken from the bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.files.signatures import another_file, head_of
from lorafold.tokenizer.protobuf import fields

UNIGRAM, BPE = 1, 2


@dataclass(frozen=True, slots=True)
class Pieces:
    """The ordinary pieces of a SentencePiece vocabulary, ids 0, 1, 2, …

    Attributes:
        texts: piece texts; spaces are U+2581.
        scores: float32, one for each.
        types: `gguf.TokenType` numbers, int32, one for each.
    """

    texts: list[str]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Settings of a tokenizer.model that the library does not hand out; the defaults are the schema's.

    ModelProto { 1: pieces (repeated)  2: trainer_spec  3: normalizer_spec }
    TrainerSpec { 3: model_type: 1 Unigram, 2 BPE, 3 Word, 4 Char }
    NormalizerSpec { 2: precompiled_charsmap  3: add_dummy_prefix  4: remove_extra_whitespaces }
    """

    model_type: int = UNIGRAM
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def read_model_file(path: Path) -> tuple[Pieces, ModelSpec]:
    """Read a tokenizer.model.

    Args:
        path: the file.

    Returns:
        Its pieces, and what it does to a text before.

    Raises:
        InputError: the file is damaged, or neither BPE nor Unigram.
    """
    with _whole(path):
        pieces, spec = _read(_load(path))
    if spec.model_type not in (BPE, UNIGRAM):
        names = {3: "Word", 4: "Char"}
        raise InputError(
            f"is a SentencePiece model of type {names.get(spec.model_type, spec.model_type)}; "
            "only BPE and Unigram are exported",
            at=path,
            fix="choose --format folder",
        )
    return pieces, spec


def _read(processor: Any) -> tuple[Pieces, ModelSpec]:
    spec = read_model_spec(processor.serialized_model_proto())
    ids = list(range(processor.GetPieceSize()))
    types = np.full(len(ids), TokenType.NORMAL, np.int32)
    texts: list[str] = processor.IdToPiece(ids)
    types[[text.startswith("[UNUSED") for text in texts]] = TokenType.UNUSED  # InternLM2's spare pieces
    for kind, ask in (
        (TokenType.BYTE, processor.IsByte),
        (TokenType.UNUSED, processor.IsUnused),
        (TokenType.CONTROL, processor.IsControl),
        (TokenType.UNKNOWN, processor.IsUnknown),
    ):
        types[np.asarray(ask(ids), bool)] = kind
    return Pieces(texts, np.asarray(processor.GetScore(ids), np.float32), types), spec


def peek_model_file(path: Path) -> ModelSpec:
    """The settings of a tokenizer.model alone.

    Raises:
        InputError: the file is damaged.
    """
    with _whole(path):
        return read_model_spec(_load(path).serialized_model_proto())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What SentencePiece took may still hold a name that is no text, or a setting that is no number."""
    try:
        yield
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(
            f"a damaged SentencePiece model ({error})", at=path, fix="download it again"
        ) from error


def _load(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise another_file(path, head_of(path)) or InputError(
            f"is not a SentencePiece model: {str(error).splitlines()[0]}",
            at=path,
            fix="download it again; it may be truncated",
        ) from error
    return processor


def read_model_spec(proto: bytes) -> ModelSpec:
    """The settings in the bytes of a tokenizer.model.

    Raises:
        ValueError: they are damaged.
    """
    parts = {number: value for number, value in fields(proto) if number in (2, 3)}
    trainer, normalizer = (
        dict(fields(part)) if isinstance(part := parts.get(number), memoryview) else {} for number in (2, 3)
    )
    model_type, charsmap = trainer.get(3, 1), normalizer.get(2, b"")
    if not isinstance(model_type, int) or isinstance(charsmap, int):
        raise ValueError("a setting is of another type")
    return ModelSpec(
        model_type, bytes(charsmap), bool(normalizer.get(3, True)), bool(normalizer.get(4, True))
    )
