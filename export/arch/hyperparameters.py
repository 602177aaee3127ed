"""A model's config.json, checked once, and the hyper-parameters that llama.cpp reads from a GGUF header.

`ModelConfig` reads transformers 4's and 5's spelling through one architecture's defaults and old names, with
errors that name the field. `dimensions` gives the sizes that tensor shapes are written in. Keys and types of
`Hyperparameter` follow gguf-py's `Keys` and `GGUFWriter`; defaults are those of transformers' config classes,
which a short config.json relies on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

from lorafold.errors import InputError
from lorafold.export.gguf.parts import KeyValue

# Fields that transformers 5 writes under another name.
RENAMED = {"rope_scaling": "rope_parameters"}

# A default is a value, or is worked out from other fields.
Default = Any


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """config.json, seen through one architecture's defaults and old field names.

    Attributes:
        raw: the parsed file.
        defaults: canonical field -> value, or a function of this config, used if the file has no such
            field.
        aliases: canonical field -> the name this family uses (GPT-2's "n_embd" for "hidden_size").
        further_layers: blocks behind the last layer, which predict further tokens, as many as the files hold.
    """

    raw: Mapping[str, Any]
    defaults: Mapping[str, Default]
    aliases: Mapping[str, str]
    further_layers: int = 0

    def get(self, field: str) -> Any:
        """The field's value, its default, or None; a default that is worked out replaces null too."""
        default = self.defaults.get(field)
        name = self.spelled(field)
        if name in self.raw and not (self.raw[name] is None and callable(default)):
            return self.raw[name]
        return default(self) if callable(default) else default

    def spelled(self, field: str) -> str:
        """The name under which the file has a field: the family's or the newer one if it is there."""
        alias = self.aliases.get(field, RENAMED.get(field, field))
        return alias if alias in self.raw else field

    def integer(self, field: str, least: int = 1) -> int:
        """A whole number of at least `least`; a list that gives every layer the same counts as that number.

        Raises:
            InputError: it is missing or something else.
        """
        value = self.get(field)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if not is_whole(value) or value < least:
            raise self.wrong(field, value, f"a whole number of at least {least}")
        return int(value)

    def number(self, field: str) -> float:
        """A number.

        Raises:
            InputError: it is missing or something else.
        """
        value = self.get(field)
        if not is_finite(value):
            raise self.wrong(field, value, "a number")
        return float(value)

    def flag(self, field: str) -> bool:
        """Whether a switch is on; a missing or null one is off, and numbers count as in Python."""
        return bool(self.get(field))

    def wrong(self, field: str, got: object, expected: str) -> InputError:
        """The error for a field that cannot be used."""
        first, dot, rest = field.partition(".")
        name = self.spelled(first) + dot + rest
        got_text = "nothing" if got is None else repr(got)
        return InputError(
            f"{name} is {got_text}, expected {expected}",
            at=f"config.json: {name}",
            fix="download the model's own config.json",
        )


def is_whole(value: object) -> bool:
    """Whether a JSON value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether a JSON value is a number; Python's parser lets NaN and Infinity through."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def kv_heads(config: ModelConfig) -> int:
    """Key-value heads; a null field means one for each attention head."""
    if config.get("num_key_value_heads") is None:
        return config.integer("num_attention_heads")
    return config.integer("num_key_value_heads")


def head_dim(config: ModelConfig) -> int:
    """Width of one attention head; a null field means the model's width divided among its heads."""
    if config.get("head_dim") is not None:
        return config.integer("head_dim")
    return divided_width(config)


def divided_width(config: ModelConfig) -> int:
    """The model's width divided among its attention heads.

    Raises:
        InputError: it does not divide.
    """
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if width % heads:
        raise config.wrong("num_attention_heads", heads, f"a divisor of hidden_size {width}")
    return width // heads


def dimensions(config: ModelConfig) -> dict[str, int]:
    """The sizes that tensor shapes are made of, by the names that the architecture table uses.

    Raises:
        InputError: a field is missing, not a positive whole number, or does not divide as it must.
    """
    width, heads, groups = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        kv_heads(config),
    )
    if heads % groups:
        raise config.wrong("num_key_value_heads", groups, f"a divisor of num_attention_heads {heads}")
    size = head_dim(config)
    query, key = heads * size, groups * size
    sizes = {
        "layers": config.integer("num_hidden_layers"),
        "vocab": config.integer("vocab_size"),
        "width": width,
        "2_width": 2 * width,
        "3_width": 3 * width,
        "one": 1,
        "heads": heads,
        "kv_heads": groups,
        "head_dim": size,
        "query": query,
        "key": key,
        "qkv": query + 2 * key,
    }
    for name, field in OPTIONAL_SIZES.items():
        if config.get(field) is not None:
            sizes[name] = config.integer(field, least=0)
    for name in ("ff", "expert_ff", "shared_ff"):
        if name in sizes:
            sizes[f"2_{name}"] = 2 * sizes[name]
    return sizes


# Sizes that not every family has: our name -> the config's field.
OPTIONAL_SIZES = {
    "ff": "intermediate_size",
    "experts": "num_experts",
    "expert_ff": "moe_intermediate_size",
    "shared_ff": "shared_expert_intermediate_size",
    "positions": "max_position_embeddings",
    "adjusted_ff": "adjusted_intermediate_size",
    "taps": "conv_L_cache",
}


_ALONE = ("general.", "xielu.")


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """One entry of a header.

    Attributes:
        key: without the architecture, e.g. "context_length" for "llama.context_length"; those of `_ALONE`
            stand alone.
        type: the GGUF value type.
        value: a config field, or a function of the config; if it gives None there is no entry.
        subtype: the element type if `type` is ARRAY.
    """

    key: str
    type: GGUFValueType
    value: str | Callable[[ModelConfig], Any]
    subtype: GGUFValueType | None = None

    def read(self, config: ModelConfig, arch: str) -> KeyValue | None:
        """The entry for a model, or None if it has none."""
        value = self.value(config) if callable(self.value) else config.get(self.value)
        if value is None:
            return None
        field = self.key if callable(self.value) else self.value
        if self.type is GGUFValueType.UINT32 and not (is_whole(value) and 0 <= value < 1 << 32):
            raise config.wrong(field, value, "a whole number below 2^32")
        if self.type is GGUFValueType.FLOAT32:
            if not is_finite(value):
                raise config.wrong(field, value, "a number")
            value = float(value)
        key = self.key if self.key.startswith(_ALONE) else f"{arch}.{self.key}"
        return KeyValue(key, value, self.type, self.subtype)


def u32(key: str, value: str | Callable[[ModelConfig], Any]) -> Hyperparameter:
    """A UINT32 entry."""
    return Hyperparameter(key, GGUFValueType.UINT32, value)


def f32(key: str, value: str | Callable[[ModelConfig], Any]) -> Hyperparameter:
    """A FLOAT32 entry."""
    return Hyperparameter(key, GGUFValueType.FLOAT32, value)


def text(key: str, value: Callable[[ModelConfig], Any]) -> Hyperparameter:
    """A STRING entry."""
    return Hyperparameter(key, GGUFValueType.STRING, value)


def array(key: str, subtype: GGUFValueType, value: Callable[[ModelConfig], Any]) -> Hyperparameter:
    """An ARRAY entry of one value for each layer, or the like."""
    return Hyperparameter(key, GGUFValueType.ARRAY, value, subtype)


def read_all(table: Sequence[Hyperparameter], config: ModelConfig, arch: str) -> list[KeyValue]:
    """The entries of a table for one model; a key that comes twice keeps its first place and last value."""
    entries: dict[str, KeyValue] = {}
    for row in table:
        entry = row.read(config, arch)
        if entry is not None:
            entries[entry.key] = entry
    return list(entries.values())
