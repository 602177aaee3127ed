"""A merged Hugging Face folder: safetensors, config, tokenizer and chat template, streamed like a GGUF."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.plan import PROCESS_BYTES, SPEED, estimated_seconds, estimates
from lorafold.export.inputs import Inputs
from lorafold.export.outputs.merged_folder import (
    BYTES_PER_WEIGHT,
    TORCH_NAMES,
    FolderPlan,
    block_weights,
    plan_merged_folder,
    write_merged_folder,
)
from lorafold.export.outputs.side_files import find_side_files, folder_notes
from lorafold.export.outputs.stochastic import round_rows_at_random
from lorafold.export.outputs.surviving import survey_of
from lorafold.export.outputs.tensor_list import PlannedTensor
from lorafold.export.proof.check import Check
from lorafold.export.survival.rows import as_it_is
from lorafold.export.survival.survey import Survey
from lorafold.export.workers import Written
from lorafold.progress import Progress, silent
from lorafold.weights import Checkpoint

_ROWS = 8  # sampled rows of each tensor
# Half a step of each type, relative to the weight; PEFT's rounding to the base's type may add another.
STEP = {"F32": 2.0**-24, "F64": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
# Below 2^-14 F16 has subnormals only: multiples of 2^-24 (exponent -14, ten bits of fraction), so half a step
# is 2^-25 however small the weight is. F32 and BF16 have theirs below 2^-126, far from any weight.
FLOOR = {"F16": 2.0**-25}
SUM = 1e-7  # of the row's largest weight: a fold's float32 sum of large terms that cancel


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A planned merged folder; an `Output`.

    Attributes:
        inputs: what it is made from.
        config: how.
        plan: its files.
        notes: what the user should know.
    """

    inputs: Inputs
    config: ExportConfig
    plan: FolderPlan
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the weights' files."""
        return self.plan.size

    def describe(self) -> list[tuple[str, str]]:
        """Files with sizes, memory, time."""
        config = self.config
        lines = [
            (shard.name, f"{shard.size:,} bytes, {len(shard.tensors)} tensors") for shard in self.plan.shards
        ]
        in_flight = block_weights(config.max_memory, config.workers) * BYTES_PER_WEIGHT * config.workers
        weights = [
            (tensor.type if tensor.type in SPEED else "F32", math.prod(tensor.shape))
            for tensor in self.tensors()
        ]
        seconds = estimated_seconds(weights, config.workers)
        return [*lines, *estimates(PROCESS_BYTES + in_flight, seconds, config.workers)]

    def tensors(self) -> list[PlannedTensor]:
        """Every tensor of every file."""
        return [
            PlannedTensor(
                shard.name, info.name, info.shape, info.dtype, info.nbytes, info.offset, "the folder"
            )
            for shard in self.plan.shards
            for info in shard.tensors
        ]

    def survey(self, weights: int | None = None) -> Survey | None:
        """What survives of the adapters' change, to be measured."""
        model = [
            (as_it_is(info), GGMLQuantizationType[info.dtype])
            for shard in self.plan.shards
            for info in shard.tensors
            if info.dtype in TORCH_NAMES
        ]
        seed = self.plan.seed
        rounded = None if seed is None else functools.partial(round_rows_at_random, seed=seed)
        return survey_of({"the folder": model}, self.inputs, weights=weights, rounded=rounded)

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write the folder."""
        work = write_merged_folder(
            self.plan,
            self.inputs.source,
            folder,
            threads=self.config.workers,
            max_memory=self.config.max_memory,
            watcher=survey,
            progress=progress,
        )
        return Written({}, work)

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Chat with the folder."""
        return [("chat", f"lorafold chat {out}")]

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Sampled rows of every tensor, read back, against the fold in float64."""
        written, source = Checkpoint.open(folder), self.inputs.source
        if (missing := source.tensors.keys() ^ written.tensors.keys()) != set():
            return [Check("tensors", "failed", f"not in both: {', '.join(sorted(missing)[:8])}")]
        random = np.random.default_rng(0)
        wrong, rows_seen = [], 0
        folded = {name: info for name, info in source.tensors.items() if info.dtype in STEP}
        for number, (name, info) in enumerate(folded.items()):
            progress("prove the tensors", number, len(folded))
            height = int(np.prod(info.shape[:-1], dtype=np.int64))
            rows = np.sort(random.choice(height, min(_ROWS, height), replace=False))
            exact = source.exact_rows(name, rows)
            got = np.concatenate([written.rows(name, int(row), int(row) + 1) for row in rows])
            if not np.all(np.abs(got - exact) <= self._allowed(exact, written.tensors[name].dtype)):
                wrong.append(name)
            rows_seen += len(rows)
        progress("prove the tensors", len(folded), len(folded))
        if wrong:
            return [Check("tensors", "failed", f"rows of {', '.join(wrong[:8])} are not the folded weights")]
        meaning = f"{rows_seen:,} rows from all {len(folded)} tensors are the fold in float64, rounded"
        return [Check("tensors", "passed", meaning, {"rows": rows_seen})]

    def _allowed(self, exact: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
        """How far written weights may be from the exact ones: half a step of each rounding they went through.

        Args:
            exact: the weights.
            kind: the type they are written in.
        """
        size, adapters = np.abs(exact), len(self.inputs.adapters)
        steps = 2.0 if self.config.rounding == "stochastic" else 1.0  # up or down: a whole step, not half
        allowed = (steps * STEP.get(kind, 2.0**-8) + 2.0**-22) * size + steps * FLOOR.get(kind, 0.0)
        if self.config.rounding == "peft":  # each adapter's sum was rounded to the base's 16-bit type
            # What several add may cancel: a sum on the way was larger than the weight it came to.
            passed = size if adapters < 2 else size + 2 * np.sqrt(np.mean(np.square(exact)))
            allowed += adapters * (STEP["BF16"] * passed + FLOOR["F16"])
        return np.asarray(allowed + SUM * size.max(initial=0))


def plan_folder_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> FolderOutput:
    """Plan a merged folder.

    Raises:
        InputError: a chat template that cannot be read.
    """
    template = None if inputs.template is None else ChatTemplate.chosen(inputs.template).source
    side_files = find_side_files(
        inputs.base.folder,
        prompt=inputs.prompt,
        tokenizer=inputs.tokenizer,
        adapters=[adapter.folder for adapter, _ in inputs.adapters],
        template=template,
    )
    plan = plan_merged_folder(
        inputs.source,
        inputs.base.folder,
        side_files,
        dtype=config.dtype,
        shard_bytes=config.shard_max_size,
        seed=config.seed if config.rounding == "stochastic" else None,
    )
    kept = [*plan.copied, *plan.written]
    return FolderOutput(inputs, config, plan, (*inputs.notes, *folder_notes(inputs, kept)))
