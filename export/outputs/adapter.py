"""The adapter alone as a GGUF: for llama.cpp's `--lora`, `base.gguf+adapter.gguf`, and Ollama's ADAPTER."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.chat.sources import find_template, folder_source
from lorafold.errors import UsageError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.plan import PROCESS_BYTES, estimated_seconds, estimates
from lorafold.export.gguf.rows import read_block
from lorafold.export.gguf.writer import BYTES_IN_FLIGHT
from lorafold.export.inputs import Inputs
from lorafold.export.outputs.adapter_gguf import AdapterPlan, plan_adapter_gguf
from lorafold.export.outputs.tensor_list import PlannedTensor, tensors_of
from lorafold.export.proof.check import Check
from lorafold.export.proof.tensors import ExactSource
from lorafold.export.quant import ggml
from lorafold.export.survival.survey import Survey
from lorafold.export.workers import Written
from lorafold.packed.formats import without_packing
from lorafold.progress import Progress, silent

GGML_TYPES = {"keep": Type.F16, "f16": Type.F16, "bf16": Type.BF16, "f32": Type.F32}


@dataclass(frozen=True, slots=True)
class AdapterOutput:
    """A planned adapter GGUF; an `Output`.

    Attributes:
        source: the base's tensors with the adapters folded in.
        plan: the file.
        notes: what the user should know.
    """

    source: Folded
    plan: AdapterPlan
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Exact bytes of the file."""
        return self.plan.size

    def describe(self) -> list[tuple[str, str]]:
        """The file, its size and how many weights it changes."""
        text = f"{self.size:,} bytes, changes {len(self.plan.tensors)} tensors at scale 1.0"
        pairs = [math.prod(typed.tensor.shape) for typed in self.plan.file.tensors]
        memory = PROCESS_BYTES + BYTES_IN_FLIGHT * max(pairs)  # a factor is written whole
        seconds = estimated_seconds([(self.plan.file.recipe, sum(pairs))], 1)
        return [(self.plan.file.name, text), *estimates(memory, seconds, 1)]

    def tensors(self) -> list[PlannedTensor]:
        """Both factors of every weight that changes."""
        return tensors_of([self.plan.file])

    def survey(self, weights: int | None = None) -> None:
        """None: an adapter is written as it is, nothing is rounded with a base."""

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write the file."""
        progress("write", 0, self.size)
        self.plan.write(folder / self.plan.file.name)
        progress("write", self.size, self.size)
        return Written()

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """It goes with a GGUF of the base, of any quantization."""
        path = out / self.plan.file.name
        return [
            ("chat", f"lorafold chat BASE.gguf BASE.gguf+{path}"),
            ("llama.cpp", f"llama-server -m BASE.gguf --lora {path}"),
        ]

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """What llama.cpp will add, read back, against the fold's own difference in float64."""
        pairs = {typed.tensor.name: typed for typed in self.plan.file.tensors}
        path, header = folder / self.plan.file.name, len(self.plan.file.header)

        def stored(name: str) -> NDArray[np.float64]:
            typed = pairs[name]
            raw = np.fromfile(path, np.uint8, typed.nbytes, offset=header + typed.offset)
            rows = raw.reshape(-1, typed.row_bytes)
            return ggml.dequantize(rows, typed.type, typed.tensor.cols).astype(np.float64)

        random = np.random.default_rng(0)
        wrong, rows_seen = [], 0
        plain = [low_rank for low_rank in self.plan.tensors if len(low_rank.tensor.shape) == 2]
        for number, low_rank in enumerate(plain):
            progress("prove the tensors", number, len(plain))
            tensor = low_rank.tensor
            a, b = stored(f"{tensor.name}.lora_a"), stored(f"{tensor.name}.lora_b")
            groups = random.choice(
                tensor.rows // tensor.group, min(2, tensor.rows // tensor.group), replace=False
            )
            for group in groups.tolist():
                start, stop = group * tensor.group, (group + 1) * tensor.group
                left, right = (a, b.T) if low_rank.looked_up else (b, a)
                got = self.plan.alpha / low_rank.rank * (left[start:stop] @ right)
                before = read_block(self.source.base, tensor, start, stop).astype(np.float64)
                after = read_block(ExactSource(self.source), tensor, start, stop)
                # float32 keeps 24 bits of the sum, F16 keeps 11 of each factor.
                allowed = 2e-3 * np.abs(after - before).max() + 2.0**-22 * np.abs(before).max()
                if not np.all(np.abs(before + got - after) <= allowed):
                    wrong.append(tensor.name)
                rows_seen += stop - start
        progress("prove the tensors", len(plain), len(plain))
        if wrong:
            return [Check("adapter", "failed", f"{', '.join(wrong[:8])} would change by something else")]
        meaning = f"{rows_seen:,} rows of {len(plain)} tensors change by what the fold in float64 adds"
        return [Check("adapter", "passed", meaning, {"rows": rows_seen, "tensors": len(plain)})]


def plan_adapter_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> AdapterOutput:
    """Plan an adapter GGUF.

    Raises:
        UsageError: the source is a base, not an adapter.
        InputError: the adapter does something that llama.cpp's adapters cannot carry.
    """
    if not inputs.adapters:
        raise UsageError(
            f"{config.source} is a base, not an adapter",
            at="--format adapter",
            fix="pass an adapter folder",
        )
    base_config, source = without_packing(inputs.base.config()), inputs.source
    folders = [adapter.folder for adapter, _ in inputs.adapters]
    tensors = source.base.tensors
    notes = arch.describe_omissions(base_config, tensors, source.touched, folders[0])
    plan = plan_adapter_gguf(
        source,
        arch.map_tensors(base_config, tensors),
        arch.find(base_config).gguf,
        inputs.name,
        type=GGML_TYPES[config.dtype],
        at=folders[0],
        left_out=arch.skipped_tensors(base_config, tensors),
    )
    return AdapterOutput(source, plan, (*notes, *_template_note(inputs)))


def _template_note(inputs: Inputs) -> list[str]:
    """A sentence on the adapter's own chat template, for which an adapter GGUF has no place."""
    found = find_template([adapter.folder for adapter, _ in inputs.adapters])
    of_base = folder_source(inputs.prompt)
    if found is None or (of_base is not None and of_base.text == found[1]):
        return []
    return [
        f"the adapter's chat template ({found[2]}) is not the base's, and an adapter GGUF holds none: "
        "give it to llama.cpp with --chat-template-file"
    ]
