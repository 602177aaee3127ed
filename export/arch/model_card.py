"""The header's general.* entries: what a model is called, how large it is, under which licence it stands.

They come from the base's folder: its name, config.json, the model card in README.md, generation_config.json.
gguf-py's own `Metadata` does the guessing, as in llama.cpp's converter, so that names agree
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#general-metadata).
"""

from __future__ import annotations

import contextlib
import datetime
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFValueType

from lorafold.errors import InputError
from lorafold.export.gguf.parts import KeyValue, MappedTensor


def general_metadata(
    folder: Path, tensors: Sequence[MappedTensor], name: str | None = None
) -> list[KeyValue]:
    """The entries general.type to general.languages.

    Args:
        folder: the base.
        tensors: all tensors of the file.
        name: general.name, if it is not to be guessed from the folder, or from the hub's id of a snapshot.

    Raises:
        InputError: the model card or generation_config.json holds a value of the wrong kind.
    """
    weights, shared, per_expert, experts = count_weights(tensors)
    # A writer that never writes: its add_… methods know each entry's key and type.
    writer = gguf.GGUFWriter(path=None, arch="unused")
    first = set(writer.kv_data[0])
    try:
        with _called_by_its_name(folder) as named:
            card = gguf.Metadata.load(None, named, name, weights)
        if card.name is None:
            card.name = named.name
        if card.size_label is None:
            card.size_label = gguf.size_label(weights, shared, per_expert, experts)
        writer.add_type(gguf.GGUFType.MODEL)
        card.set_gguf_meta_model(writer)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model card cannot be read: {reason}",
            at=folder / "README.md",
            fix="correct the lines between the two `---`, or remove README.md",
        ) from error
    return [
        _checked(folder, key, entry.value, entry.type)
        for key, entry in writer.kv_data[0].items()
        if key not in first
    ]


@contextlib.contextmanager
def _called_by_its_name(folder: Path) -> Iterator[Path]:
    """A path to the folder whose last part is the model's name, from which gguf-py guesses.

    A snapshot in the hub's cache is called by its commit: models--ORG--NAME/snapshots/COMMIT. While this
    lasts, a link has the name that the hub knows it by.
    """
    kind, _, repository = folder.parent.parent.name.partition("--")
    if folder.parent.name != "snapshots" or kind != "models" or not repository:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lorafold-name-") as home:
        link = Path(home) / repository.rpartition("--")[2]
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


# What a value from YAML or JSON must be for each type of entry.
_KINDS: dict[GGUFValueType, tuple[type, ...]] = {
    GGUFValueType.STRING: (str, int, float, datetime.date),
    GGUFValueType.INT32: (int,),
    GGUFValueType.UINT32: (int,),
    GGUFValueType.FLOAT32: (int, float),
    GGUFValueType.ARRAY: (list,),
}


def _checked(folder: Path, key: str, value: Any, kind: GGUFValueType) -> KeyValue:
    """An entry whose value is of its type; YAML's numbers and dates become text where text belongs.

    Raises:
        InputError: a list or an object where a word belongs, a word where a number belongs.
    """
    file = "generation_config.json" if key.startswith("general.sampling.") else "README.md"
    words = value if kind is GGUFValueType.ARRAY else [value]
    fits = isinstance(value, _KINDS[kind]) and not any(isinstance(word, (list, dict)) for word in words)
    if not fits:
        raise InputError(
            f"{key.removeprefix('general.')} is {value!r}, expected {kind.name.lower()}",
            at=folder / file,
            fix=f"correct it, or remove {file}",
        )
    if kind is GGUFValueType.ARRAY:
        return KeyValue(key, [str(word) for word in value], kind, GGUFValueType.STRING)
    return KeyValue(key, str(value) if kind is GGUFValueType.STRING else value, kind)


def count_weights(tensors: Sequence[MappedTensor]) -> tuple[int, int, int, int]:
    """How many weights there are.

    Returns:
        (all, outside experts, of one expert of each layer, experts), as general.size_label needs them.
    """
    total = shared = per_expert = 0
    stacks: list[int] = []
    for tensor in tensors:
        weights = math.prod(tensor.shape)
        total += weights
        if "_exps." in tensor.name and len(tensor.shape) == 3:
            per_expert += weights // tensor.shape[0]
            stacks.append(tensor.shape[0])
        else:
            shared += weights
    return total, shared, per_expert, sum(stacks) // len(stacks) if stacks else 0
