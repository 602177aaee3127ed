"""A GGUF in several files, none larger than a limit, as llama.cpp's llama-gguf-split cuts one.

The first file holds all metadata, the vocabulary included; the others hold the keys by which llama.cpp finds
them. A tensor is never cut. The limit is for finished files: headers and padding count.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGMLQuantizationType, GGUFValueType

from lorafold.errors import UsageError
from lorafold.export.gguf.header import TypedTensor, encode_metadata, encode_tensor, padded
from lorafold.export.gguf.parts import KeyValue, MappedTensor

Typed = tuple[MappedTensor, GGMLQuantizationType]


def split_tensors(
    tensors: Sequence[Typed], metadata: Sequence[KeyValue], limit: int | None
) -> list[list[Typed]]:
    """Cut the list of tensors where a file would grow past the limit.

    Args:
        tensors: in file order.
        metadata: of the whole model, without the keys of a split one.
        limit: most bytes of a file, or None for one file.

    Raises:
        UsageError: a file with a single tensor would be larger.
    """
    if limit is None:
        return [list(tensors)]
    whole = _Filling(metadata)
    for tensor in tensors:
        whole.add(tensor)
    if whole.size <= limit:
        return [whole.tensors]
    parts = [_Filling((*metadata, *split_metadata(0, 1, len(tensors))))]
    needed = 0
    for tensor in tensors:
        if parts[-1].tensors and parts[-1].size_with(tensor) > limit:
            parts.append(_Filling(split_metadata(1, 1, len(tensors))))
        parts[-1].add(tensor)
        if len(parts[-1].tensors) == 1:
            needed = max(needed, parts[-1].size)
    if needed > limit:
        raise UsageError(
            f"a file with its header and one tensor takes {needed:,} bytes, more than {limit:,}",
            at="--split-max-size",
            fix=f"allow at least {needed} bytes",
        )
    return [part.tensors for part in parts]


def split_metadata(number: int, count: int, tensors: int) -> tuple[KeyValue, ...]:
    """llama.cpp's keys of a file of a split model; they take the same room whatever the numbers are.

    Args:
        number: of the file, from 0.
        count: of files.
        tensors: in all files together.
    """
    return (
        KeyValue("split.no", number, GGUFValueType.UINT16),
        KeyValue("split.count", count, GGUFValueType.UINT16),
        KeyValue("split.tensors.count", tensors, GGUFValueType.INT32),
    )


class _Filling:
    """A file that tensors are put into, and its size."""

    def __init__(self, metadata: Sequence[KeyValue]) -> None:
        self.tensors: list[Typed] = []
        self._header, self._data = len(encode_metadata(metadata, 0)), 0

    @property
    def size(self) -> int:
        """Bytes of the finished file."""
        return padded(self._header) + self._data

    def size_with(self, tensor: Typed) -> int:
        """Bytes of the finished file if this tensor were in it too."""
        header, data = _sizes(tensor)
        return padded(self._header + header) + self._data + data

    def add(self, tensor: Typed) -> None:
        header, data = _sizes(tensor)
        self.tensors.append(tensor)
        self._header, self._data = self._header + header, self._data + data


def _sizes(tensor: Typed) -> tuple[int, int]:
    """Bytes that a tensor adds to the header and to the data."""
    typed = TypedTensor(*tensor, offset=0)
    return len(encode_tensor(typed)), padded(typed.nbytes)
