"""The header's entries, taken over from the file and held against the base: sizes, tokenizer, template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType

from lorafold.errors import InputError
from lorafold.export.gguf.parts import KeyValue
from lorafold.gguf_file.header import ARRAY, STRING, GgufArray, GgufHeader

SAME_BASE = "give the GGUF that was made from this base, in the same revision (`--base` names the base)"

# They tell of the old file: its parts, and how its tensors are aligned.
_DROPPED = ("split.no", "split.count", "split.tensors.count", "general.alignment")

NAME = "general.name"
FILE_TYPE = "general.file_type"
QUANTIZATION_VERSION = "general.quantization_version"
TEMPLATE = "tokenizer.chat_template"
END_OF_TURN = "tokenizer.ggml.eot_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"

# Key below the architecture -> what config.json calls it. So it is for every class of docs/coverage.md, but
# that converters write one key-value head if all share it (latent attention), no heads for Mamba 2, and count
# MTP layers as blocks.
_SIZES = {
    "embedding_length": ("hidden_size", "d_model", "n_embd"),
    "attention.head_count": ("num_attention_heads", "n_head", "num_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
}


def check_sizes(header: GgufHeader, config: Mapping[str, Any]) -> None:
    """Refuse a file whose sizes are not the base's: llama.cpp would cut its tensors in another way.

    Args:
        header: of the file.
        config: the base's config.json.

    Raises:
        InputError: a size is another one, by its key.
    """
    text = config.get("text_config") or config
    extra = header.number(f"{header.architecture}.nextn_predict_layers") or 0
    for name, fields in _SIZES.items():
        key = f"{header.architecture}.{name}"
        size, wanted = header.number(key), next((text[f] for f in fields if text.get(f) is not None), None)
        allowed = {wanted, 1} if name == "attention.head_count_kv" else {wanted}
        allowed |= {wanted + extra} if name == "block_count" and isinstance(wanted, int) else set()
        if size and isinstance(wanted, int) and size not in allowed:
            raise InputError(
                f"its {key} is {size:,}, and the base's is {wanted:,}", at=header.path, fix=SAME_BASE
            )


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
