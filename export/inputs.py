"""Opens what an export works on: the base, its adapters, the fold over them, the tokenizer, the template.

Everything is checked that headers can tell: the base exists, each adapter fits it, its tensors are all used.
No weight is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorafold.adapters.folder import Adapter
from lorafold.artifacts import MANIFEST, read_manifest, sha256_file, system_of
from lorafold.chat.sources import find_template, folder_source
from lorafold.errors import InputError, UsageError
from lorafold.export.adapter_prompt import find_tokenizer, has_tokenizer
from lorafold.export.bases import base_notes, check_fold, compare_base, find_base
from lorafold.export.config import ExportConfig, file_stem
from lorafold.export.fold.folded import Folded, vocabulary_size
from lorafold.files.home import expanded
from lorafold.files.signatures import no_file
from lorafold.models import Base, locate, resolve_base
from lorafold.packed.source import PackedCheckpoint, open_base
from lorafold.progress import Progress, silent
from lorafold.sources.naming import dotted, speaking_name
from lorafold.sources.recognize import ADAPTER, instead, recognize
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.weights import Checkpoint

EXPECTED_SOURCE = "an adapter or a base: a folder, a hub id such as ORG/NAME, or `demo`"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an export reads.

    Attributes:
        base: the base model's folder and name.
        adapters: adapter folders with their weights; empty for a plain conversion.
        source: the base's tensors with the adapters folded in.
        config: the base's config.json, with vocabulary and head as the adapters left them.
        prompt: the base's folder, or a copy of its small files with a tokenizer.json if it has none.
        tokenizer: the folder whose tokenizer goes into the output.
        template: what `--chat-template` or the training chose, or None for the tokenizer folder's own.
        name: the model's name.
        notes: what was chosen here that the user should know.
        about_base: those of the notes that say which base was taken, and what that may cost.
    """

    base: Base
    adapters: tuple[tuple[Adapter, float], ...]
    source: Folded
    config: dict[str, Any]
    prompt: Path
    tokenizer: Path
    template: str | None
    name: str
    notes: tuple[str, ...] = ()
    about_base: tuple[str, ...] = ()

    @property
    def folders(self) -> list[Path]:
        """Every folder that is read, so that none is overwritten."""
        return [self.base.folder, *(adapter.folder for adapter, _ in self.adapters)]

    @property
    def parameters(self) -> int:
        """How many weights the model has, adapters folded in."""
        return sum(math.prod(info.shape) for info in self.source.tensors.values())

    def said_of_base(self, note: str) -> Inputs:
        """The same with another word on its base."""
        others = (each for each in self.notes if each not in self.about_base)
        return replace(self, notes=(note, *others), about_base=(note,))


def open_inputs(config: ExportConfig, progress: Progress = silent) -> Inputs:
    """Open the base and the adapters of an export.

    Raises:
        InputError: something is missing or does not fit together.
        UnsafeInputError: the base wants to run code.
        UsageError: a weight that is not a number.
    """
    specs = [_weighted(spec) for spec in (config.source, *config.adapter)]
    folders = [_locate_adapter(spec, config, progress) for spec, _ in specs]
    if (folders[0] / ADAPTER).exists():
        adapters = tuple(
            (Adapter.open(folder), weight) for folder, (_, weight) in zip(folders, specs, strict=True)
        )
        base = find_base(folders[0], config, progress)
    else:
        _refuse_no_adapter(folders[0], config)
        adapters = ()
        base = resolve_base(
            config.source,
            offline=config.offline,
            trust_remote_code=config.trust_remote_code,
            progress=progress,
        )
    if config.fold_into != "original":  # there, the base that was given has been compared
        for adapter, _ in adapters:
            compare_base(adapter.folder, base)
    weights = open_base(base.folder, base.config(), base.id)
    check_fold(config, base, weights)
    source = Folded(
        weights,
        adapters,
        rounding="peft" if config.rounding == "peft" else "exact",
        config=_own_config(base, weights),
    )
    folders = [adapter.folder for adapter, _ in adapters]
    prompt = with_tokenizer_json(base.folder, pieces=False)
    tokenizer = find_tokenizer(prompt, folders)
    template = None if config.chat_template else find_template(folders)
    chosen = config.chat_template or (template[0] if template else None)
    if chosen is None and tokenizer != prompt and (of_base := find_template([prompt])) is not None:
        chosen = of_base[0]  # a tokenizer with new tokens may still be without a template
    about_base = tuple(base_notes(base, weights, folders))
    return Inputs(
        base=base,
        adapters=adapters,
        source=source,
        config=source.config,
        prompt=prompt,
        tokenizer=tokenizer,
        template=chosen,
        name=config.name or _name(base, folders[0] if folders else base.folder),
        notes=(
            *(note for adapter, _ in adapters for note in adapter.notes),
            *(note for plan in source.plans for note in plan.notes),
            *about_base,
            *_notes(base, source, prompt, folders, template),
            *_system_note(config, folders),
        ),
        about_base=about_base,
    )


def check_weights(inputs: Inputs, progress: Progress = silent) -> None:
    """Compare weights with the checksums that the manifests beside them hold, if there are manifests.

    Raises:
        InputError: a file is not what the manifest says: a bit flipped, or it was replaced.
    """
    for folder in inputs.folders:
        files = (read_manifest(folder) or {}).get("files") or {}
        # Configurations may be edited by hand; weights may not.
        noted = {name: entry for name, entry in files.items() if (folder / name).suffix == ".safetensors"}
        for number, (name, entry) in enumerate(noted.items()):
            path = folder / name
            progress("check the weights", number, len(noted))
            if path.is_file() and sha256_file(path) != entry.get("sha256"):
                raise InputError(
                    f"{name} is not what {MANIFEST} says (its sha256 is another)",
                    at=path,
                    fix=f"download or make it again; if you changed it yourself, remove {MANIFEST}",
                )
        if noted:
            progress("check the weights", len(noted), len(noted))


def _weighted(spec: str) -> tuple[str, float]:
    """FOLDER or FOLDER=WEIGHT."""
    path, equals, weight = spec.rpartition("=")
    if not equals or Path(spec).exists():
        return spec, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"expected FOLDER=WEIGHT with a number, got {spec!r}", at="--adapter")
    return path, number


def _locate_adapter(spec: str, config: ExportConfig, progress: Progress) -> Path:
    """The folder of an adapter that was given by folder, by its weights' file, or by hub id.

    What is none of these comes back as a path: it may be a base, or nothing.
    """
    path = expanded(spec)
    if path.is_file() and (found := recognize(path)) is not None and found.use is not None:
        return found.use
    if path.exists() or spec == "demo":
        return path
    return locate(spec, offline=config.offline, progress=progress, expected=EXPECTED_SOURCE).folder


def _refuse_no_adapter(folder: Path, config: ExportConfig) -> None:
    """Refuse what can only be meant as an adapter and is none.

    Raises:
        InputError: there is no adapter in the folder.
        UsageError: adapters are to be added to a base.
    """
    if (folder / ADAPTER).is_symlink():
        raise no_file(folder / ADAPTER)
    if config.base is not None or any(folder.glob("adapter_model.*")):
        problem, fix = instead(folder, "an adapter") or (
            "this is not an adapter",
            "give the adapter's folder; to convert a base as it is, leave out --base",
        )
        if (folder / "config.json").is_file():
            fix = "give the adapter's folder; to convert a base as it is, leave out --base"
        raise InputError(f"no {ADAPTER}: {problem}", at=folder, fix=fix)
    if config.adapter:
        raise UsageError(
            f"{config.source} is not an adapter folder, so --adapter has nothing to add to",
            fix="pass the adapters: lorafold export ADAPTER --adapter OTHER=0.5 --base BASE",
        )


def _own_config(base: Base, weights: Checkpoint | PackedCheckpoint) -> dict[str, Any]:
    """The base's config.json; that of a packed base without what says how it is packed."""
    return dict(weights.config) if isinstance(weights, PackedCheckpoint) else base.config()


def _notes(
    base: Base, source: Folded, prompt: Path, adapters: list[Path], template: tuple[str, str, str] | None
) -> Iterator[str]:
    """What of the prompt is not the base's own, and what of it is missing."""
    if template is not None:
        _, own, place = template
        if (of_base := folder_source(prompt)) is None or of_base[0] != own:
            yield f"the chat template is the adapter's, not the base's ({place})"
    before, after = vocabulary_size(base.config()), vocabulary_size(source.config)
    if before != after and not any(map(has_tokenizer, adapters)):
        yield (
            f"the adapter resizes the vocabulary from {before} to {after} rows and brings no tokenizer: rows "
            "beyond the base's tokens have no text (save the tokenizer of the training beside the adapter)"
        )


def _system_note(config: ExportConfig, adapters: list[Path]) -> Iterator[str]:
    """A persona that was trained with a system message hardly shows in chats without it."""
    if config.format != "gguf" or not config.modelfile or config.system is not None:
        return
    for folder in adapters:
        if text := system_of(folder):
            yield (
                f"{folder.name} was trained with the system message {text!r}, which the Modelfile lacks: "
                "pass it with --system"
            )


def _name(base: Base, folder: Path) -> str:
    """A file name for the model."""
    stem = base.id.rsplit("/", 1)[-1] if folder == base.folder else speaking_name(folder)
    return file_stem(dotted(stem)) or "model"
