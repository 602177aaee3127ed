"""`report.md`: what an export made and what was proven, for whoever opens the folder later."""

from __future__ import annotations

from pathlib import Path

from lorafold.artifacts import write_atomic
from lorafold.export.inputs import Inputs
from lorafold.export.proof.check import Proof


def write_report(
    folder: Path, inputs: Inputs, rows: list[tuple[str, str]], proof: Proof, notes: list[str]
) -> None:
    """Write the report.

    Args:
        folder: the export.
        inputs: what it was made from.
        rows: label and text of what was made.
        proof: the checks.
        notes: what the user should know.
    """
    adapters = [f"`{adapter.folder}` × {weight:g}" for adapter, weight in inputs.adapters]
    lines = [
        f"# {inputs.name}",
        "",
        f"Base: `{inputs.base.id}`. Adapters folded in: {', '.join(adapters) or 'none'}.",
        "",
        "## Made",
        "",
        *(f"- **{label}**: {text}" for label, text in rows),
        "",
        "## Proven",
        "",
        "| check | verdict | what it says |",
        "|---|---|---|",
        *(f"| {c.name} | {c.verdict} | {c.meaning.replace('|', chr(92) + '|')} |" for c in proof.checks),
        "",
    ]
    if notes:
        lines += ["## To know", "", *(f"- {note}" for note in notes), ""]
    write_atomic(folder / "report.md", "\n".join(lines))
