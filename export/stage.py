"""The export: open, plan, write, prove, commit; and the proof once more for an export that exists.

In: an `ExportConfig`. Out: a folder that holds the artifacts, the Modelfile, `report.md` and the manifest, or
nothing at all. This module only joins the steps; each has a module of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lorafold.artifacts import damaged_files, new_folder, read_manifest, write_atomic, write_manifest
from lorafold.chat.named import NAMED
from lorafold.errors import InputError
from lorafold.export.config import ExportConfig
from lorafold.export.destination import check_destination, check_disk
from lorafold.export.inputs import Inputs, check_weights, open_inputs
from lorafold.export.outputs.gguf import IMATRIX
from lorafold.export.outputs.output import FORMATS
from lorafold.export.outputs.tensor_list import listing, summary
from lorafold.export.proof.check import FIXES, Check, Proof
from lorafold.machine import return_free_memory
from lorafold.progress import Progress, silent
from lorafold.stopwatch import Spent

Lines = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What an export made.

    Attributes:
        folder: the output folder.
        files: sizes of the artifacts in bytes, by name.
        proof: what was checked.
        seconds: wall time of planning, writing, proving and committing.
        work: what the seconds of writing went into, by kind of work; see `workers.Written`.
        notes: what the user should know.
        next_steps: label and command of what one would do now.
    """

    folder: Path
    files: Mapping[str, int]
    proof: Proof
    seconds: Mapping[str, float]
    work: Mapping[str, Spent]
    notes: tuple[str, ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()

    def lines(self) -> Lines:
        """Label and text of what was made and proven, and how to go on."""
        lines = [("made in", str(self.folder))]
        lines += [(name, f"{size:,} bytes") for name, size in self.files.items()]
        lines += [(check.verdict, f"{check.name}: {check.meaning}") for check in self.proof.checks]
        lines += [("note", note) for note in self.notes]
        lines.append(("time", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in self.seconds.items())))
        total = sum(spent.wall for spent in self.work.values())
        shares = {kind: spent.wall / total for kind, spent in self.work.items() if spent.wall > total / 100}
        if shares:
            most = sorted(shares.items(), key=lambda item: -item[1])
            lines.append(("written with", ", ".join(f"{kind} {share:.0%}" for kind, share in most)))
        return [*lines, *self.next_steps]


def export(config: ExportConfig, progress: Progress = silent) -> ExportResult:
    """Fold, convert, quantize, prove.

    Args:
        config: what to do.
        progress: told how far it is.

    Returns:
        What was made.

    Raises:
        LorafoldError: before the first byte where that can be known; nothing half-written is left behind.
        NumericError: weights that are no numbers, or a proof that failed.
    """
    clock = _Clock()
    check_destination(config)
    inputs = open_inputs(config, progress)
    check_destination(config, inputs)
    output = FORMATS[config.format](inputs, config)
    check_disk(output.size, config.out)
    check_weights(inputs, progress)
    return_free_memory()
    clock.lap("plan")
    with new_folder(config.out, force=config.force) as staging:
        written = output.write(staging, progress)
        clock.lap("write")
        checks = output.prove(staging, progress) if config.verify else (_UNPROVEN,)
        proof = Proof(tuple(checks), FIXES[config.format])
        proof.require()
        clock.lap("prove")
        write_report(staging, inputs, output.describe(), proof, output.notes)
        facts = {
            "name": inputs.name,
            "config": _resolved(config, inputs),
            "base": {**inputs.base.identity(), "path": str(inputs.base.folder)},
            "adapters": [
                {"folder": str(adapter.folder.resolve()), "weight": weight}
                for adapter, weight in inputs.adapters
            ],
            "folded": dict(inputs.source.touched),
            "proof": proof.as_json(),
        }
        manifest = write_manifest(staging, "export", facts, checksums=written.checksums)
    clock.lap("commit")
    sizes = {name: entry["size"] for name, entry in manifest["files"].items() if name != "report.md"}
    return ExportResult(
        folder=config.out,
        files=sizes,
        proof=proof,
        seconds=clock.laps,
        work=written.work,
        notes=tuple(output.notes),
        next_steps=tuple(output.next_steps(config.out)),
    )


def plan_export(config: ExportConfig, progress: Progress = silent) -> Lines:
    """What `export` would do: files, sizes, memory, disk, time, tensors with their types. Nothing is written.

    Raises:
        LorafoldError: what `export` would raise before its first byte.
    """
    inputs = open_inputs(config, progress)
    check_destination(config, inputs)
    output = FORMATS[config.format](inputs, config)
    free = check_disk(output.size, config.out)
    return [
        ("base", inputs.base.id),
        *(("adapter", f"{adapter.folder} × {weight:g}") for adapter, weight in inputs.adapters),
        *output.describe(),
        ("disk", f"{output.size:,} bytes needed, {free:,} free"),
        *(("note", note) for note in output.notes),
        *(listing if config.tensors else summary)(output.tensors()),
    ]


def verify(
    folder: Path, *, base: str | None = None, chats: Path | None = None, progress: Progress = silent
) -> Proof:
    """Prove an existing export again, from its files and its inputs as they are now.

    Args:
        folder: the export.
        base: the base model, where it lies elsewhere now.
        chats: held-out chats instead of those of the export.
        progress: told how far it is.

    Raises:
        InputError: not an export, a damaged file, or inputs that are gone.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "export":
        raise InputError(
            "this is not an export of lorafold", at=folder, fix="give the folder that --out named"
        )
    if damaged := damaged_files(folder, manifest):
        raise InputError(
            f"{', '.join(damaged)} changed since the export (size or sha256)", at=folder, fix="export again"
        )
    config = _config_of(manifest, folder)
    config = replace(config, chats=chats or config.chats, name=config.name or manifest.get("name"))
    if base is not None:
        # Where no adapter was folded in, the base is what was converted.
        config = replace(config, base=base) if manifest.get("adapters") else replace(config, source=base)
    inputs = open_inputs(config, progress)
    output = FORMATS[config.format](inputs, config)
    whole = Check("files", "passed", f"all {len(manifest['files'])} files have their size and sha256")
    return Proof((whole, *output.prove(folder, progress)))


_UNPROVEN = Check("proof", "not checked", "left out with --no-verify; `lorafold verify` makes up for it")


class _Clock:
    """Wall time of the steps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def _resolved(config: ExportConfig, inputs: Inputs) -> dict[str, Any]:
    """The config as `verify` needs it: with what was found for each name, so that it works from anywhere.

    A base may stand as a path from the folder that was current then, also in an adapter's own config.
    """
    values = asdict(config)
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = str(value.resolve())
    base = inputs.base.spec or str(inputs.base.folder)
    adapters = [f"{adapter.folder.resolve()}={weight!r}" for adapter, weight in inputs.adapters]
    if adapters:
        values |= {"source": adapters[0], "adapter": adapters[1:], "base": base}
    else:
        values["source"] = base
    template = config.chat_template
    if template is not None and template not in NAMED:
        values["chat_template"] = str(Path(template).resolve())
    return values


def _config_of(manifest: Mapping[str, Any], folder: Path) -> ExportConfig:
    saved = dict(manifest.get("config") or {})
    known = {field.name for field in fields(ExportConfig)}
    if not {"source", "out"} <= saved.keys() <= known:
        raise InputError(
            "the saved config is not of this version", at=folder / "lorafold.json", fix="export again"
        )
    if saved.get("imatrix_data"):  # what was collected then lies beside the files
        saved |= {"imatrix": folder / IMATRIX, "imatrix_data": None}
    for name in ("out", "imatrix", "chats"):
        saved[name] = None if saved.get(name) is None else Path(saved[name])
    for name in ("adapter", "quant", "tensor_type"):
        saved[name] = tuple(saved.get(name) or ())
    return ExportConfig(**{**saved, "force": True})


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
