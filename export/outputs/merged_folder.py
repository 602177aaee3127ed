"""A folded model as an ordinary Hugging Face folder, for any architecture.

It holds `model.safetensors`, or shards with their index, and what belongs to the model beside the weights
(`side_files`). Headers and sizes are planned first; then row blocks are read, folded, rounded once and
written at their offsets, so memory does not grow with the model and the bytes depend on no thread.

A shard is a safetensors file (https://github.com/huggingface/safetensors, "Format"); its header is padded
with spaces to a multiple of 8, and wider types come first so that every tensor is aligned.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from lorafold.artifacts import system_faults
from lorafold.errors import NumericError
from lorafold.export.fold.changes import round_to
from lorafold.export.gguf.writer import Watcher
from lorafold.export.outputs.side_files import SideFiles
from lorafold.export.outputs.stochastic import round_at_random
from lorafold.export.workers import pwrite_all, work_off
from lorafold.files.jsonfile import read_object
from lorafold.progress import Progress, silent
from lorafold.safetensors_file import DTYPE_BITS, ShardFiles, TensorInfo
from lorafold.stopwatch import Spent, doing
from lorafold.tokenizer.folder import copy_files
from lorafold.weights import TensorSource

Dtype = Literal["bf16", "f16", "f32", "keep"]

STORED_TYPES: dict[str, str] = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
FLOAT_TYPES = ("BF16", "F16", "F32", "F64")
_NUMPY = {"F16": "<f2", "F32": "<f4"}
F16_LIMIT = 65520.0  # what rounds to infinity

SHARD_BYTES = 5_000_000_000
BLOCK_WEIGHTS = 1 << 20
# Bytes of one weight while its block is in flight: float32 rows, a fold's temporary, rounded, the output.
BYTES_PER_WEIGHT = 16


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file of weights, settled before anything is written.

    Args:
        name: its file name.
        header: its first bytes, length included.
        tensors: what it holds: entries with their type, and with offset and size as they will be.
        size: of the file, bytes.
    """

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    size: int


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """A merged folder, settled before anything is written.

    Attributes:
        shards: the weights' files.
        copied: files that are copied, by their names in the folder.
        written: texts of the other files, by name.
        seed: of stochastic rounding; None to round to the nearest.
    """

    shards: tuple[ShardPlan, ...]
    copied: Mapping[str, Path]
    written: Mapping[str, str]
    seed: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the weights' files."""
        return sum(shard.size for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, without the headers of their files."""
        return sum(info.nbytes for shard in self.shards for info in shard.tensors)


def plan_merged_folder(
    source: TensorSource,
    base: Path,
    side_files: SideFiles,
    *,
    dtype: Dtype = "keep",
    shard_bytes: int = SHARD_BYTES,
    seed: int | None = None,
) -> FolderPlan:
    """Settle every file of a model folder, from headers alone.

    Args:
        source: the tensors; a `Folded` brings its changes to the configuration with it.
        base: the base model's folder.
        side_files: what goes beside weights and config.json.
        dtype: type of the weights: "bf16", "f16", "f32", or "keep".
        shard_bytes: most bytes of tensors in one file.
        seed: of stochastic rounding; None to round to the nearest.
    """
    shards = plan_shards(source, dtype, shard_bytes)
    config = getattr(source, "config", None) or read_object(base / "config.json")
    written = {**side_files.written, "config.json": _json(_as_older(_typed_config(dict(config), dtype)))}
    if len(shards) > 1:
        tensors = [info for shard in shards for info in shard.tensors]
        total = {
            "total_parameters": sum(int(np.prod(info.shape, dtype=np.int64)) for info in tensors),
            "total_size": sum(info.nbytes for info in tensors),
        }
        weight_map = {info.name: shard.name for shard in shards for info in shard.tensors}
        written["model.safetensors.index.json"] = _json({"metadata": total, "weight_map": weight_map})
    return FolderPlan(shards, side_files.copied, written, seed)


def plan_shards(source: TensorSource, dtype: Dtype, shard_bytes: int = SHARD_BYTES) -> tuple[ShardPlan, ...]:
    """Settle types, offsets and sizes of the weights' files, from headers alone.

    Args:
        source: the tensors.
        dtype: type of the result; "keep" leaves every tensor in its own. Integers always stay.
        shard_bytes: most bytes of tensors in one file; a larger tensor gets a file of its own.

    Returns:
        The files in order.
    """
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in source.tensors.values():
        kind = STORED_TYPES.get(dtype, info.dtype) if info.dtype in FLOAT_TYPES else info.dtype
        if kind == "F64" and info.name in getattr(source, "touched", ()):
            kind = "F32"  # a fold is a float32 sum
        size = int(np.prod(info.shape, dtype=np.int64)) * DTYPE_BITS[kind] // 8
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(TensorInfo(info.name, kind, info.shape, info.file, 0, size))
        filled += size
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    return tuple(_lay_out(name, shard) for name, shard in zip(names, shards, strict=True))


def _lay_out(name: str, tensors: Sequence[TensorInfo]) -> ShardPlan:
    ordered = sorted(tensors, key=lambda info: -DTYPE_BITS[info.dtype])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in ordered:
        end = offset + info.nbytes
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    placed = []
    start = len(header)
    for info in ordered:
        placed.append(TensorInfo(info.name, info.dtype, info.shape, Path(name), start, info.nbytes))
        start += info.nbytes
    return ShardPlan(name, header, tuple(placed), start)


def write_merged_folder(
    plan: FolderPlan,
    source: TensorSource,
    staging: Path,
    *,
    threads: int = 1,
    max_memory: int | None = None,
    watcher: Watcher | None = None,
    progress: Progress = silent,
) -> dict[str, Spent]:
    """Write a model folder.

    Args:
        plan: its files.
        source: the tensors that it was planned for.
        staging: where to write; it exists, and the caller commits it.
        threads: worker threads.
        max_memory: bytes that blocks in flight may take, all threads together.
        watcher: is shown every block of floating-point weights and what became of it.
        progress: told the bytes written.

    Returns:
        What the wall time of writing the weights went into.

    Raises:
        NumericError: a weight is NaN, infinite, or too large for F16.
        SystemFault: the disk refused.
    """
    with system_faults(staging):
        work = _write_shards(plan, source, staging, threads, max_memory, watcher, progress)
        copy_files(plan.copied, staging)
        for name, text in plan.written.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8")
    return work


def _write_shards(
    plan: FolderPlan,
    source: TensorSource,
    staging: Path,
    threads: int,
    max_memory: int | None,
    watcher: Watcher | None,
    progress: Progress,
) -> dict[str, Spent]:
    """Write all files of weights, a block of rows at a time, on some threads."""
    with contextlib.ExitStack() as opened:
        originals = ShardFiles()
        opened.callback(originals.close)
        descriptors: dict[str, int] = {}
        for shard in plan.shards:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptors[shard.name] = descriptor = os.open(staging / shard.name, flags, 0o644)
            opened.callback(os.close, descriptor)
            os.truncate(descriptor, shard.size)
            pwrite_all(descriptor, memoryview(shard.header), 0)

        def write(block: tuple[TensorInfo, int, int]) -> int:
            info, start, stop = block
            width = info.nbytes // info.rows
            if info.dtype in TORCH_NAMES:
                rows = source.rows(info.name, start, stop)
                see = None if watcher is None else watcher.look(info.name, start, stop, rows)
                with doing("round"):
                    if plan.seed is not None:
                        rows = round_at_random(rows, info.dtype, info.name, start, plan.seed)
                    buffer = _encode(rows, info)
                if see is not None:
                    written = np.frombuffer(buffer, np.uint8).reshape(stop - start, width)
                    see(GGMLQuantizationType[info.dtype], written)
            else:  # not folded, and no float32 holds it: integers, float64, FP8 with its scales elsewhere
                original = source.tensors[info.name]
                buffer = memoryview(bytearray((stop - start) * width))
                with doing("read"):
                    originals.read(original.file, original.offset + start * width, buffer)
            with doing("write"):
                pwrite_all(descriptors[str(info.file)], buffer, info.offset + start * width)
            return len(buffer)

        weights = block_weights(max_memory, threads)
        blocks = (block for shard in plan.shards for block in _blocks(shard, weights))
        return work_off(blocks, write, threads=threads, total=plan.nbytes, progress=progress)


def block_weights(max_memory: int | None, threads: int) -> int:
    """How many weights a block may have; a row is never cut."""
    if max_memory is None:
        return BLOCK_WEIGHTS
    return min(BLOCK_WEIGHTS, max_memory // (BYTES_PER_WEIGHT * threads))


def _blocks(shard: ShardPlan, weights: int) -> Iterator[tuple[TensorInfo, int, int]]:
    for info in shard.tensors:
        if info.nbytes == 0:
            continue
        step = max(1, weights // info.cols)
        for start in range(0, info.rows, step):
            yield info, start, min(start + step, info.rows)


def _encode(block: NDArray[np.float32], info: TensorInfo) -> memoryview:
    """A block of rows as the file holds it, rounded once, half to even."""
    if info.dtype == "BF16":
        upper = round_to("BF16", block).view(np.uint32) >> np.uint32(16)
        return upper.astype("<u2").reshape(-1).view(np.uint8).data
    if info.dtype == "F16" and block.size and max(block.max(), -block.min()) >= F16_LIMIT:
        raise NumericError(
            f"a weight of {info.name} is too large for F16", at=info.name, fix="pass --dtype bf16 or f32"
        )
    return block.astype(_NUMPY[info.dtype]).reshape(-1).view(np.uint8).data


def _typed_config(config: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """The configuration with the weights' type, under the key that it uses (transformers 5 or before)."""
    if dtype in STORED_TYPES:
        name = TORCH_NAMES[STORED_TYPES[dtype]]
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = name
        nested = config.get("text_config")
        if isinstance(nested, dict):
            config["text_config"] = {
                field: name if field in ("dtype", "torch_dtype") else value for field, value in nested.items()
            }
    return config


def _as_older(config: dict[str, Any]) -> dict[str, Any]:
    """With the rotary settings also where transformers before 5, vLLM and Ollama look for them.

    Ollama reads a base frequency of 0 where only `rope_parameters` tells it. Settings by kind of layer
    (`rope_parameters: {"full_attention": …}`) have no older form.
    """
    for settings in (config, config.get("text_config")):
        rotary = settings.get("rope_parameters") if isinstance(settings, dict) else None
        if not isinstance(settings, dict) or not isinstance(rotary, dict) or "rope_theta" not in rotary:
            continue
        settings.setdefault("rope_theta", rotary["rope_theta"])
        scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            settings.setdefault("rope_scaling", scaling)
    return config


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
