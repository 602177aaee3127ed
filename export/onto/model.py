"""The GGUF that an adapter is folded onto: checked, whole or in parts, its rows as they are stored.

It lies on this disk, or on a hub: then its header and the rows that are wanted are read from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.quant import ggml
from lorafold.gguf_file.checks import check_model
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import parse_gguf_header, read_gguf_header
from lorafold.hub.files import HubFile, HubSpec, find_files
from lorafold.hub.parts import HubParts
from lorafold.progress import Progress, silent
from lorafold.safetensors_file import ShardFiles
from lorafold.sources.recognize import hub_address

_PLAIN = (Type.F32, Type.F16, Type.BF16)
"""Types that hold a number as it is, or rounded."""

_PROJECTORS = {"mmproj", "clip"}
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
        return math.prod(self.shape[:-1])

    @property
    def plain(self) -> bool:
        """Whether its numbers can be compared one by one with those of a checkpoint."""
        return self.type in _PLAIN


class Bytes(Protocol):
    """What reads bytes of a file: `ShardFiles`, or `HubParts` from afar."""

    def read(self, path: Path, offset: int, into: memoryview, ahead: int = 0) -> None:
        """Fill `into` from byte `offset` on; `ahead` bytes behind them will be read soon."""

    def close(self) -> None:
        """Let go of what is held open."""


def found(place: Path | str, *, offline: bool = False) -> Sequence[Path | HubFile]:
    """The file that a path or ORG/NAME:TYPE means; of a split one on a hub, all parts."""
    spec = HubSpec.parse(str(place))
    if spec is not None:
        return find_files(spec, offline=offline)
    if (address := hub_address(str(place))) is not None and not Path(place).exists():
        repository, inside = address
        raise InputError(
            "this is the address of a page, expected a file or ORG/NAME-GGUF:BF16",
            at=str(place),
            fix=f"give the id and the file: {repository}:{Path(inside or 'BF16').name}",
        )
    return [Path(place)]


def pinned(place: str, *, offline: bool = False) -> str:
    """The same file, by a name that a later run finds it by whatever became of the branch."""
    (file, *_) = found(place, offline=offline)
    return file.spec if isinstance(file, HubFile) else str(file.resolve())


@dataclass(frozen=True, slots=True)
class BaseGguf:
    """A model in one GGUF file or in several parts. Use `BaseGguf.open`.

    Attributes:
        header: of the first part: metadata, tokenizer and template.
        paths: all parts.
        tensors: of all parts, in the order of the files.
        hub: reads them, if they lie on a hub.
    """

    header: GgufHeader
    paths: tuple[Path, ...]
    tensors: Mapping[str, FileTensor]
    hub: HubParts | None = None
    _files: Bytes = field(default_factory=ShardFiles, repr=False)

    @classmethod
    def open(
        cls,
        place: Path | str,
        *,
        projector: bool = False,
        offline: bool = False,
        progress: Progress = silent,
    ) -> BaseGguf:
        """Find the files, and read and check their headers.

        Args:
            place: a path, or ORG/NAME:TYPE on a hub (see `lorafold.hub.files`).
            projector: a multimodal model's projector is wanted, and no language model.
            offline: never connect.
            progress: told while a hub is asked.

        Raises:
            InputError: not a GGUF, damaged, not a language model, or a part of it is missing.
            SystemFault: a hub failed.
        """
        files = found(place, offline=offline)
        if remote := [file for file in files if isinstance(file, HubFile)]:
            return cls._on_hub(remote, progress, projector=projector)
        (path, *_) = (file for file in files if isinstance(file, Path))
        given = read_gguf_header(path)
        paths = given.shards()
        headers = [given if part == given.path else read_gguf_header(part) for part in paths]
        return cls._of(headers, projector=projector)

    @classmethod
    def _on_hub(cls, files: Sequence[HubFile], progress: Progress, *, projector: bool) -> BaseGguf:
        parts = HubParts(files, progress)
        headers = []
        for number, file in enumerate(files):
            progress("read the header on the hub", number, len(files))
            headers.append(read_hub_header(parts, file.path))
        progress("read the header on the hub", len(files), len(files))
        if missing := sorted(set(headers[0].part_names()) ^ {file.path.name for file in files}):
            raise InputError(
                f"parts of the model are missing: {', '.join(missing)}",
                at=files[0].path,
                fix="choose another repository",
            )
        return cls._of(headers, projector=projector, hub=parts)

    @classmethod
    def _of(cls, headers: Sequence[GgufHeader], *, projector: bool, hub: HubParts | None = None) -> BaseGguf:
        first = headers[0]
        path = first.path
        kinds = (first.text("general.type"), first.architecture)
        if not projector:
            for kind in kinds:
                if kind in NO_MODELS:
                    raise InputError(
                        f"this is {NO_MODELS[kind]}", at=path, fix="give the GGUF of the base model itself"
                    )
            check_model(first)
        elif not _PROJECTORS.intersection(kinds):
            raise InputError(
                "this is no projector of a multimodal model (mmproj)",
                at=path,
                fix="give the file that is called mmproj; a language model goes to --onto",
            )
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
        paths = tuple(header.path for header in headers)
        return cls(first, paths, tensors, hub, hub or ShardFiles())

    @property
    def exact(self) -> bool:
        """Whether all matrices hold plain numbers."""
        return all(tensor.plain for tensor in self.tensors.values() if len(tensor.shape) > 1)

    def packed(self, name: str, start: int, stop: int, *, alone: bool = False) -> NDArray[np.uint8]:
        """Rows [start, stop) as they are stored: uint8 (stop - start, bytes of a row).

        Args:
            name: the tensor.
            start: first row.
            stop: one past the last.
            alone: the rows behind them will not be read next.
        """
        tensor = self.tensors[name]
        size = ggml.row_size(tensor.type, tensor.cols)
        out = np.empty((stop - start, size), np.uint8)
        ahead = 0 if alone else (tensor.rows - stop) * size
        self._files.read(tensor.path, tensor.offset + start * size, out.reshape(-1).data, ahead)
        return out

    def values(self, name: str, start: int, stop: int, *, alone: bool = False) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 (stop - start, cols)."""
        tensor = self.tensors[name]
        return ggml.dequantize(self.packed(name, start, stop, alone=alone), tensor.type, tensor.cols)

    def close(self) -> None:
        """Close the files. A later read opens them again."""
        self._files.close()


_FIRST = 1 << 20
"""Bytes that a header is looked for in at first; twice as many each time that it turns out longer."""


def read_hub_header(parts: HubParts, path: Path) -> GgufHeader:
    """Read and check the header of a file on a hub.

    Raises:
        InputError: not a GGUF, truncated or inconsistent.
    """
    size, start = parts.size_of(path), b""
    wanted = _FIRST
    while True:
        more = bytearray(min(wanted, size) - len(start))
        parts.read(path, len(start), memoryview(more))
        start += bytes(more)
        header = parse_gguf_header(path, start, size)
        if header is not None:
            return header
        assert len(start) < size, "a header that needs more than the whole file is damaged"
        wanted *= 2
