"""The export: open, plan, write, prove, commit; and the proof once more for an export that exists.

This module only joins the steps; each has a module of its own. `--out` becomes a whole export or stays as it
was. If a check fails, what was written is kept beside it, under a name that says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorafold.api.notebook import lines_as_html, lines_as_text
from lorafold.artifacts import check_whole, new_folder, read_export, read_manifest
from lorafold.errors import InputError, LorafoldError, NumericError, SystemFault, UsageError
from lorafold.export.config import ExportConfig
from lorafold.export.destination import check_destination, check_disk, keep_aside
from lorafold.export.inputs import check_weights, open_inputs
from lorafold.export.judge.settle import settle_base
from lorafold.export.manifest import REPORT, config_of, describe_export
from lorafold.export.ollama.client import Ollama
from lorafold.export.onto.model import pinned
from lorafold.export.outputs.gguf import GgufOutput
from lorafold.export.outputs.onto import OntoOutput
from lorafold.export.outputs.output import Output, plan_output
from lorafold.export.outputs.prompt.observing import observe_prompts
from lorafold.export.outputs.tensor_list import tensor_listing, tensor_summary
from lorafold.export.proof.check import AGAIN, Check, Proof
from lorafold.export.proof.observed import Observing, check_name
from lorafold.export.proof.sample import estimated_seconds
from lorafold.export.survival.ladder import safest
from lorafold.export.survival.share import Survival
from lorafold.export.survival.survey import PLANNED
from lorafold.export.survival.words import Findings
from lorafold.machine import require_address_space, return_free_memory
from lorafold.progress import Lines, Progress, silent
from lorafold.stopwatch import Spent


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
        survival: what is left of the adapters' change, by model and tensor.
        told: which types were chosen by measurement, and what survives, as label and text.
    """

    folder: Path
    files: Mapping[str, int]
    proof: Proof
    seconds: Mapping[str, float]
    work: Mapping[str, Spent]
    notes: tuple[str, ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()
    survival: Mapping[str, Sequence[Survival]] = field(default_factory=dict)
    told: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return lines_as_text(self.lines())

    def _repr_html_(self) -> str:
        return lines_as_html(self.lines())

    def as_json(self) -> dict[str, Any]:
        """For the next program: where it lies, the proof with its figures, the notes."""
        return {
            "folder": str(self.folder),
            "files": dict(self.files),
            "proof": self.proof.with_summary(),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }

    def lines(self) -> Lines:
        """Label and text of what was made and proven, and how to go on."""
        lines = [("made in", str(self.folder))]
        lines += [(name, f"{size:,} bytes") for name, size in self.files.items()]
        lines += [(check.verdict, f"{check.name}: {check.meaning}") for check in self.proof.checks]
        lines += self.told
        lines.append(("proof", self.proof.summary()))
        if self.proof.unchecked:
            lines.append(("note", "not everything was checked; --require-proof makes that an error"))
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
        LorafoldError: before the first byte if that can be known; nothing half-written is left behind.
        NumericError: weights that are no numbers, or a proof that failed. The files of a failed proof are
        kept in
            `OUT.failed`, those of one that `require_proof` finds incomplete in `OUT.unproven`.
    """
    clock = _Clock()
    require_address_space(_ADDRESS_SPACE, "an export")
    check_destination(config)
    if config.ollama is not None:
        check_name(Ollama(), config.ollama)
    inputs = open_inputs(config, progress)
    check_destination(config, inputs)
    inputs, config, choice = settle_base(inputs, config, progress)
    check_destination(config, inputs)
    config = replace(config, onto=_pinned(config.onto, config), mmproj=_pinned(config.mmproj, config))
    output = plan_output(inputs, config, progress)
    check_disk(output.size, config.out)
    check_weights(inputs, progress)
    if isinstance(output, GgufOutput):
        output = output.calibrated(progress)
        config = output.config
    return_free_memory()
    clock.lap("plan")
    with new_folder(config.out, force=config.force) as staging:
        survey = output.survey()
        written = output.write(staging, progress, survey)
        chosen = output if isinstance(output, GgufOutput | OntoOutput) else None
        raised = chosen.measured.raised_in(chosen.plan.files) if chosen else {}
        survival = Findings.of(survey, config, raised=raised)
        clock.lap("write")
        proof = _prove(output, staging, progress) if config.verify else Proof((_LEFT_OUT,))
        clock.lap("prove")
        manifest = describe_export(
            staging,
            config,
            inputs,
            proof,
            made=output.describe(),
            notes=output.notes,
            survival=survival,
            fitted=output.mixtures() if isinstance(output, GgufOutput) else {},
            choice=choice,
            calibrated=chosen.measured.calibration if chosen else None,
            checksums=written.checksums,
        )
        try:
            proof.require(everything=config.require_proof)
        except NumericError as error:
            kept = keep_aside(staging, config.out, "failed" if proof.passed is False else "unproven")
            raise NumericError(f"{error.problem}; the files are kept in {kept}", fix=error.fix) from error
    clock.lap("commit")
    if config.ollama is not None:
        proof = _created_in_ollama(output, config, proof, progress)
        clock.lap("Ollama")
    sizes = {name: entry["size"] for name, entry in manifest["files"].items() if name != REPORT}
    return ExportResult(
        folder=config.out,
        files=sizes,
        proof=proof,
        seconds=clock.laps,
        work=written.work,
        notes=tuple(output.notes),
        next_steps=tuple(_next_steps(output, config)),
        survival=survival.found,
        told=(*(chosen.measured.describe(chosen.plan.files) if chosen else ()), *survival.lines()),
    )


def _pinned(place: str | None, config: ExportConfig) -> str | None:
    """A GGUF by a name that `verify` finds it by, if one is given."""
    return None if place is None else pinned(place, offline=config.offline)


def _next_steps(output: Output, config: ExportConfig) -> Lines:
    steps = output.next_steps(config.out)
    if config.ollama is None:
        return steps
    return [row for row in steps if row[0] != "Ollama"] + [("Ollama", f"ollama run {config.ollama}")]


def plan_export(config: ExportConfig, progress: Progress = silent) -> Lines:
    """What `export` would do: files, sizes, memory, disk, time, tensors with their types. Nothing is written.

    Raises:
        LorafoldError: what `export` would raise before its first byte.
    """
    inputs, config, _ = settle_base(open_inputs(config, progress), config, progress, planned=True)
    check_destination(config, inputs)
    output = plan_output(inputs, config, progress)
    free = check_disk(output.size, config.out)
    return [
        ("base", inputs.base.id),
        *(("adapter", f"{adapter.folder} × {weight:g}") for adapter, weight in inputs.adapters),
        *output.describe(),
        *_besides(output, config),
        ("disk", f"{output.size:,} bytes needed, {free:,} free"),
        *(("note", note) for note in output.notes),
        *_survival(output, config, progress),
        *(tensor_listing if config.tensors else tensor_summary)(output.tensors()),
    ]


def _besides(output: Output, config: ExportConfig) -> Lines:
    """What an export takes besides the writing."""
    if not isinstance(output, GgufOutput | OntoOutput):
        return []
    told = ["the first export of a type on a machine compiles its kernel, some 10 s each"]
    if config.verify and output.chats:
        models = [file for file in output.plan.files if file.first]
        parameters = output.inputs.parameters
        seconds = estimated_seconds(parameters, len(models), config.workers, config.proof_minutes)
        told.append(f"the proof takes about {seconds:,.0f} s and a gigabyte more (--no-verify leaves it out)")
    return [("besides", "; ".join(told))]


def _survival(output: Output, config: ExportConfig, progress: Progress) -> Lines:
    """What will survive, measured on a sample; on a grid also which types would keep it."""
    survey = output.survey(PLANNED)
    if survey is None:
        return []
    if isinstance(output, GgufOutput) and output.awaits_matrix:
        return [("survival", "the export measures it, with the importance matrix that it collects")]
    survey.sample(progress)
    on_a_grid = config.format == "gguf" and survey.grid() is not None
    safe = safest(survey) if on_a_grid else {}
    return Findings.of(survey, config, safe).lines()


def verify(
    folder: Path,
    *,
    base: str | None = None,
    chats: Path | None = None,
    ollama: str | None = None,
    llama_server: str | None = None,
    progress: Progress = silent,
) -> Proof:
    """Prove an existing export again, from its files and its inputs as they are now.

    Of an adapter, a checkpoint or a base that this program made, the files are held against the manifest.

    Args:
        folder: the export, or another folder with a manifest.
        base: the base model, if it lies elsewhere now.
        chats: held-out chats instead of those of the export.
        ollama: address of a running Ollama that is asked for its prompts, "" for OLLAMA_HOST or this machine;
            a throwaway model is created there and removed again.
        llama_server: address of a llama-server that has loaded the file.
        progress: told how far it is.

    Raises:
        InputError: not an export, a damaged file, or inputs that are gone.
    """
    made = read_manifest(folder) if folder.is_dir() else None
    if made is not None and made.get("kind") in ("adapter", "base", "checkpoint"):
        check_whole(folder, made)
        return Proof((_all_whole(made),))
    manifest = read_export(folder)
    config = replace(config_of(manifest, folder), verify=True)
    observing = Observing(ollama, None, llama_server)
    if observing != Observing() and config.format != "gguf":
        raise UsageError(
            "only GGUF files are compared with a running server", at="--ollama", fix="leave it out"
        )
    if ollama is not None:
        check_name(Ollama(ollama), None)  # before minutes of other work
    config = replace(config, chats=chats or config.chats)
    if base is not None:
        # Where no adapter was folded in, the base is what was converted.
        config = replace(config, base=base) if manifest.get("adapters") else replace(config, source=base)
    inputs = open_inputs(config, progress)
    # The files keep their names if the folder that they were called after has moved.
    inputs = replace(inputs, name=config.name or manifest.get("name") or inputs.name)
    output = plan_output(inputs, config, progress)
    proof = _prove(output, folder, progress)
    observed = _observe(output, folder, observing, progress)
    return Proof((_all_whole(manifest), *proof.checks, *observed))


def _all_whole(manifest: Mapping[str, Any]) -> Check:
    return Check("files", "passed", f"all {len(manifest['files'])} files have their size and sha256")


def _created_in_ollama(output: Output, config: ExportConfig, proof: Proof, progress: Progress) -> Proof:
    """The model created in the user's Ollama and compared there; removed again if it differs."""
    try:
        observed = Proof(tuple(_observe(output, config.out, Observing("", config.ollama), progress)))
        observed.require()
    except LorafoldError as error:
        error.problem += f"; the export itself is done, in {config.out}, and Ollama has no such model"
        raise
    return Proof((*proof.checks, *observed.checks))


def _observe(output: Output, folder: Path, observing: Observing, progress: Progress) -> list[Check]:
    if observing == Observing() or not isinstance(output, GgufOutput | OntoOutput):
        return []
    files, chats = list(output.plan.files), output.chats
    if output.projector is not None:  # beside the parts of the first model, which is the one that is asked
        second = next((number for number, file in enumerate(files) if number and file.first), len(files))
        files.insert(second, output.projector.file)
    return observe_prompts(folder, files, output.prompt, output.inputs, chats, observing, progress)


_ADDRESS_SPACE = 600_000_000  # bytes: numba's compiler, ggml, stacks of threads, what is mapped of a base
_LEFT_OUT = Check("proof", "not checked", "left out with --no-verify; `lorafold verify DIR` makes it later")


def _prove(output: Output, folder: Path, progress: Progress) -> Proof:
    """The proof; what stops it is a check too, so that an hour's work does not vanish with it."""
    try:
        return Proof(tuple(output.prove(folder, progress)))
    except InputError as error:  # llama.cpp does not take the file
        if isinstance(error.__cause__, OSError):  # it could not be read at all
            return Proof((Check("proof", "not checked", f"it stopped: {error.problem}"),))
        return Proof((Check("proof", "failed", f"it stopped: {error.problem}", fix=error.fix or AGAIN),))
    except SystemFault as error:
        return Proof((Check("proof", "not checked", f"it stopped: {error.problem}"),))


class _Clock:
    """Wall time of the steps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
