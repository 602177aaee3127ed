"""What the JSON files of a model must look like where the program reads them: a table, by the file's name.

Whoever reads a file may then index it; what is not named here is not read, or is checked by its reader. A key
that is missing, or null, is its reader's affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorafold.errors import InputError

Shape = type | Sequence["Shape"] | Mapping[str, "Shape"]
"""A type; [shape]: a list of such; (shape, …): one of; {key: shape}: an object. A key with ! must be there,
and "*" is any other key."""

_ADDED = {"content!": str}
_TOKEN = (str, _ADDED)
_SPECIAL = {f"{kind}_token": _TOKEN for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
_MANY = ([_TOKEN], {"*": _TOKEN})
_IDS = (int, [int])
_NUMBER = (int, float)
_PART = {"type": str}
_FILES = {"*": {"size!": int, "sha256": str}}
_CHECK = {"name": str, "verdict": str, "meaning": str}

FILES: Mapping[str, Shape] = {
    "config.json": {
        "architectures": [str],
        "model_type": str,
        "torch_dtype": str,
        "dtype": str,
        "text_config": {"architectures": [str], "model_type": str, "torch_dtype": str, "dtype": str},
        "quantization_config": {"quant_method": str},
    },
    "tokenizer.json": {
        "added_tokens": [_ADDED],
        "model": dict,
        "normalizer": {**_PART, "normalizers": [_PART]},
        "pre_tokenizer": {**_PART, "pretokenizers": [_PART]},
        "decoder": {**_PART, "decoders": [_PART]},
        "post_processor": {
            **_PART,
            "single": [{"SpecialToken": {"id": str}}],
            "processors": [{**_PART, "single": [{"SpecialToken": {"id": str}}]}],
        },
    },
    "tokenizer_config.json": {
        **_SPECIAL,
        "added_tokens_decoder": {"*": _ADDED},
        "additional_special_tokens": _MANY,
        "extra_special_tokens": _MANY,
        "chat_template": (str, [{"name": str, "template": str}], {"*": str}),
    },
    "special_tokens_map.json": {**_SPECIAL, "additional_special_tokens": _MANY},
    "added_tokens.json": {"*": int},
    "generation_config.json": {"bos_token_id": _IDS, "eos_token_id": _IDS, "pad_token_id": _IDS},
    "chat_template.json": {"chat_template": (str, [{"name": str, "template": str}], {"*": str})},
    "lorafold.json": {
        "kind": str,
        "lorafold": str,
        "name": str,
        "verdict": str,
        "files": _FILES,
        "config": dict,
        "base": {"id": str, "spec": str, "revision": str, "fingerprint": str, "path": str},
        "adapters": [{"folder!": str}],
        "proof": ([_CHECK], {"checks": [_CHECK]}),
        "data": {"sha256": str, "examples": int, "layouts": dict},
        "versions": {"*": str},
        "training": {"steps": int, "tokens": int, "loss": _NUMBER, "eval_loss": _NUMBER},
        "tokens": {"sequences": list, "sha256": str},
    },
}

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}


def check_shape(value: Any, name: str, at: Any) -> None:
    """Hold a file's JSON against the table.

    Args:
        value: what was read.
        name: of the file; one that the table does not have may hold anything.
        at: the file, for the message.

    Raises:
        InputError: a part has another form; the message says which.
    """
    if name in FILES:
        require_shape(value, FILES[name], at)


def require_shape(value: Any, shape: Shape, at: Any) -> None:
    """Hold JSON against a shape.

    Raises:
        InputError: as `check_shape`.
    """
    if wrong := _wrong(value, shape):
        where, expected, got = wrong
        named = f'"{where[1:]}"' if where else "the whole"
        raise InputError(
            f"{named} is not {_told(expected)}, but {_WORDS.get(type(got), type(got).__name__)}",
            at=at,
            fix="download the file again, or correct that entry if it was edited",
        )


def _wrong(value: Any, shape: Shape) -> tuple[str, Shape, Any] | None:
    """The first part that departs: its place, what was expected, what was found."""
    if isinstance(shape, type):
        fits = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        return None if fits else ("", shape, value)
    if isinstance(shape, tuple):
        tried = [_wrong(value, each) for each in shape]
        # What departs deepest says most: an entry of a list, not that it is no text.
        deepest = None if None in tried else max(tried, key=lambda wrong: len(wrong[0]) if wrong else 0)
        return ("", shape, value) if deepest and not deepest[0] else deepest
    if not isinstance(value, list if isinstance(shape, list) else dict):
        return "", shape, value
    for at, entry, expected in _parts(value, shape):
        if wrong := _wrong(entry, expected):
            here = f"[{at}]" if isinstance(at, int) else f".{at}"
            return here + wrong[0], *wrong[1:]
    return None


def _parts(value: Any, shape: Shape) -> Iterator[tuple[str | int, Any, Shape]]:
    """What a list or an object holds: index or key, the entry, its shape."""
    if isinstance(shape, Mapping):
        for key, expected in shape.items():
            if key.endswith("!"):
                yield key[:-1], value.get(key[:-1]), expected
        for key, entry in value.items():
            found = shape[key] if key in shape else shape.get("*")
            if entry is not None and found is not None and f"{key}!" not in shape:
                yield key, entry, found
    else:
        assert isinstance(shape, list)
        for index, entry in enumerate(value):
            yield index, entry, shape[0]


def _told(shape: Shape) -> str:
    if isinstance(shape, type):
        return _WORDS[shape]
    if isinstance(shape, tuple):
        return " or ".join(dict.fromkeys(map(_told, shape)))
    return "a list" if isinstance(shape, list) else "an object"
