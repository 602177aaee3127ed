"""The Modelfiles beside GGUF files, the models that the files come to, and the proof of their prompts."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorafold.artifacts import system_faults, write_atomic
from lorafold.errors import InputError
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.header import GgufFile, TypedTensor
from lorafold.export.gguf.plan import ExportPlan
from lorafold.export.gguf.rows import RowSource
from lorafold.export.gguf.writer import Packed, Watcher, write_gguf_files
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.parser import parse as parse_modelfile
from lorafold.export.modelfile.plan import ModelfilePlan, write_modelfile
from lorafold.export.onto.projector import Projector
from lorafold.export.proof.check import Check
from lorafold.export.quant.mixture import Importance
from lorafold.export.workers import Written
from lorafold.gguf_file.tokens import read_gguf_tokens
from lorafold.progress import Progress, silent


def models_of(files: Sequence[GgufFile]) -> list[GgufFile]:
    """The file that stands for each model: of a split one, the first."""
    return [file for file in files if file.first]


def tensors_of_model(files: Sequence[GgufFile], first: GgufFile) -> tuple[TypedTensor, ...]:
    """The tensors of a model, of a split one those of all its parts."""
    rest = itertools.takewhile(lambda file: not file.first, files[files.index(first) + 1 :])
    return tuple(tensor for file in (first, *rest) for tensor in file.tensors)


def open_projector(inputs: Inputs, config: ExportConfig, progress: Progress) -> Projector | None:
    """The projector of `--mmproj`, held against the base; None without one."""
    if config.mmproj is None:
        return None
    return Projector.open(
        config.mmproj, inputs.source, inputs.config, inputs.name, offline=config.offline, progress=progress
    )


def modelfiles(
    prompt: ModelfilePlan,
    models: Sequence[GgufFile],
    system: str | None,
    projector: Projector | None = None,
) -> dict[str, str]:
    """Name and text of each model's Modelfile; a projector is a FROM line of its own."""
    beside = () if projector is None else (f"./{projector.file.name}",)
    return {
        f"Modelfile-{file.recipe}" if number else "Modelfile": write_modelfile(
            prompt,
            f"./{file.name}",
            parts=[*(f"./{name}" for name in parts_of(file)[1:]), *beside],
            system=system,
            comments=how_to_join(file),
        )
        for number, file in enumerate(models)
    }


def write_modelfiles(
    folder: Path,
    prompt: ModelfilePlan,
    models: Sequence[GgufFile],
    system: str | None,
    projector: Projector | None = None,
) -> None:
    """Write a Modelfile for each model."""
    for name, text in modelfiles(prompt, models, system, projector).items():
        write_atomic(folder / name, text)


def write_models(
    plan: ExportPlan,
    source: RowSource,
    folder: Path,
    config: ExportConfig,
    prompt: ModelfilePlan | None,
    *,
    imatrix: Importance | None,
    packed: Packed | None = None,
    projector: Projector | None = None,
    watcher: Watcher | None = None,
    progress: Progress = silent,
) -> Written:
    """Write the planned files, the projector, and a Modelfile for each model; see `write_gguf_files`."""
    written = write_gguf_files(
        plan.files,
        source,
        folder,
        threads=config.workers,
        max_memory=config.max_memory,
        imatrix=imatrix,
        packed=packed,
        watcher=watcher,
        progress=progress,
    )
    if projector is not None:
        beside = write_gguf_files(
            (projector.file,),
            projector.source,
            folder,
            threads=config.workers,
            max_memory=config.max_memory,
            packed=projector.source.packed,
            progress=progress,
        )
        written = replace(written, checksums=written.checksums | beside.checksums)
    if prompt:
        write_modelfiles(folder, prompt, models_of(plan.files), config.system, projector)
    return written


def parts_of(file: GgufFile) -> list[str]:
    """The names of all files of the model that this file begins."""
    found = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", file.name)
    if file.joined is None or found is None:
        return [file.name]
    stem, count = found[1], int(found[2])
    return [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def how_to_join(file: GgufFile) -> list[str]:
    """What must be done before an older Ollama takes a model; nothing for one in a single file."""
    if file.joined is None:
        return []
    return [
        "Ollama before 0.30 does not import split GGUF files, which later versions put together from a FROM "
        f"line each: for those join them with `llama-gguf-split --merge {file.name} {file.joined}` in this "
        "folder, and write one FROM line"
    ]


def next_steps(
    out: Path, first: GgufFile, prompt: ModelfilePlan | None, projector: Projector | None = None
) -> list[tuple[str, str]]:
    """Chat here, or create the model in Ollama; with a projector, see in llama.cpp."""
    steps = [("chat", f"lorafold chat {out / first.name}")]
    if projector is not None:
        seeing = f"llama-server -m {out / first.name} --mmproj {out / projector.file.name}"
        steps.append(("llama.cpp", seeing))
    return steps + ([("Ollama", ollama_command(out))] if prompt else [])


def ollama_command(folder: Path) -> str:
    """Creates an export's model in Ollama, which takes few characters in a name, and runs it."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") or "my-model"
    return f"ollama create {name} -f {shlex.quote(str(folder / 'Modelfile'))} && ollama run {name}"


def check_prompt(
    folder: Path,
    prompt: ModelfilePlan,
    models: Sequence[GgufFile],
    system: str | None,
    projector: Projector | None = None,
) -> Check:
    """What Ollama and llama.cpp will build prompts with, read back from what was written.

    Raises:
        SystemFault: the system does not let it be read.
    """
    wrong = []
    for name, text in modelfiles(prompt, models, system, projector).items():
        try:
            with system_faults(folder / name):
                written = (folder / name).read_text(encoding="utf-8")
            same = parse_modelfile(written) == parse_modelfile(text)
        except (OSError, ValueError, InputError):
            same = False
        wrong += [] if same else [name]
    for file in models:
        if read_gguf_tokens(folder / file.name).chat_template != prompt.contract.template_source:
            wrong.append(f"the chat template in {file.name}")
    if wrong:
        return Check("prompt", "failed", f"{', '.join(wrong)}: not what was proven", {"wrong": wrong})
    if prompt.proof is None:
        return Check("prompt", "not checked", f"there is no TEMPLATE: {prompt.contract.refusal}")
    chats, clocks = prompt.proof.conversations, prompt.proof.clocks
    figures = {"conversations": chats, "clocks": clocks}
    meaning = (
        f"the Modelfile's TEMPLATE writes what the chat template writes on {chats} random conversations "
        f"and {clocks} dates"
    )
    native = prompt.native
    if prompt.route.way == "jinja" and native is not None and native.difference is None:
        meaning += f"; so does the GGUF's Jinja with what llama.cpp gives it, on {native.conversations}"
    if prompt.route.renderer is not None and prompt.route.equal:
        meaning += f"; so does Ollama's renderer {prompt.route.renderer!r}, as far as it is known here"
    tools = prompt.tools
    if prompt.route.way == "jinja" and tools is not None and tools.proven:
        meaning += f", and on {tools.conversations - tools.refused} with tools, calls and results"
    return Check("prompt", "passed", meaning, figures)
