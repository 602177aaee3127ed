"""The weights of a model folder, read row block by row block.

A folder has `model.safetensors`, or `model.safetensors.index.json` and its shards. A `TensorSource` hands out
rows of any tensor as float32. Opening reads headers alone; rows come by `pread`, so memory does not grow with
the model and any number of threads may read at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError, NumericError, UnsafeInputError
from lorafold.files.home import is_name
from lorafold.files.jsonfile import read_object
from lorafold.safetensors_file import ShardFiles, TensorInfo, read_header
from lorafold.sources.recognize import download_again
from lorafold.stopwatch import doing

__all__ = ["Checkpoint", "TensorInfo", "TensorSource", "item_size"]

SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT = (
    'if you trust their author, convert them: `python -c "from transformers import AutoModelForCausalLM'
    " as M; M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\"`"
)


class TensorSource(Protocol):
    """Named tensors that can be read by rows; a base, or a base with adapters folded in."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor seen as 2-D, all leading dimensions flattened.

        Args:
            name: the tensor; a vector is one row.
            start: first row.
            stop: one past the last row.

        Returns:
            float32 (stop - start, cols), C-contiguous, fresh and writable.
        """


@dataclass(slots=True)
class Checkpoint:
    """A folder of safetensors, checked and ready to be read. Use `Checkpoint.open`."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    _files: ShardFiles = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find and check the weights of a model folder, reading headers alone.

        Args:
            folder: the model's folder.

        Returns:
            The checkpoint; its tensors keep the order of the shards and of their headers.

        Raises:
            InputError: no weights, missing shards, an index that contradicts its shards, a damaged file.
            UnsafeInputError: weights only as pickles, or an index that leaves its folder.
            SystemFault: a file cannot be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError("no such folder", at=folder, fix="give the folder that holds config.json")
        if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
            return cls.of_files(folder, [_inside(folder, SINGLE, folder)])
        if (folder / _INDEX).exists():
            return cls.of_index(folder / _INDEX)
        raise _no_weights(folder)

    @classmethod
    def of_index(cls, index: Path) -> Checkpoint:
        """Open the shards that an index names; arguments and errors as for `open`."""
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("weight_map is missing or empty", at=index, fix="download the index again")
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not is_name(shard):
                problem = f"weight_map[{name!r}] is {shard!r}, expected a file name"
                raise InputError(problem, at=index, fix="download the index again")
        names = sorted(set(weight_map.values()))
        paths = [_inside(index.parent, name, index) for name in names]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} shards are missing: {', '.join(missing)}",
                at=index,
                fix=download_again(index.parent),
            )
        checkpoint = cls.of_files(index.parent, paths)
        _compare(index, weight_map, checkpoint.tensors)
        return checkpoint

    @classmethod
    def of_files(cls, folder: Path, paths: list[Path]) -> Checkpoint:
        """Open the given safetensors files as one checkpoint; errors as for `open`."""
        tensors: dict[str, TensorInfo] = {}
        for path in paths:
            for name, info in read_header(path).items():
                if name in tensors:
                    raise InputError(
                        f"tensor {name!r} is in two shards, {tensors[name].file.name} and {path.name}",
                        at=folder,
                        fix="remove the shard that does not belong to this model",
                    )
                tensors[name] = info
        if not tensors:
            raise InputError("no tensors in it", at=paths[0], fix="download the file again")
        return cls(folder, MappingProxyType(tensors), ShardFiles())

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a tensor as float32; see `TensorSource.rows`.

        Raises:
            InputError: the tensor's type does not hold plain numbers that float32 can take.
            NumericError: a NaN or an infinity among them.
            SystemFault: the file cannot be read, or has changed since it was opened.
        """
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.rows, (name, start, stop, info.shape)
        with doing("read"):
            return self._rows(info, start, stop)

    def stored(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as they lie in the file, in its own type; BF16, which numpy lacks, as its bits.

        Raises:
            InputError: the tensor's type does not hold plain numbers.
            SystemFault: the file cannot be read, or has changed since it was opened.
        """
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.rows, (name, start, stop, info.shape)
        itemsize = item_size(info)
        out = np.empty((stop - start, info.cols), dtype=STORED[info.dtype])
        if out.size:
            self._files.read(info.file, info.offset + start * info.cols * itemsize, _bytes(out))
        return out

    def read_bytes(self, name: str, start: int, into: memoryview) -> None:
        """Fill `into` with a tensor's bytes from `start` on, whatever its type.

        Raises:
            SystemFault: the file cannot be read, or has changed since it was opened.
        """
        info = self.tensors[name]
        assert start >= 0 and start + len(into) <= info.nbytes, (name, start, len(into), info.nbytes)
        if len(into):
            self._files.read(info.file, info.offset + start, into)

    def _rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
        itemsize = item_size(info)
        out = np.empty((stop - start, info.cols), dtype=np.float32)
        if out.size and not self._read_floats(info, info.offset + start * info.cols * itemsize, out):
            row = start + int(np.argmin(np.isfinite(out).all(axis=1)))
            raise NumericError(
                f"NaN or infinity in tensor {info.name!r}, row {row}",
                at=info.file,
                fix="use a checkpoint with finite weights",
            )
        return out

    def _read_floats(self, info: TensorInfo, offset: int, out: NDArray[np.float32]) -> bool:
        """Fill `out` with the numbers at `offset`, converted; returns whether all are finite."""
        if info.dtype == "F32":
            self._files.read(info.file, offset, _bytes(out))
            return math.isfinite(out.max()) and math.isfinite(out.min())
        if info.dtype == "F64":
            wide = np.empty(out.shape, dtype="<f8")
            self._files.read(info.file, offset, _bytes(wide))
            with np.errstate(over="ignore"):  # beyond float32 becomes infinity
                np.copyto(out, wide, casting="same_kind")
            return math.isfinite(out.max()) and math.isfinite(out.min())
        raw = np.empty(out.shape, dtype="<u2")
        self._files.read(info.file, offset, _bytes(raw))
        if info.dtype == "BF16":
            # bfloat16 is the upper half of a float32: widen, then shift into place.
            bits = out.view(np.uint32)
            np.copyto(bits, raw)
            np.left_shift(bits, 16, out=bits)
        else:
            np.copyto(out, raw.view("<f2"))
        # Without the sign, infinity is the least of the bit patterns that are no numbers; 16 bits are looked
        # through in half the time of 32.
        np.bitwise_and(raw, 0x7FFF, out=raw)
        return bool(raw.max() < _INFINITY[info.dtype])

    def close(self) -> None:
        """Close the files. A later `rows` opens them again."""
        self._files.close()


_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00}


_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}
STORED = {"F32": "<f4", "BF16": "<u2", "F16": "<f2", "F64": "<f8"}
"""numpy's type for what `Checkpoint.stored` hands out."""


def item_size(info: TensorInfo) -> int:
    """Bytes of one number of a tensor that holds plain numbers.

    Raises:
        InputError: it holds something else: FP8 with scales beside it, packed 4-bit numbers, integers.
    """
    if info.dtype not in _SIZES:
        raise InputError(
            f"tensor {info.name!r} is {info.dtype}: quantized or integer, expected BF16, F16, F32 or F64",
            at=info.file,
            fix="use the unquantized model that this one was made from, or dequantize it to BF16",
        )
    return _SIZES[info.dtype]


def _bytes(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _inside(folder: Path, name: str, at: Path) -> Path:
    """The path of a file that must lie in the folder, symlinks followed.

    The one exception is the hub's cache, made of links: models--X/snapshots/REV/f -> models--X/blobs/HASH.
    A user's own folder may hold such links too.
    """
    path = folder / name
    home = folder.resolve()
    target = path.resolve()
    cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    cache |= target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if Path(name).is_absolute() or ".." in Path(name).parts or not (target.is_relative_to(home) or cache):
        raise UnsafeInputError(
            f"{name!r} leads out of the folder",
            at=at,
            fix="put the weights themselves into the model's folder",
        )
    return path


def _compare(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """The index and the shards must name the same tensors in the same files."""
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError(
                f"tensor {name!r} is in no shard, expected in {shard}",
                at=index,
                fix="download the shards again",
            )
        found = tensors[name].file
        if found != index.parent / shard:
            raise InputError(
                f"tensor {name!r} is in {found.name}, expected in {shard}",
                at=index,
                fix="download the index again",
            )
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        raise InputError(
            f"{len(extra)} tensors of the shards are not in the index, the first is {extra[0]!r}",
            at=index,
            fix="download index and shards from the same revision",
        )


def _no_weights(folder: Path) -> InputError | UnsafeInputError:
    pickles = sorted({path.name for pattern in _PICKLES for path in folder.glob(pattern)})
    if pickles:
        return UnsafeInputError(
            f"weights only as pickles, which can run code when loaded: {', '.join(pickles[:3])}",
            at=folder,
            fix=CONVERT,
        )
    if (folder / "adapter_config.json").exists():
        return InputError("this is an adapter, not a base model", at=folder, fix="name its base with --base")
    return InputError(f"no weights: neither {SINGLE} nor {_INDEX}", at=folder, fix=download_again(folder))
