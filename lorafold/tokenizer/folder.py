"""A tokenizer.json for model folders that have none, so that all stages read tokens from one kind of file."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorafold.tokenizer.merges import from_merges, has_merges
from lorafold.tokenizer.pieces import from_pieces
from lorafold.tokenizer.tekken import SETTINGS, TEKKEN, from_tekken

JSON = "tokenizer.json"
# What SentencePiece's file is called: by Llama's tokenizer class and its like, T5's, XLM-R's, DeBERTa's.
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
_CONFIG = "tokenizer_config.json"

# What a tokenizer reads beside its vocabulary, and what a prompt asks of a model's folder.
SMALL_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
# All that a tokenizer consists of, whatever its class, and the chat templates that belong to it.
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "tekken.json",
    "*.tiktoken",
    "*.spm",
    "spiece.model",
    "sentencepiece*.model",
    "spm.model",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a folder's tokenizer and its chat templates, by their names inside the folder."""
    return find_files(folder, TOKENIZER_FILES)


def sentencepiece_file(folder: Path) -> Path | None:
    """SentencePiece's file in a folder, whatever its name is there."""
    return next((path for name in PIECES if (path := folder / name).is_file()), None)


def find_files(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """The files of a folder that fit one of the patterns, by their names inside the folder."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into a folder under the given names, which may name a folder inside it."""
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)


@functools.cache
def with_tokenizer_json(folder: Path, pieces: bool = True) -> Path:
    """The folder itself, or a temporary one with its small files and the tokenizer.json that it lacks.

    Args:
        folder: a model or adapter folder.
        pieces: also make one of SentencePiece's file; an export reads that file itself, and takes more kinds.

    Returns:
        A folder with a tokenizer.json. It is the one that was given if that has one already, has no tokenizer
        at all, or one of a class that is not known. A temporary one lives as long as the process.

    Raises:
        InputError: the tokenizer's files are damaged, or of a kind that tokenizer.json cannot express.
    """
    if (folder / JSON).is_file():
        return folder
    settings: Mapping[str, Any] = {}
    if (model := sentencepiece_file(folder)) is not None:
        if not pieces:
            return folder
        text = from_pieces(model)
    elif has_merges(folder):
        text = from_merges(folder)
    elif (folder / TEKKEN).is_file():
        text, settings = from_tekken(folder / TEKKEN), SETTINGS
    else:
        return folder
    made = Path(tempfile.mkdtemp(dir=_home().name))
    copy_files(find_files(folder, (*SMALL_FILES, *PIECES)), made)
    if settings and not (folder / _CONFIG).is_file():
        (made / _CONFIG).write_text(json.dumps(dict(settings)), encoding="utf-8")
    (made / JSON).write_text(text, encoding="utf-8")
    return made


@functools.cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lorafold-tokenizer-")
