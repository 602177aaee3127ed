"""Carries out a plan: read a block of rows, fold, permute, quantize for each file, write it at its offset.

Blocks are rows, so memory does not grow with the model. A few threads take blocks from one list; the plan
knows each block's offset, so the bytes do not depend on which thread took it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from lorafold.artifacts import system_faults
from lorafold.export.gguf.checksum import RunningChecksum
from lorafold.export.gguf.header import GgufFile, TypedTensor, padded
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.rows import RowSource, column_weights, read_block
from lorafold.export.quant import quantize as kernels
from lorafold.export.workers import Written, pwrite_all, work_off
from lorafold.progress import Progress, silent
from lorafold.stopwatch import Spent, Stopwatch, doing

# Bytes that one weight takes while its block is in flight: the block itself, a fold's temporary, the output.
BYTES_IN_FLIGHT = 12
MAX_BLOCK_WEIGHTS = 1 << 19

Weights = NDArray[np.float32] | None
Packed = Callable[[str, GGMLQuantizationType, int, int, Weights], NDArray[np.uint8] | None]
"""Rows [start, stop) of a tensor as they shall be stored in this type, or None if they must be quantized."""


Seen = Callable[[GGMLQuantizationType, NDArray[np.uint8]], None]
"""What takes the rows of a block as they are written in a type."""


class Watcher(Protocol):
    """Someone who looks on while blocks are written, from any thread."""

    def look(self, name: str, start: int, stop: int, block: NDArray[np.float32] | None) -> Seen | None:
        """Begin with a block, before it may be changed.

        Args:
            name: the tensor.
            start: first row.
            stop: one past the last.
            block: its rows as they are quantized; None if no file needed them.

        Returns:
            What wants to see what became of them, or None.
        """


def write_gguf_files(
    files: Sequence[GgufFile],
    source: RowSource,
    folder: Path,
    *,
    threads: int,
    max_memory: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    packed: Packed | None = None,
    watcher: Watcher | None = None,
    progress: Progress = silent,
) -> Written:
    """Write every file from one read of the source.

    Args:
        files: what to write; the same tensor may stand in several files in several types.
        source: float32 rows of the Hugging Face tensors, folded or not.
        folder: where; it must exist.
        threads: worker threads.
        max_memory: bytes that blocks in flight may take, all threads together.
        imatrix: importance weights by GGUF tensor name: (cols,) or (matrices, cols), float32.
        packed: hands out rows that need not be quantized, see `Packed`.
        watcher: is shown every block and what became of it.
        progress: told the bytes written.

    Returns:
        sha256 by file name, and what the time went into.

    Raises:
        NumericError: a weight is NaN or infinite.
        SystemFault: the disk refused.
    """
    tensors = {typed.tensor.name: typed.tensor for file in files for typed in file.tensors}
    most = max_memory // (BYTES_IN_FLIGHT * threads)
    blocks = (
        (tensor, start, stop)
        for tensor in tensors.values()
        for start, stop in block_rows(tensor, min(most, largest_block(tensor)))
    )
    watch = Stopwatch()
    with ExitStack() as opened:
        outputs = [_OpenFile.create(folder / file.name, file, opened) for file in files]
        targets: dict[str, list[_Target]] = {}
        for output in outputs:
            for typed in output.file.tensors:
                targets.setdefault(typed.tensor.name, []).append(_Target(output, typed))

        def carry_out(block: tuple[MappedTensor, int, int]) -> int:
            tensor, start, stop = block
            weights = column_weights(imatrix, tensor, start)
            return _write_block(source, tensor, start, stop, targets[tensor.name], weights, packed, watcher)

        with watch.measured("compile"):
            kernels.import_compiler(typed.type for file in files for typed in file.tensors)
        with system_faults(folder):
            work = work_off(
                blocks,
                carry_out,
                threads=threads,
                total=sum(typed.nbytes for file in files for typed in file.tensors),
                progress=progress,
            )
            with watch.measured("sync"):
                for output in outputs:
                    os.fsync(output.descriptor)
        checksums = {output.file.name: output.checksum.hexdigest(output.file.size) for output in outputs}
    for kind, spent in watch.spent.items():
        work[kind] = work.get(kind, Spent()) + spent
    return Written(checksums, work)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file that is being written."""

    file: GgufFile
    descriptor: int
    checksum: RunningChecksum

    @classmethod
    def create(cls, path: Path, file: GgufFile, opened: ExitStack) -> _OpenFile:
        """Take the whole file's room on the disk and write its header; `opened` will close it."""
        with system_faults(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            opened.callback(os.close, descriptor)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, file.size)  # a full disk is found here, not after minutes
            else:
                os.ftruncate(descriptor, file.size)
            created = cls(file, descriptor, RunningChecksum(descriptor))
            created.write(memoryview(file.header), 0)
            return created

    def write(self, data: memoryview, offset: int) -> None:
        """Write a part."""
        with doing("write"):
            pwrite_all(self.descriptor, data, offset)
        with doing("checksum"):
            self.checksum.add(data, offset)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one tensor goes in one file."""

    output: _OpenFile
    typed: TypedTensor

    def write(self, rows: NDArray[np.uint8], start: int) -> None:
        """Write quantized rows from row `start` on; behind the last one, the padding up to the next tensor.

        The padding is there already, as zeros: it is only added to the checksum.
        """
        offset = len(self.output.file.header) + self.typed.offset + start * self.typed.row_bytes
        self.output.write(memoryview(rows.reshape(-1)), offset)  # type: ignore[arg-type]  # arrays are buffers
        padding = padded(self.typed.nbytes) - self.typed.nbytes
        if padding and start + len(rows) == self.typed.tensor.rows:
            self.output.checksum.add(bytes(padding), offset + rows.nbytes)


def _write_block(
    source: RowSource,
    tensor: MappedTensor,
    start: int,
    stop: int,
    targets: Sequence[_Target],
    weights: NDArray[np.float32] | None,
    packed: Packed | None,
    watcher: Watcher | None,
) -> int:
    """Rows [start, stop) of one tensor, into every file that holds it; returns the bytes written."""
    block: NDArray[np.float32] | None = None
    shown: dict[GGMLQuantizationType, NDArray[np.uint8]] = {}
    written = 0
    for target in targets:
        type_ = target.typed.type
        rows = None if packed is None else packed(tensor.name, type_, start, stop, weights)
        if rows is None:
            if block is None:
                with doing("reorder"):
                    block = read_block(source, tensor, start, stop)
            with doing("quantize"):
                rows = kernels.quantize(block, type_, weights, at=tensor.name, first_row=start)
        target.write(rows, start)
        written += rows.nbytes
        shown[type_] = rows
    if watcher is not None and (see := watcher.look(tensor.name, start, stop, block)) is not None:
        for kind, rows in shown.items():
            see(kind, rows)
    return written


def largest_block(tensor: MappedTensor) -> int:
    """The weights that a block holds at most, if memory allows.

    Every block of a transposed tensor reads a whole matrix, so it should hold the matrix.
    """
    return max(MAX_BLOCK_WEIGHTS, tensor.height * tensor.cols) if tensor.transpose else MAX_BLOCK_WEIGHTS


def block_rows(tensor: MappedTensor, weights: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor into blocks of about `weights` weights: whole groups, within one matrix of experts."""
    matrix = tensor.height
    step = max(weights // tensor.cols // tensor.group, 1) * tensor.group
    for first in range(0, tensor.rows, matrix):
        for start in range(first, first + matrix, step):
            yield start, min(start + step, first + matrix)
