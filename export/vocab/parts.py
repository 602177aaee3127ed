"""Parts of a tokenizer.json's normalizer and pre-tokenizer: what several vocabularies read in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafold.errors import InputError

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A token that stands for one byte."""


def leaves(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """The parts of nested Sequences; `key` is the name of a Sequence's list."""
    if isinstance(part, Mapping):
        if part.get("type") == "Sequence":
            inside = part.get(key)
            for inner in inside if isinstance(inside, list) else ():
                yield from leaves(inner, key)
        else:
            yield part


def library_tokenizer(**parts: Any) -> Any:
    """A tokenizer of the tokenizers library that has these parts and no tokens: it reads a part only in one.

    Args:
        parts: as in a tokenizer.json.

    Raises:
        Exception: the library cannot read a part; it raises just that.
    """
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts}))


def brief(part: Any) -> str:
    """A part for a message."""
    text = repr(dict(part) if isinstance(part, Mapping) else part)
    return text if len(text) <= 160 else text[:157] + "..."


def foreign(part: Mapping[str, Any], where: str, kind: str, at: Path) -> InputError:
    """A part that llama.cpp has nothing for.

    Args:
        part: the part.
        where: "normalizer" or "pre_tokenizer".
        kind: of vocabulary.
        at: the tokenizer.json.
    """
    return InputError(
        f"found {brief(part)}, which llama.cpp does not do for {kind}",
        at=f"{at}: {where}",
        fix="choose --format folder",
    )


def metaspace(part: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Where a Metaspace puts a space: before each piece of text, before the first only, never twice."""
    usual = "always" if part.get("add_prefix_space", True) else "never"
    scheme = part.get("prepend_scheme", usual)
    return scheme == "always", scheme == "first", scheme != "never"
