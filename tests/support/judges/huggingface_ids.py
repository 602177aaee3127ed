"""Token ids of the `tokenizers` library, and their comparison with llama.cpp's on one vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_vocab import Job, tokenize

from lorafold.export.vocab.vocab import Vocab


def huggingface_ids(tokenizer: Path, texts: Sequence[str], parse_special: bool = True) -> list[list[int]]:
    """Ids from the `tokenizers` library, without BOS and EOS."""
    loaded = _tokenizer(tokenizer, tokenizer.stat().st_mtime_ns)
    loaded.encode_special_tokens = not parse_special
    return [encoding.ids for encoding in loaded.encode_batch(list(texts), add_special_tokens=False)]


@functools.lru_cache(maxsize=1)
def _tokenizer(path: Path, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def compare(
    folder: Path, vocab: Vocab, gguf: Path, texts: Sequence[str], parse_special: bool = True
) -> tuple[int, int]:
    """Assert equal ids on all texts without a known difference.

    Returns:
        How many texts were compared, and how many of those set aside do differ.
    """
    expected = huggingface_ids(folder / "tokenizer.json", texts, parse_special)
    (got,) = tokenize([Job(str(gguf), list(texts), parse_special)])
    compared = different = 0
    for text, ours, theirs in zip(texts, got, expected, strict=True):
        if vocab.known_difference(text, parse_special) is None:
            assert ours == theirs, f"{text!r}: {_show(vocab, ours)} != {_show(vocab, theirs)}"
            compared += 1
        else:
            different += ours != theirs
    return compared, different


def _show(vocab: Vocab, ids: Sequence[int]) -> list[str]:
    return [vocab.texts[token_id] for token_id in ids]
