"""What can be made of opened inputs: GGUF files, a merged folder, an adapter GGUF.

An output is planned from the inputs and the config, and whatever makes it impossible is found then. It says
what it will make, writes it into a folder, and proves what it wrote. `stage.export` treats them all alike.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lorafold.export.config import ExportConfig
from lorafold.export.inputs import Inputs
from lorafold.export.outputs.adapter import plan_adapter_output
from lorafold.export.outputs.folder import plan_folder_output
from lorafold.export.outputs.gguf import plan_gguf_output
from lorafold.export.outputs.onto import plan_onto_output
from lorafold.export.outputs.tensor_list import PlannedTensor
from lorafold.export.proof.check import Check
from lorafold.export.survival.survey import Survey
from lorafold.export.workers import Written
from lorafold.progress import Progress, silent


class Output(Protocol):
    """One kind of output, planned."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""

    @property
    def size(self) -> int:
        """Bytes that will be written; exact for GGUF files."""

    def describe(self) -> list[tuple[str, str]]:
        """Label and text of what is made, and what memory and time that takes."""

    def tensors(self) -> list[PlannedTensor]:
        """Every tensor that is made, in file order."""

    def survey(self, weights: int | None = None) -> Survey | None:
        """What survives of the adapters' change, still to be measured, on so many weights of each tensor, by
        default as many as writing can afford; None if there is nothing to measure."""

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write into an empty folder; the survey is taken on the way."""

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Label and command of what one would do with the finished folder."""

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Check what was written."""


PLANNERS: dict[str, Callable[[Inputs, ExportConfig, Progress], Output]] = {
    "gguf": plan_gguf_output,
    "folder": plan_folder_output,
    "adapter": plan_adapter_output,
}


def plan_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> Output:
    """The output of a config, planned; `--onto` gives a GGUF too, but made from another one."""
    if config.onto is not None:
        return plan_onto_output(inputs, config, progress)
    return PLANNERS[config.format](inputs, config, progress)
