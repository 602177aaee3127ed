"""The smallest tokenizers that tests of vocabularies change by hand, and how they are read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import BYTE_LEVEL, added, sequence, split, write_folder

from lorafold.errors import InputError, LorafoldError
from lorafold.export.vocab.pre_tokenizers import QWEN2_WORDS
from lorafold.export.vocab.vocab import Vocab, read_vocab

CHAT = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def by_hand(**changes: Any) -> dict[str, Any]:
    """The smallest byte-level tokenizer.json: tokens a b ab, one merge, one added token."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]} | changes.pop("model", {})
    tokenizer = {
        "added_tokens": [added(3, "<|im_end|>")],
        "normalizer": None,
        "pre_tokenizer": sequence(split(QWEN2_WORDS), BYTE_LEVEL),
        "post_processor": None,
        "model": model,
    }
    return tokenizer | changes


def read(tmp_path: Path, tokenizer: dict[str, Any] | None, rows: int = 6, **settings: Any) -> Vocab:
    options = settings.pop("options", {})
    config = settings.pop("config", {})
    folder = write_folder(tmp_path / "model", tokenizer, **({"eos_token": "<|im_end|>"} | settings))
    return read_vocab(folder, config, rows, **options)


def refuse(tmp_path: Path, tokenizer: dict[str, Any] | None, says: str, **settings: Any) -> LorafoldError:
    with pytest.raises(InputError, match=says) as caught:
        read(tmp_path, tokenizer, **settings)
    assert caught.value.at
    assert caught.value.fix
    return caught.value
