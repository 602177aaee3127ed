"""What a GGUF leaves out of a model, as sentences for the report.

That is what llama.cpp does not compute, a model's other parts than text, and what an adapter changes there.
llama.cpp keeps an image encoder in a file of its own (mmproj), so a text GGUF answers texts exactly as the
whole model does, and sees no images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lorafold.errors import InputError
from lorafold.export.arch.table import view_of
from lorafold.export.arch.tensors import BUFFER_REASONS, header_numbers, skipped_tensors

KEEPS_ALL = "`--format folder` keeps everything"


def caveats(config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp leaves out of this model, a sentence each; mostly nothing."""
    row, view = view_of(config)
    return [
        f"{view.spelled(rule.field)} is {view.get(rule.field)!r}, expected {rule.expected}"
        for rule in row.caveats
        if not rule.holds(view)
    ]


def describe_omissions(
    config: Mapping[str, Any], tensors: Iterable[str], touched: Collection[str], at: Path | None
) -> list[str]:
    """Sentences about parts of a model that its GGUF does not hold.

    Args:
        config: the parsed config.json.
        tensors: names of the model's tensors.
        touched: those that the adapters change.
        at: the adapter's folder, for the error.

    Returns:
        A sentence for each part that is left out, and one for what the adapters do there; mostly nothing.

    Raises:
        InputError: the adapters change nothing that the GGUF holds, or a number that its header holds.
    """
    skipped = {
        name: reason
        for name, reason in skipped_tensors(config, tensors).items()
        if reason not in BUFFER_REASONS
    }
    parts: dict[tuple[str, str], int] = {}
    for name, reason in skipped.items():
        part = name.removeprefix("model.").partition(".")[0]
        parts[part, reason] = parts.get((part, reason), 0) + 1
    notes = [
        f"{part} is left out ({count} of its tensors): {reason}" for (part, reason), count in parts.items()
    ]
    in_header = {name for names in header_numbers(config, tensors).values() for name in names}
    if numbers := sorted(in_header & set(touched)):
        raise InputError(
            f"the adapter changes {numbers[0]}, a number that a GGUF keeps in its header",
            at=at,
            fix=KEEPS_ALL,
        )
    lost = sorted(skipped.keys() & set(touched))
    if not lost:
        return notes
    if len(lost) == len(touched):
        raise InputError(
            f"the adapter changes only what a GGUF of the text part does not hold ({lost[0]} and such)",
            at=at,
            fix=KEEPS_ALL,
        )
    notes.append(
        f"{len(lost)} of the {len(touched)} tensors that the adapter changes are in these parts, {lost[0]} "
        f"among them: texts are answered as trained, images are not seen; {KEEPS_ALL}"
    )
    return notes
