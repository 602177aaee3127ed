"""What an export writes down about itself: `lorafold.json` and `report.md`, and the config that `verify`
reads back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorafold.artifacts import write_atomic, write_manifest
from lorafold.chat.named import NAMED
from lorafold.errors import InputError
from lorafold.export.config import ExportConfig
from lorafold.export.fitting.fit import Fitted
from lorafold.export.fitting.share import Calibrated
from lorafold.export.fitting.words import calibrated_as_json, fitted_as_json
from lorafold.export.inputs import Inputs
from lorafold.export.judge.choice import BaseChoice
from lorafold.export.outputs.gguf import IMATRIX
from lorafold.export.proof.check import Proof
from lorafold.export.report.page import export_page
from lorafold.export.report.sbom import SBOM, bill_of_materials
from lorafold.export.survival.words import Findings
from lorafold.files.shapes import Shape, require_shape

REPORT = "report.md"
PAGE = "report.html"
READ = """\
How to read it: KL says how far two models' probabilities of the next token are apart, in nats, as a mean
over the answers' tokens; 0 is the same model. Top-1 agreement says how often both would choose the same
token. A file is right if it loses what its type costs this model by itself. The fine-tune is well kept if
that is small beside the adapter's own effect."""


def describe_export(
    folder: Path,
    config: ExportConfig,
    inputs: Inputs,
    proof: Proof,
    *,
    made: Sequence[tuple[str, str]],
    notes: Sequence[str],
    survival: Findings,
    fitted: Mapping[str, Fitted],
    choice: BaseChoice | None,
    calibrated: Calibrated | None,
    checksums: Mapping[str, str],
) -> dict[str, Any]:
    """Write the report and the manifest of an export.

    Args:
        folder: where the artifacts lie.
        config: what was asked for.
        inputs: what it was made from.
        proof: the checks.
        made: label and text of what was made.
        notes: what the user should know.
        survival: what is left of the adapters' change.
        fitted: the mixtures that were chosen, by file.
        choice: which of two bases was taken, if there were two.
        calibrated: what became of `--imatrix-data`.
        checksums: sha256 of files that are known already.

    Returns:
        The manifest.
    """
    _write_report(folder / REPORT, inputs, made, proof, notes, survival)
    facts = {
        "name": inputs.name,
        "config": _resolved(config, inputs),
        "base": {**inputs.base.identity(), "path": str(inputs.base.folder)},
        "adapters": [
            {"folder": str(adapter.folder.resolve()), "weight": weight} for adapter, weight in inputs.adapters
        ],
        "folded": dict(inputs.source.touched),
        "survival": survival.as_json(),
        "mixtures": {name: fitted_as_json(one) for name, one in fitted.items()},
        "choice of the base": None if choice is None else choice.as_json(),
        "calibration": None if calibrated is None else calibrated_as_json(calibrated),
        "verdict": proof.verdict,
        "proof": proof.as_json(),
    }
    if config.report:
        sizes = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()]
        made_files = [(name, size) for name, size in sizes if name.endswith((".gguf", ".safetensors"))]
        write_atomic(folder / PAGE, export_page(facts, made_files, notes))
    if config.sbom:
        adapters = [(adapter.folder, weight) for adapter, weight in inputs.adapters]
        bill = bill_of_materials(
            inputs.name, inputs.base.identity(), inputs.base.folder, adapters, folder, checksums
        )
        write_atomic(folder / SBOM, bill)
    return write_manifest(folder, "export", facts, checksums=checksums)


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


def config_of(manifest: Mapping[str, Any], folder: Path) -> ExportConfig:
    saved = dict(manifest.get("config") or {})
    known = {field.name for field in fields(ExportConfig)}
    if not {"source", "out"} <= saved.keys() <= known:
        raise InputError(
            "the saved config is of another version", at=folder / "lorafold.json", fix="export again"
        )
    require_shape(saved, saved_shape(ExportConfig), f"{folder / 'lorafold.json'}: config")
    if saved.get("imatrix_data"):  # what was collected then lies beside the files
        saved |= {"imatrix": folder / IMATRIX, "imatrix_data": None, "imatrix_share": None}
    for chosen in (manifest.get("mixtures") or {}).values():  # what was measured once is not measured again
        saved |= {"fit": None, "max_kl": None, "keep_delta": None, "quant": (chosen["recipe"],)}
        if chosen["types"]:
            saved["tensor_type"] = [f"^{re.escape(name)}$={kind}" for name, kind in chosen["types"].items()]
    for name in ("out", "imatrix", "chats", "onto"):
        saved[name] = None if saved.get(name) is None else Path(saved[name])
    for name in ("adapter", "quant", "tensor_type"):
        saved[name] = tuple(saved.get(name) or ())
    return ExportConfig(**{**saved, "force": True})


@cache
def saved_shape(config: type) -> dict[str, Shape]:
    """The form that the fields of a config have in JSON, by their annotations."""
    return {name: _in_json(hint) for name, hint in get_type_hints(config).items()}


def _in_json(hint: Any) -> Shape:
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin is tuple:
        return [_in_json(inner[0])]
    if origin is Literal:
        return tuple({type(each) for each in inner})
    if origin in (Union, UnionType):  # null is no value
        return tuple(map(_in_json, inner))
    if hint is float:
        return (int, float)
    return str if hint is Path else bool if hint is bool else int if hint is int else str


def _write_report(
    path: Path,
    inputs: Inputs,
    made: Sequence[tuple[str, str]],
    proof: Proof,
    notes: Sequence[str],
    survival: Findings,
) -> None:
    adapters = [f"`{adapter.folder}` × {weight:g}" for adapter, weight in inputs.adapters]
    lines = [
        f"# {inputs.name}",
        "",
        f"Base: `{inputs.base.id}`. Adapters folded in: {', '.join(adapters) or 'none'}.",
        "",
        "## Made",
        "",
        *(f"- **{label}**: {text}" for label, text in made),
        "",
        f"## Proof: {proof.verdict}",
        "",
        f"{proof.summary()[:1].upper()}{proof.summary()[1:]}.",
        "",
        "| check | verdict | what it says |",
        "|---|---|---|",
        *(f"| {c.name} | {c.verdict} | {c.meaning.replace('|', chr(92) + '|')} |" for c in proof.checks),
        "",
    ]
    lines += [READ, "", *survival.as_markdown()]
    if notes:
        lines += ["## To know", "", *(f"- {note}" for note in notes), ""]
    write_atomic(path, "\n".join(lines))
