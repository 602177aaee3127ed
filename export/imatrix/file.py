"""Importance matrices: how much each column of a weight matrix matters, as llama.cpp stores it.

For every linear layer the file holds the sum over tokens of the squared inputs, one value for each column,
and the number of tokens; their quotient weighs the columns' errors in quantization. Read are both formats of
llama.cpp's `llama-imatrix`, GGUF and the older one; written is GGUF.
Specification: llama.cpp, tools/imatrix and https://github.com/ggml-org/llama.cpp/pull/9400.

    GGUF : general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
           NAME.in_sum2  F32 (matrices, cols)     NAME.counts  F32 (matrices, 1)
    older: i32 entries | entry* | i32 chunks | i32 length, data set's name
           entry: i32 length, NAME | i32 calls | i32 n | f32 [n], the mean square times calls
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from lorafold.artifacts import write_atomic
from lorafold.errors import InputError, NumericError
from lorafold.export.gguf.header import encode_header, padded, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.files.signatures import another_file, head_of
from lorafold.gguf_file.header import STRING, GgufArray, GgufHeader, GgufTensor
from lorafold.gguf_file.read import read_gguf_header

SUMS, COUNTS = ".in_sum2", ".counts"
_AGAIN = "make it again with llama-imatrix"
# llama.cpp looks these up or quantizes them without weights; an entry of another size is no mistake there.
_FREE_NAMES = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
_MAX_LEGACY_ENTRIES = 1_000_000
_MAX_LEGACY_NAME = 1024


@dataclass(frozen=True, slots=True)
class ImatrixEntry:
    """What was measured at one weight tensor.

    Attributes:
        sums: (values,) float32: sums of squared inputs, all matrices of a stack one after the other.
        counts: (parts,) float32: tokens; each counts for an equal share of `sums`. A stack of experts has one
            for each expert, anything else just one.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    def weights(self) -> NDArray[np.float32]:
        """Mean squared inputs (values,) float32; 1 if no token came by."""
        share = self.sums.reshape(len(self.counts), -1)
        counted = self.counts[:, None]
        with np.errstate(over="ignore"):  # a sum over a count near 0; the largest number says as much
            means = np.divide(share, counted, out=np.ones_like(share), where=counted > 0)
        return np.minimum(means, np.finfo(np.float32).max).reshape(-1)


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: by GGUF tensor name.
        datasets: the texts it was collected on, as their files were called.
        chunks: how many chunks of text were read.
        chunk_size: tokens in a chunk.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def weights(self, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[np.float32]]:
        """The weights of a model's tensors, as the writer takes them.

        Args:
            tensors: GGUF names and numpy shapes of the model.

        Returns:
            (cols,) for a matrix, (matrices, cols) for a stack, float32, for each tensor that has an entry.

        Raises:
            InputError: an entry has another size than its tensor, or no entry fits the model at all.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for name, shape in tensors:
            entry = self.entries.get(name)
            if entry is None or len(shape) < 2:
                continue
            matrices, cols, got = math.prod(shape[:-2]), shape[-1], entry.sums.size
            if got != matrices * cols:
                if name in _FREE_NAMES:
                    continue
                raise InputError(
                    f"the importance matrix has {got} values for {name}, expected {matrices * cols}",
                    at="--imatrix",
                    fix="choose one that was made from this model",
                )
            weights = entry.weights()
            found[name] = weights if len(shape) == 2 else weights.reshape(matrices, cols)
        if not found:
            raise InputError(
                f"none of the importance matrix's {len(self.entries)} entries is a tensor of this model",
                at="--imatrix",
                fix="choose one that was made from this model",
            )
        return found


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, in either format.

    Raises:
        InputError: not such a file, truncated, or inconsistent.
        NumericError: a value is NaN, infinite or negative.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", at=path, fix="check --imatrix") from error
    try:
        imatrix = _read_gguf(path) if magic == b"GGUF" else _read_legacy(path)
    except InputError as error:
        raise another_file(path, head_of(path), own="a GGUF file") or error from None
    for name, entry in imatrix.entries.items():
        for values in (entry.sums, entry.counts):
            if not (np.isfinite(values).all() and values.min() >= 0):
                raise NumericError(
                    "NaN, infinite or negative values in an importance matrix",
                    at=f"{path}: {name}",
                    fix=_AGAIN,
                )
    return imatrix


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write an importance matrix in llama.cpp's GGUF format; the file appears whole or not at all."""
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, NDArray[np.float32]] = {}
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        shares = len(entry.counts)
        shapes[name + SUMS], values[name + SUMS] = (shares, entry.sums.size // shares), entry.sums
        shapes[name + COUNTS], values[name + COUNTS] = (shares, 1), entry.counts
    metadata = [
        KeyValue("general.type", "imatrix", GGUFValueType.STRING),
        KeyValue("imatrix.datasets", list(imatrix.datasets), GGUFValueType.ARRAY, GGUFValueType.STRING),
        KeyValue("imatrix.chunk_count", imatrix.chunks, GGUFValueType.UINT32),
        KeyValue("imatrix.chunk_size", imatrix.chunk_size, GGUFValueType.UINT32),
    ]
    tensors = [(MappedTensor(name, shape), GGMLQuantizationType.F32) for name, shape in shapes.items()]
    placed = place_tensors(tensors)
    parts = [encode_header(metadata, placed)]
    for typed in placed:
        data = values[typed.tensor.name].astype("<f4").tobytes()
        parts += [data, bytes(padded(len(data)) - len(data))]
    write_atomic(path, b"".join(parts))


def _read_gguf(path: Path) -> Imatrix:
    header = read_gguf_header(path)
    kind = header.text("general.type")
    if kind != "imatrix":
        raise InputError(
            f"a GGUF of general.type {kind!r}, expected 'imatrix'", at=path, fix="pass llama-imatrix's output"
        )
    names = {suffix: _names(header, suffix) for suffix in (SUMS, COUNTS)}
    if lonely := sorted(names[SUMS] ^ names[COUNTS]):
        raise InputError(f"{lonely[0]} has only one of {SUMS[1:]} and {COUNTS[1:]}", at=path, fix=_AGAIN)
    if not names[SUMS]:
        raise InputError("an importance matrix without entries", at=path, fix=_AGAIN)
    entries = {}
    for name in sorted(names[SUMS]):
        sums, counts = (_values(header, header.tensors[name + suffix]) for suffix in (SUMS, COUNTS))
        if sums.size % counts.size:
            raise InputError(
                f"{name} has {sums.size} sums for {counts.size} counts, which do not divide them",
                at=path,
                fix=_AGAIN,
            )
        entries[name] = ImatrixEntry(sums, counts)
    datasets = header.metadata.get("imatrix.datasets")
    return Imatrix(
        entries,
        tuple(map(_text, datasets.strings()))
        if isinstance(datasets, GgufArray) and datasets.type == STRING
        else (),
        header.number("imatrix.chunk_count") or 0,
        header.number("imatrix.chunk_size") or 0,
    )


def _names(header: GgufHeader, suffix: str) -> set[str]:
    return {name.removesuffix(suffix) for name in header.tensors if name.endswith(suffix)}


def _values(header: GgufHeader, tensor: GgufTensor) -> NDArray[np.float32]:
    if tensor.type_name != "F32":
        raise InputError(f"{tensor.name} is {tensor.type_name}, expected F32", at=header.path, fix=_AGAIN)
    return np.fromfile(header.path, "<f4", tensor.nbytes // 4, offset=tensor.offset).astype(np.float32)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _read_legacy(path: Path) -> Imatrix:
    data = path.read_bytes()
    at = 0

    def take(count: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise InputError(
                f"not an importance matrix: {what} takes {count} bytes at {at}, but the file has {len(data)}",
                at=path,
                fix=_AGAIN,
            )
        at += count
        return data[at - count : at]

    def number(what: str, limit: int) -> int:
        (value,) = struct.unpack("<i", take(4, what))
        if not 0 <= value <= limit:
            raise InputError(
                f"not an importance matrix: {what} is {value}, expected 0 to {limit}", at=path, fix=_AGAIN
            )
        return int(value)

    entries: dict[str, ImatrixEntry] = {}
    for index in range(number("the number of entries", _MAX_LEGACY_ENTRIES)):
        name = _text(take(number(f"the length of name {index}", _MAX_LEGACY_NAME), f"name {index}"))
        calls = number(f"the calls of {name}", 2**31 - 1)
        count = number(f"the values of {name}", len(data) // 4)
        sums = np.frombuffer(take(4 * count, f"the values of {name}"), "<f4").astype(np.float32)
        if not count or name in entries:
            problem = "has no values" if not count else "occurs twice"
            raise InputError(f"{name} {problem}", at=path, fix=_AGAIN)
        entries[name] = ImatrixEntry(sums, np.array([calls or 1], np.float32))
    if not entries:
        raise InputError("an importance matrix without entries", at=path, fix=_AGAIN)
    if at == len(data):  # the oldest files end here
        return Imatrix(entries)
    chunks = number("the number of chunks", 2**31 - 1)
    dataset = take(number("the length of the data set's name", len(data)), "the data set's name")
    return Imatrix(entries, (_text(dataset),) if dataset else (), chunks)
