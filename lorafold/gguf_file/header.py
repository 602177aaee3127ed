"""The header of a GGUF file as data: metadata, the places of tensors, the other parts of a split model.

`read` reads and checks it. Arrays are decoded only when asked for.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from lorafold.errors import InputError

# ggml's tensor types: id -> (name, weights of a block, bytes of a block).
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType
}
# general.file_type: id -> what the file as a whole is called ("Q4_K_M").
FILE_TYPES: Mapping[int, str] = {
    int(kind): kind.name.removeprefix("ALL_").removeprefix("MOSTLY_")
    for kind in LlamaFileType
    if kind is not LlamaFileType.GUESSED
}
# Scalar types of the format: id -> (struct code, bytes).
SCALARS: Mapping[int, tuple[str, int]] = {
    0: ("B", 1),
    1: ("b", 1),
    2: ("H", 2),
    3: ("h", 2),
    4: ("I", 4),
    5: ("i", 4),
    6: ("f", 4),
    7: ("?", 1),
    10: ("Q", 8),
    11: ("q", 8),
    12: ("d", 8),
}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of the metadata, still packed.

    Attributes:
        type: id of the elements' type.
        count: number of elements.
        packed: their bytes as in the file.
    """

    type: int
    count: int
    packed: bytes

    def strings(self) -> list[bytes]:
        """The elements of an array of strings, as they lie in the file (mostly UTF-8)."""
        assert self.type == STRING
        found, at, packed = [], 0, self.packed
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(self.count):  # hot: a vocabulary has 150,000
            end = at + 8 + unpack(packed, at)[0]
            found.append(packed[at + 8 : end])
            at = end
        return found

    def values(self) -> tuple[int | float | bool, ...]:
        """The elements of an array of numbers."""
        return struct.unpack(f"<{self.count}{SCALARS[self.type][0]}", self.packed)


MetadataValue = bool | int | float | str | GgufArray


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's entry in the header.

    Attributes:
        name: its GGUF name.
        shape: in numpy's order (rows first, cols last).
        type: id of its type, a key of `TENSOR_TYPES`.
        offset: absolute position in the file, in bytes.
        nbytes: its size.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        """ggml's name of the type: "Q4_K"."""
        return TENSOR_TYPES[self.type][0]


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF says before its data.

    Attributes:
        path: the file.
        version: of the format.
        metadata: key -> value, arrays still packed.
        types: key -> id of the value's type.
        tensors: name -> entry, in the file's order.
        size: of the file, in bytes.
    """

    path: Path
    version: int
    metadata: Mapping[str, MetadataValue]
    types: Mapping[str, int]
    tensors: Mapping[str, GgufTensor]
    size: int

    def text(self, key: str) -> str | None:
        """A string of the metadata, or None if there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """An integer of the metadata, or None if there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str | None:
        """general.architecture."""
        return self.text("general.architecture")

    @property
    def quantization(self) -> str:
        """The file's type as users name it ("Q4_K_M"), or that of most of its weights."""
        number = self.number("general.file_type")
        if number is not None and number in FILE_TYPES:
            return FILE_TYPES[number]
        weights: dict[str, int] = {}
        for tensor in self.tensors.values():
            weights[tensor.type_name] = weights.get(tensor.type_name, 0) + tensor.nbytes
        return max(weights, key=lambda name: weights[name]) if weights else "no tensors"

    def part_names(self) -> list[str]:
        """The names of all files of a split model, in order; the file's own if it is not split.

        Raises:
            InputError: it is one of several parts, and not named so.
        """
        count = self.number("split.count") or 1
        if count <= 1:
            return [self.path.name]
        match = _SHARD.search(self.path.name)
        if match is None or int(match[2]) != count or count > 99_999:
            problem = f"one of {count} parts, but not named NAME-00001-of-{count:05}.gguf"
            raise InputError(problem, at=self.path, fix="give the parts back their names")
        return [part.name for part in parts_of(self.path)]

    def shards(self) -> list[Path]:
        """All files of a split model, this one included, in order; the file alone if it is not split.

        Raises:
            InputError: a file of the set is missing.
        """
        paths = [self.path.with_name(name) for name in self.part_names()]
        if len(paths) > 1 and (missing := [path.name for path in paths if not path.is_file()]):
            raise InputError(
                f"parts of the model are missing: {', '.join(missing)}", at=self.path, fix="download them"
            )
        return paths


def parts_of(path: Path) -> list[Path]:
    """The files of a split model, in order, as the name of one of them says; else the file alone."""
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    stem, count = path.name[: match.start()], int(match[2])
    return [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
