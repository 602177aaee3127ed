"""Carries out a plan: read a block of rows, fold, permute, quantize into each output, write it at its offset.

In: the planned files and the source of their rows. Out: the files, and their sha256. Blocks are rows, so the
memory in use does not depend on the model's size; a few threads take blocks from one list, and since every
block goes to an offset that the plan knows, the bytes do not depend on which thread took it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.artifacts import sha256_file, system_faults
from lorafold.export import kernels
from lorafold.export.gguf import GgufFile, TypedTensor
from lorafold.export.mapped_tensor import MappedTensor
from lorafold.export.row_ops import RowSource, read_block
from lorafold.progress import Progress, silent

# Bytes that one weight takes while its block is in flight: the block itself, a fold's temporary, the output.
BYTES_IN_FLIGHT = 12
MAX_BLOCK_WEIGHTS = 1 << 19


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one tensor goes in one file."""

    file: int
    typed: TypedTensor
    base: int


def write_gguf_files(
    files: Sequence[GgufFile],
    source: RowSource,
    folder: Path,
    *,
    threads: int,
    max_memory: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """Write every file from one read of the source.

    Args:
        files: what to write; the same tensor may stand in several files in several types.
        source: float32 rows of the Hugging Face tensors, folded or not.
        folder: where; it must exist.
        threads: worker threads.
        max_memory: bytes that blocks in flight may take, all threads together.
        imatrix: importance weights by GGUF tensor name: (cols,) or (matrices, cols), float32.
        progress: told the bytes written.

    Returns:
        sha256 by file name.

    Raises:
        NumericError: a weight is NaN or infinite.
        SystemFault: the disk refused.
    """
    targets: dict[str, list[_Target]] = {}
    tensors: dict[str, MappedTensor] = {}
    for index, file in enumerate(files):
        for typed in file.tensors:
            tensors.setdefault(typed.tensor.name, typed.tensor)
            targets.setdefault(typed.tensor.name, []).append(_Target(index, typed, len(file.header)))
    total = sum(typed.nbytes for file in files for typed in file.tensors)
    weights_per_block = min(MAX_BLOCK_WEIGHTS, max_memory // (BYTES_IN_FLIGHT * threads))
    blocks = _Blocks(
        (tensor, start, stop)
        for tensor in tensors.values()
        for start, stop in block_rows(tensor, weights_per_block)
    )
    descriptors: list[int] = []
    try:
        for file in files:
            path = folder / file.name
            with system_faults(path):
                descriptors.append(_create(path, file))
        done = _Counter(total, progress)

        def work() -> None:
            for tensor, start, stop in blocks:
                written = _write_block(source, tensor, start, stop, targets, descriptors, imatrix or {})
                done.add(written)

        with system_faults(folder):
            _run_threads(work, threads, blocks.close)
            for descriptor in descriptors:
                os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with ThreadPoolExecutor(min(threads, len(files))) as pool:
        digests = pool.map(sha256_file, [folder / file.name for file in files])
        return dict(zip((file.name for file in files), digests, strict=True))


class _Blocks:
    """Blocks of rows, handed to whichever thread asks next."""

    def __init__(self, blocks: Iterator[tuple[MappedTensor, int, int]]) -> None:
        self._blocks = blocks
        self._lock = threading.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[tuple[MappedTensor, int, int]]:
        while True:
            with self._lock:
                block = None if self._closed else next(self._blocks, None)
            if block is None:
                return
            yield block

    def close(self) -> None:
        """Hand out no more: a thread has failed."""
        self._closed = True


def block_rows(tensor: MappedTensor, weights: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor into blocks of about `weights` weights: whole groups, within one matrix of experts.

    A transposed tensor is read whole for each block, so it is one block.
    """
    matrix = tensor.shape[-2] if len(tensor.shape) > 1 else 1  # rows of one expert
    if tensor.transpose:
        yield 0, tensor.rows
        return
    step = max(weights // tensor.cols // tensor.group, 1) * tensor.group
    for first in range(0, tensor.rows, matrix):
        for start in range(first, first + matrix, step):
            yield start, min(start + step, first + matrix)


def _write_block(
    source: RowSource,
    tensor: MappedTensor,
    start: int,
    stop: int,
    targets: Mapping[str, Sequence[_Target]],
    descriptors: Sequence[int],
    imatrix: Mapping[str, NDArray[np.float32]],
) -> int:
    block = read_block(source, tensor, start, stop)
    importance = imatrix.get(tensor.name)
    if importance is not None and importance.ndim == 2:
        importance = importance[start // tensor.shape[-2]] if len(importance) > 1 else importance[0]
    written = 0
    for target in targets[tensor.name]:
        rows = kernels.quantize(block, target.typed.type, importance, at=tensor.name, first_row=start)
        offset = target.base + target.typed.offset + start * target.typed.row_bytes
        _pwrite(descriptors[target.file], rows, offset)
        written += rows.nbytes
    return written


def _pwrite(descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    view = memoryview(data.reshape(-1))  # type: ignore[arg-type]  # numpy arrays are buffers
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _create(path: Path, file: GgufFile) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, file.size)  # a full disk is found here, not after minutes
    else:
        os.ftruncate(descriptor, file.size)
    os.pwrite(descriptor, file.header, 0)
    return descriptor


class _Counter:
    """Bytes written so far, told to `progress` a few times a second at most."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done, self.said = total, 0, 0
        self.step = max(total // 500, 1)
        self.progress, self.lock = progress, threading.Lock()
        progress("write", 0, total)

    def add(self, count: int) -> None:
        with self.lock:
            self.done += count
            if self.done - self.said >= self.step or self.done == self.total:
                self.said = self.done
                self.progress("write", self.done, self.total)


def _run_threads(work: Callable[[], None], threads: int, stop: Callable[[], None]) -> None:
    """Run `work` on each thread; the first failure stops the others and is raised."""
    with ThreadPoolExecutor(threads, thread_name_prefix="lorafold-export") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop()
