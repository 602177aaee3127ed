"""What an export will do, known from headers alone: tensors, types, offsets, sizes, memory, disk, time.

The writer carries the plan out as it is. Names and sizes that cannot work are found here, before the first
byte is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from lorafold.export.config import file_stem
from lorafold.export.gguf.header import GgufFile, encode_header, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.export.gguf.split import split_metadata, split_tensors
from lorafold.export.gguf.writer import BYTES_IN_FLIGHT, largest_block

# Python, numpy, numba with LLVM (110 MB of it, two thirds a mapped file): measured, see docs/benchmarks.md.
PROCESS_BYTES = 150_000_000
# Million weights per second on one thread of a Zen 4 machine, reading and folding included (see docs/log.md).
# Only the time estimate uses them.
SPEED = {
    "F32": 250.0,
    "F16": 200.0,
    "BF16": 220.0,
    "Q8_0": 130.0,
    "Q4_0": 150.0,
    "Q4_1": 150.0,
    "Q5_0": 120.0,
    "Q5_1": 120.0,
    "Q4_K": 55.0,
    "Q5_K": 50.0,
    "Q6_K": 55.0,
    "Q3_K": 60.0,
    "Q2_K": 45.0,
}
SLOW = 5.0  # the IQ types: ggml's kernels


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What will be written.

    Attributes:
        files: the GGUF files with their headers and offsets.
        threads: worker threads.
        memory: bytes of peak memory, estimated.
        seconds: wall time, estimated from the kernels' measured speed.
    """

    files: tuple[GgufFile, ...]
    threads: int
    memory: int
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of all files together: exact."""
        return sum(file.size for file in self.files)

    def types(self, file: GgufFile) -> dict[str, int]:
        """Weights per type in one file, most first."""
        counts: dict[str, int] = {}
        for typed in file.tensors:
            counts[typed.type.name] = counts.get(typed.type.name, 0) + math.prod(typed.tensor.shape)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True)
class GgufModel:
    """One GGUF model to be planned: a recipe's name, and the decided type of each tensor in file order."""

    recipe: str
    metadata: tuple[KeyValue, ...]
    tensors: tuple[tuple[MappedTensor, GGMLQuantizationType], ...]


def plan_files(
    models: Sequence[GgufModel],
    name: str,
    *,
    threads: int,
    max_memory: int,
    split_max_size: int | None = None,
) -> ExportPlan:
    """Lay out every file.

    Args:
        models: what to write.
        name: the model's; cleaned and with the recipe appended it is the files'.
        threads: worker threads.
        max_memory: bytes that row blocks in flight may take.
        split_max_size: bytes of one file at most (llama.cpp's split naming), or None for whole files.

    Raises:
        UsageError: no file that small can hold its header and a tensor.
    """
    files: list[GgufFile] = []
    for model in models:
        stem = f"{file_stem(name)}-{model.recipe}"
        parts = split_tensors(model.tensors, model.metadata, split_max_size)
        for number, part in enumerate(parts):
            metadata = model.metadata if number == 0 else ()
            file_name, joined = f"{stem}.gguf", None
            if len(parts) > 1:
                joined = file_name
                file_name = f"{stem}-{number + 1:05d}-of-{len(parts):05d}.gguf"
                metadata = (*metadata, *split_metadata(number, len(parts), len(model.tensors)))
            placed = place_tensors(part)
            header = encode_header(metadata, placed)
            files.append(GgufFile(file_name, model.recipe, header, tuple(placed), number == 0, joined))
    largest = max(largest_block(tensor) for model in models for tensor, _ in model.tensors)
    in_flight = min(max_memory, threads * largest * BYTES_IN_FLIGHT)
    headers = sum(len(file.header) for file in files)
    weights = ((typed.type.name, math.prod(typed.tensor.shape)) for file in files for typed in file.tensors)
    seconds = estimated_seconds(weights, threads)
    return ExportPlan(tuple(files), threads, PROCESS_BYTES + in_flight + 3 * headers, seconds)


def estimated_seconds(weights: Iterable[tuple[str, int]], threads: int) -> float:
    """A guess at the wall time: weights over their type's measured speed, shared by the threads.

    Args:
        weights: type and number of the weights of each tensor.
        threads: worker threads.
    """
    return sum(count / (SPEED.get(kind, SLOW) * 1e6) for kind, count in weights) / threads


def describe(plan: ExportPlan) -> list[tuple[str, str]]:
    """The plan as label and text, for `--plan` and the report."""
    lines = [
        (file.name, f"{file.size:,} bytes, {len(file.tensors)} tensors: " + _mix(plan.types(file)))
        for file in plan.files
    ]
    return [*lines, *estimates(plan.memory, plan.seconds, plan.threads)]


def estimates(memory: int, seconds: float, threads: int) -> list[tuple[str, str]]:
    """What writing will take.

    Args:
        memory: bytes at the peak.
        seconds: wall time.
        threads: worker threads.
    """
    time = "less than a second" if seconds < 1 else f"about {seconds:,.0f} s"
    return [
        ("memory", f"about {memory / 1e6:,.0f} MB, however many layers there are"),
        ("time", f"{time} on {threads} {'thread' if threads == 1 else 'threads'}, without the proof"),
    ]


def _mix(types: Mapping[str, int]) -> str:
    total = sum(types.values())
    return ", ".join(f"{name} {count / total:.1%}" for name, count in types.items())
