"""One key-value pair of a GGUF header, as the vocabulary, the architecture and the writer exchange it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

MetadataValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A typed metadata entry.

    Attributes:
        key: the full key, e.g. "llama.context_length".
        value: a scalar, or for arrays a sequence (a numpy array will do).
        type: the GGUF value type; ARRAY for arrays.
        subtype: the element type of an array, else None.
    """

    key: str
    value: MetadataValue
    type: GGUFValueType
    subtype: GGUFValueType | None = None
