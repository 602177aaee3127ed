"""Pre-tokenizers told by what they do, for those that are written as no row of `pre_table` is.

Two structures mean the same if they cut every text at the same places. So a pre-tokenizer cuts a few hundred
awkward texts (`probe`), and is the row that cuts them all alike, if there is one and no other. What llama.cpp
itself makes of the name is held against the tokenizer once more by the proof, on other texts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lorafold.export.vocab.parts import library_tokenizer
from lorafold.export.vocab.pre_table import TABLE
from lorafold.export.vocab.probe import probe_texts

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def steps_by_cuts(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The steps of the row that cuts as a pre-tokenizer does; None if none or several do.

    Args:
        pre_tokenizer: as in a tokenizer.json; it maps bytes to letters.
    """
    try:
        given = library_tokenizer(pre_tokenizer=pre_tokenizer).pre_tokenizer
    except Exception:  # the library raises Exception itself; what it cannot read, it cannot cut with
        return None
    alike = [steps for steps in dict.fromkeys(row.steps for row in TABLE) if cuts_alike(given, _row(steps))]
    return alike[0] if len(alike) == 1 else None


def cuts_alike(one: Any, other: Any) -> bool:
    """Whether two pre-tokenizers of the tokenizers library cut all texts at the same places."""
    return all(pieces(one, text) == pieces(other, text) for text in _texts())


def pieces(pre_tokenizer: Any, text: str) -> list[str]:
    """What a text is cut into, in byte letters."""
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


@functools.cache
def _texts() -> tuple[str, ...]:
    return tuple(probe_texts(300, seed=404))


@functools.cache
def _row(steps: Sequence[str]) -> Any:
    splits = [
        {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
        for step in steps
    ]
    whole = {"type": "Sequence", "pretokenizers": [*splits, _BYTES]}
    return library_tokenizer(pre_tokenizer=whole).pre_tokenizer
