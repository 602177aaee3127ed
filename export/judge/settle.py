"""`--fold-into auto` with two bases to choose from.

What counts is how near the answers come to what was trained. The packed base, unpacked, is exactly what was
trained on; but its weights lie on a coarse grid, and a type of nearly the same grid may round the adapter's
change away. The original lies on no grid, but lacks what packing did to the weights, which the adapter knows.
The one as trained stays unless the other is better by more than the measurement's own uncertainty.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from lorafold.errors import LorafoldError
from lorafold.export.bases import names_base, original_at_hand
from lorafold.export.config import ExportConfig
from lorafold.export.inputs import Inputs, open_inputs
from lorafold.export.judge.choice import BaseChoice, BaseDistances
from lorafold.export.judge.measure import check_comparable, measure
from lorafold.machine import return_free_memory
from lorafold.models import Base
from lorafold.packed.source import PackedCheckpoint
from lorafold.progress import Progress, silent

_LEFT_OUT = "--no-verify leaves out what is measured on answers"


def settle_base(
    inputs: Inputs, config: ExportConfig, progress: Progress = silent, *, planned: bool = False
) -> tuple[Inputs, ExportConfig, BaseChoice | None]:
    """Take the better one of two bases, if there are two.

    Args:
        inputs: base and adapters as they were opened.
        config: what is asked for.
        progress: told how far it is.
        planned: nothing is measured, only that it will be is said.

    Returns:
        What is exported, the config in which that is settled, and the choice; None if there was none.
    """
    packed = isinstance(inputs.source.base, PackedCheckpoint)
    if config.fold_into != "auto" or not (packed and inputs.adapters) or config.format == "adapter":
        return inputs, config, None
    if (original := original_at_hand(inputs.base, config, progress)) is None:
        return inputs, config, None
    on_original = names_base(inputs.adapters[0][0].folder, original)
    trained, other = (original, inputs.base) if on_original else (inputs.base, original)
    found, better = _compared(inputs, on_original, config, progress, planned)
    choice = BaseChoice(trained.id, other.id, better.base.id, found)
    into: Literal["original", "quantized"] = "quantized" if better is inputs else "original"
    return better.said_of_base(choice.note), replace(config, fold_into=into), choice


def _compared(
    inputs: Inputs, on_original: bool, config: ExportConfig, progress: Progress, planned: bool
) -> tuple[BaseDistances | str | None, Inputs]:
    """What was measured of both, or why nothing was, and the better one: as it was opened if that is open."""
    if not config.verify:
        return _LEFT_OUT, inputs
    try:
        plain = _on_original(inputs.base, config)
        trained, other = (plain, inputs) if on_original else (inputs, plain)
        if planned:
            check_comparable(trained, other, config)
            return None, inputs
        found = measure(trained, other, config, progress)
    except LorafoldError as error:
        return error.problem, inputs
    finally:
        return_free_memory()
    return found, other if found.better == "other" else trained


def _on_original(base: Base, config: ExportConfig) -> Inputs:
    """The adapters on the 16-bit original of the base that was opened."""
    spec = base.spec or str(base.folder)
    return open_inputs(replace(config, base=spec, fold_into="original", offline=True))
