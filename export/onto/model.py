"""The GGUF that an adapter is folded onto: checked, whole or in parts, its rows as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.quant import ggml
from lorafold.gguf_file.checks import check_model
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import read_gguf_header
from lorafold.safetensors_file import ShardFiles

_PLAIN = (Type.F32, Type.F16, Type.BF16)
"""Types that hold a number as it is, or rounded."""

# What `general.type` may say, or `general.architecture` of older files, that no adapter can be folded onto.
NO_MODELS = {
    "mmproj": "the projector of a multimodal model (mmproj), not a language model",
    "clip": "the projector of a multimodal model (mmproj), not a language model",
    "adapter": "an adapter, not a model",
    "imatrix": "an importance matrix, not a model",
}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: its GGUF name.
        shape: rows first, columns last.
        type: of its numbers.
        path: the file or part that holds it.
        offset: its first byte there.
    """

    name: str
    shape: tuple[int, ...]
    type: Type
    path: Path
    offset: int

    @property
    def cols(self) -> int:
        """Numbers in a row."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows of the tensor seen as 2-D; a vector is one row."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def plain(self) -> bool:
        """Whether its numbers can be compared one by one with those of a checkpoint."""
        return self.type in _PLAIN


@dataclass(frozen=True, slots=True)
class BaseGguf:
    """A model in one GGUF file or in several parts. Use `BaseGguf.open`.

    Attributes:
        header: of the first part: metadata, tokenizer and template.
        paths: all parts.
        tensors: of all parts, in the order of the files.
    """

    header: GgufHeader
    paths: tuple[Path, ...]
    tensors: Mapping[str, FileTensor]
    _files: ShardFiles = field(default_factory=ShardFiles, repr=False)

    @classmethod
    def open(cls, path: Path) -> BaseGguf:
        """Read and check the headers.

        Raises:
            InputError: not a GGUF, damaged, not a language model, or a part of it is missing.
        """
        given = read_gguf_header(path)
        paths = given.shards()
        headers = [given if part == given.path else read_gguf_header(part) for part in paths]
        first = headers[0]
        for kind in (first.text("general.type"), first.architecture):
            if kind in NO_MODELS:
                raise InputError(
                    f"this is {NO_MODELS[kind]}", at=path, fix="give the GGUF of the base model itself"
                )
        check_model(first)
        tensors: dict[str, FileTensor] = {}
        for header in headers:
            for tensor in header.tensors.values():
                if tensor.name in tensors:
                    raise InputError(
                        f"tensor {tensor.name} is in two parts, {tensors[tensor.name].path.name} and "
                        f"{header.path.name}",
                        at=path,
                        fix="download the parts of one model again",
                    )
                tensors[tensor.name] = FileTensor(
                    tensor.name, tensor.shape, Type(tensor.type), header.path, tensor.offset
                )
        counted = first.number("split.tensors.count")
        if counted is not None and counted != len(tensors):
            raise InputError(
                f"the parts hold {len(tensors)} tensors, the first one says {counted}",
                at=path,
                fix="download the parts of one model again",
            )
        if not tensors:
            raise InputError("it holds no tensors", at=path, fix="give the model itself, not its vocabulary")
        return cls(first, tuple(paths), tensors)

    @property
    def exact(self) -> bool:
        """Whether all matrices hold plain numbers."""
        return all(tensor.plain for tensor in self.tensors.values() if len(tensor.shape) > 1)

    def packed(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows [start, stop) as they are stored: uint8 (stop - start, bytes of a row)."""
        tensor = self.tensors[name]
        size = ggml.row_size(tensor.type, tensor.cols)
        out = np.empty((stop - start, size), np.uint8)
        self._files.read(tensor.path, tensor.offset + start * size, out.reshape(-1).data)
        return out

    def values(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 (stop - start, cols)."""
        tensor = self.tensors[name]
        return ggml.dequantize(self.packed(name, start, stop), tensor.type, tensor.cols)

    def close(self) -> None:
        """Close the files. A later read opens them again."""
        self._files.close()
