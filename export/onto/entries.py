"""The header's entries, taken over from the file: hyperparameters, tokenizer, template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType

from lorafold.export.gguf.parts import KeyValue
from lorafold.gguf_file.header import ARRAY, STRING, GgufArray, GgufHeader

# They tell of the old file: its parts, and how its tensors are aligned.
_DROPPED = ("split.no", "split.count", "split.tensors.count", "general.alignment")

NAME = "general.name"
FILE_TYPE = "general.file_type"
QUANTIZATION_VERSION = "general.quantization_version"
TEMPLATE = "tokenizer.chat_template"
END_OF_TURN = "tokenizer.ggml.eot_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"


def entries(header: GgufHeader, changed: Mapping[str, str | bool | int]) -> tuple[KeyValue, ...]:
    """Every entry of the file, in its order; those that are new come last.

    Args:
        header: of the file.
        changed: values that are other ones now, by key.
    """
    kept = [
        KeyValue(key, changed.get(key, value), GGUFValueType(header.types[key]), _subtype(value))
        for key, value in header.metadata.items()
        if key not in _DROPPED
    ]
    new = [_entry(key, value) for key, value in changed.items() if key not in header.metadata]
    return (*kept, *new)


def _subtype(value: Any) -> GGUFValueType | None:
    return GGUFValueType(value.type) if isinstance(value, GgufArray) else None


def _entry(key: str, value: str | bool | int) -> KeyValue:
    kind = GGUFValueType.UINT32
    if isinstance(value, (str, bool)):
        kind = GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.BOOL
    return KeyValue(key, value, kind)


def quantized(file_type: int) -> dict[str, int]:
    """What changes if the weights get other types."""
    return {FILE_TYPE: file_type, QUANTIZATION_VERSION: int(GGML_QUANT_VERSION)}


def prompt(
    header: GgufHeader, template: str, end_of_turn: str | None, add_bos: bool
) -> dict[str, str | bool | int]:
    """What changes if the chat template is another one.

    Args:
        header: of the file.
        template: the Jinja source.
        end_of_turn: the control token that ends an answer, or None; one that the file lacks changes nothing.
        add_bos: whether the tokenizer puts BOS before the prompt.
    """
    changed: dict[str, str | bool | int] = {TEMPLATE: template, ADD_BOS: add_bos}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if end_of_turn is not None and isinstance(tokens, GgufArray) and tokens.type == STRING:
        names = tokens.strings()
        if (raw := end_of_turn.strip().encode()) in names:
            changed[END_OF_TURN] = names.index(raw)
    return changed


def plain_values(header: GgufHeader) -> dict[str, object]:
    """Numbers and texts by key, short arrays unpacked: what the mixtures ask for."""
    return {
        key: list(value.values())
        if isinstance(value, GgufArray) and value.type not in (STRING, ARRAY)
        else value
        for key, value in header.metadata.items()
        if not key.startswith("tokenizer.")
    }
