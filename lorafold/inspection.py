"""What is this folder or file? Base, adapter, export, GGUF, or data: told from headers, in a second."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorafold.adapters.folder import Adapter
from lorafold.artifacts import read_manifest, system_of
from lorafold.errors import InputError
from lorafold.files.home import expanded
from lorafold.gguf_file.read import read_gguf_header
from lorafold.models import demo_base, read_config
from lorafold.packed.source import PackedCheckpoint, open_base
from lorafold.progress import Lines, Progress, silent
from lorafold.records.files import holds_data
from lorafold.safetensors_file import read_header
from lorafold.sources.adapter_base import base_of
from lorafold.sources.naming import speaking_name
from lorafold.sources.recognize import instead, recognize, unfinished
from lorafold.weights import Checkpoint

if TYPE_CHECKING:
    from lorafold.train import DataReport
    from lorafold.train.config import LayoutName


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        lines: labels and texts.
        samples: for data: a few examples as (place, pieces), a piece being a text and whether it is trained.
    """

    lines: Lines
    samples: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...] = ()


def inspect_path(
    path: str,
    *,
    base: str | None = None,
    max_length: int = 1024,
    layout: LayoutName = "auto",
    system: str | None = None,
    chat_template: str | None = None,
    control_tokens: Literal["text", "parse"] = "text",
    progress: Progress = silent,
) -> Inspection:
    """Describe a folder or file.

    Args:
        path: what to look at; `demo` is the embedded base.
        base: for data: the base whose tokenizer counts.
        max_length: for data: tokens that an example may have.
        layout, system, chat_template, control_tokens: for data: as in training.
        progress: told where tokenizing lasts.

    Raises:
        InputError: there is no such thing, or nothing known is in it.
    """
    place = demo_base().folder if path == "demo" else expanded(path)
    if not place.exists():
        fix = unfinished(place) or "check the path; what lies on a hub is looked at once it is downloaded"
        raise InputError("no such file or folder", at=path, fix=fix)
    if (within := _within(place)) is not None:
        told, inner = within
        found = inspect_path(str(inner))
        return replace(found, lines=[("given", told), *found.lines])
    if place.is_file() and place.suffix == ".gguf":
        return Inspection([*_gguf(place), *_next_steps(_of_gguf(place))])
    if place.suffix == ".safetensors" and place.is_file():
        read_header(place)  # says more of a file that is something else
        alone = "these are weights without the folder that they belong to", "give the folder"
        problem, fix = instead(place, "a model, adapter or export folder") or alone
        raise InputError(problem, at=place, fix=fix)
    if place.is_dir():
        for name, (describe, follow) in _FOLDERS.items():
            if (place / name).exists():
                return Inspection([*describe(place), *_next_steps(follow(place))])
        wrong = instead(place, "a model, adapter or export folder")
        if wrong or not holds_data(place):
            problem, fix = wrong or (
                f"nothing known is in this folder (looked for {', '.join(_FOLDERS)}, and data files)",
                "give a model, adapter or export folder, a GGUF, or data",
            )
            raise InputError(problem, at=place, fix=fix)
    from lorafold.train import TrainConfig, describe_data

    config = TrainConfig(
        base=base or "",
        data=(str(place),),
        max_length=max_length,
        layout=layout,
        system=system,
        chat_template=chat_template,
        control_tokens=control_tokens,
    )
    report = describe_data(config, progress=progress)
    found = _data(place, report, max_length)
    named = shlex.quote(base) if base else "BASE"
    command = f"lorafold train --base {named} --data {shlex.quote(path)} --out my-adapter"
    return replace(found, lines=[*found.lines, *_next_steps([command])])


def _within(place: Path) -> tuple[str, Path] | None:
    """What a place is that only holds what was meant, or belongs to it: in words, and that folder's path."""
    if place.is_dir() and any((place / name).exists() for name in _FOLDERS):
        return None
    known = recognize(place)
    if known is None or known.use is None or known.use.suffix == ".gguf":
        return None
    others = f" ({len(known.more)} more: {', '.join(map(str, known.more[:3]))})" if known.more else ""
    return f"{place} is {known.what}; this is {known.use}{others}", known.use


def _data(path: Path, report: DataReport, max_length: int) -> Inspection:
    layouts = ", ".join(f"{name} × {count}" for name, count in report.layouts.items())
    lines: Lines = [
        ("data", str(path)),
        ("layout", layouts),
        ("examples", f"{report.examples:,} with {report.turns:,} assistant turns"),
        ("sha256", report.sha256),
    ]
    if report.tokens is None:
        lines.append(("tokens", "name a base with --base to count them"))
        return Inspection([*lines, *(("note", note) for note in report.notes)])
    lines += [
        ("tokens", f"{report.tokens:,}, of which {report.trained:,} are trained"),
        ("lengths", ", ".join(f"{name} {tokens}" for name, tokens in report.lengths)),
        (
            "cut",
            f"{report.cut} examples are longer than {max_length} tokens ({report.lost_tokens:,} tokens lost)",
        ),
    ]
    if report.dropped:
        places = ", ".join(report.dropped[:5]) + (" and more" if len(report.dropped) > 5 else "")
        lines.append(("dropped", f"{len(report.dropped)} examples, nothing is left to learn: {places}"))
    lines += [("note", note) for note in report.notes]
    return Inspection(lines, tuple((sample.place, sample.pieces) for sample in report.samples))


def _adapter(folder: Path) -> Lines:
    adapter = Adapter.open(folder)
    config = adapter.config
    weights = sum(math.prod(info.shape) for info in adapter.source.tensors.values())
    lines: Lines = [
        ("adapter", str(folder)),
        ("method", f"{config.peft_type}, {len(adapter.modules)} modules, {weights:,} weights"),
        ("base", config.base_model_name_or_path or "not named"),
        *(("note", note) for note in adapter.notes),
    ]
    manifest = read_manifest(folder)
    if manifest is None:
        lines.append(("made by", "another tool: no lorafold.json, so its data and template are not known"))
    else:
        lines += [line for line in _manifest(manifest) if line not in lines]
    return lines


def _base(folder: Path) -> Lines:
    config = read_config(folder)
    packed, base = list[tuple[str, str]](), None
    try:
        base = open_base(folder, config)
    except InputError as error:
        packed.append(("packed", f"not readable: {error.problem}"))
    if isinstance(base, PackedCheckpoint):
        packed.append(("packed", f"{base.words}: {len(base.packed)} tensors"))
    # Damaged files raise here what they raised above.
    stored = base if isinstance(base, Checkpoint) else Checkpoint.open(folder)
    types = Counter(info.dtype for info in stored.tensors.values())
    size = sum(info.nbytes for info in stored.tensors.values())
    tensors = stored.tensors if base is None else base.tensors
    weights = sum(math.prod(info.shape) for info in tensors.values())
    return [
        ("model folder", str(folder)),
        ("architecture", ", ".join(map(str, config.get("architectures") or ["unknown"]))),
        ("weights", f"{weights:,} in {len(tensors)} tensors, {size:,} bytes"),
        *packed,
        ("types", ", ".join(f"{name} × {count}" for name, count in types.most_common())),
        ("vocabulary", f"{config.get('vocab_size', 'unknown')} rows"),
        ("context", f"{config.get('max_position_embeddings', 'unknown')} tokens"),
        ("becomes a GGUF", _exportable(config)),
    ]


def _exportable(config: dict[str, Any]) -> str:
    """Whether the export knows the architecture."""
    from lorafold.export.arch.table import find

    try:
        return f"yes, as {find(config).gguf}"
    except InputError as error:
        return f"no: {error.problem.partition(' (')[0]}; {error.fix}"


def _gguf(path: Path) -> Lines:
    header = read_gguf_header(path)
    weights = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    types = Counter(tensor.type_name for tensor in header.tensors.values())
    return [
        ("GGUF", str(path)),
        ("name", header.text("general.name") or "unnamed"),
        ("architecture", header.architecture or "unknown"),
        ("quantization", header.quantization),
        ("weights", f"{weights:,} in {len(header.tensors)} tensors, {path.stat().st_size:,} bytes"),
        ("types", ", ".join(f"{name} × {count}" for name, count in types.most_common())),
        ("chat template", "yes" if header.text("tokenizer.chat_template") else "none"),
    ]


def _export(folder: Path) -> Lines:
    manifest = read_manifest(folder)
    assert manifest is not None
    return [("folder made by lorafold", str(folder)), *_manifest(manifest)]


def _manifest(manifest: dict[str, Any]) -> Lines:
    kind, version = (manifest.get(name) or "unknown" for name in ("kind", "lorafold"))
    lines: Lines = [("kind", f"{kind}, made by lorafold {version}")]
    base = manifest.get("base")
    if isinstance(base, dict):
        lines.append(("base", str(base.get("id"))))
    lines += [(name, f"{entry['size']:,} bytes") for name, entry in manifest["files"].items()]
    proof = manifest.get("proof") or ()
    for check in proof.get("checks") or () if isinstance(proof, dict) else proof:
        verdict, name, meaning = (check.get(key) or "" for key in ("verdict", "name", "meaning"))
        lines.append((verdict, f"{name}: {meaning}"))
    return lines


def _next_steps(commands: list[str]) -> Lines:
    return [("next" if number == 0 else "", command) for number, command in enumerate(commands)]


def _of_adapter(folder: Path) -> list[str]:
    given = shlex.quote(str(folder))
    own = system_of(folder)
    system = f" --system {shlex.quote(own)}" if own else ""
    command = f"lorafold export {given} --out {_beside(folder, 'gguf')} --quant Q4_K_M{system}"
    try:
        base = base_of(folder).spec
    except InputError:
        return [f"{command} --base BASE"]
    if base.startswith((".", "/", "~")) and not expanded(base).exists():
        # A folder of the machine that it was trained on.
        return [f"{command} --base BASE", f"lorafold chat BASE+{given}{system}"]
    return [command, f"lorafold chat {shlex.quote(base + '+' + str(folder))}{system}"]


def _of_base(folder: Path) -> list[str]:
    given = shlex.quote(str(folder))
    return [
        f"lorafold train --base {given} --data DATA --out my-adapter",
        f"lorafold export {given} --out {_beside(folder, 'gguf')} --quant Q4_K_M",
        f"lorafold chat {given}",
    ]


def _of_export(folder: Path) -> list[str]:
    given = shlex.quote(str(folder))
    ggufs = sorted(folder.glob("*.gguf"))
    commands = [f"lorafold verify {given}"]
    commands += [f"lorafold chat {shlex.quote(str(path))}" for path in ggufs[:1]]
    if (folder / "Modelfile").is_file():
        from lorafold.export.outputs.prompt.modelfiles import ollama_command

        commands.append(ollama_command(folder))
    return commands


def _of_gguf(path: Path) -> list[str]:
    given = shlex.quote(str(path))
    if read_gguf_header(path).text("general.type") == "adapter":
        return [f"lorafold chat BASE.gguf+{given}"]
    return [f"lorafold chat {given}", f"lorafold modelfile {given}"]


def _beside(folder: Path, kind: str) -> str:
    return shlex.quote(f"{speaking_name(folder)}-{kind}")


# The file that tells what a folder is, how it is described, and what can be done with it; the first that is
# found decides.
_FOLDERS: dict[str, tuple[Callable[[Path], Lines], Callable[[Path], list[str]]]] = {
    "adapter_config.json": (_adapter, _of_adapter),
    "config.json": (_base, _of_base),
    "lorafold.json": (_export, _of_export),
}
