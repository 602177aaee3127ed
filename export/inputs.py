"""Opens what an export works on: the base, its adapters, the fold over them, the tokenizer, the template.

Everything is checked that headers can tell: the base exists, each adapter fits it, its tensors are all used.
No weight is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.adapters.folder import Adapter
from lorafold.artifacts import MANIFEST, read_manifest, sha256_file, system_of
from lorafold.chat.sources import find_template, folder_source
from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.export.adapter_prompt import find_tokenizer, has_tokenizer
from lorafold.export.config import ExportConfig, file_stem
from lorafold.export.fold.folded import Folded, vocabulary_size
from lorafold.files.home import expanded
from lorafold.files.signatures import no_file
from lorafold.models import Base, locate, resolve_base
from lorafold.packed.formats import method_of
from lorafold.packed.originals import original_of
from lorafold.packed.source import PackedCheckpoint, open_base
from lorafold.progress import Progress, silent
from lorafold.sources.adapter_base import base_of, check_base, on_an_adapter, other_base_named
from lorafold.sources.naming import dotted, speaking_name
from lorafold.sources.recognize import ADAPTER, instead, is_adapter, recognize
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

    @property
    def folders(self) -> list[Path]:
        """Every folder that is read, so that none is overwritten."""
        return [self.base.folder, *(adapter.folder for adapter, _ in self.adapters)]


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
        base = _base_of(folders[0], config, progress)
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
            if _packed_base(adapter.folder, base) is None:
                check_base(adapter.folder, base)
    weights = open_base(base.folder, base.config(), base.id)
    _check_fold(config, base, weights)
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
            *_base_notes(base, folders[:1]),
            *_packed_notes(base, weights, bool(adapters)),
            *_notes(base, source, prompt, folders, template),
            *_system_note(config, folders),
        ),
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


def _base_of(adapter: Path, config: ExportConfig, progress: Progress) -> Base:
    """The base of an adapter: what the user names, else what the adapter names.

    An error says where the base was named: an adapter's path may be of another machine.
    """
    named = None if config.base else base_of(adapter)
    spec = named.spec if named else _narrowed(config.base or "", adapter)
    at = named.at if named else "--base"
    try:
        return _named_base(adapter, spec, at, config, progress)
    except (InputError, SystemFault) as error:
        here = str(expanded(spec).resolve())
        if named is None or error.at not in (spec, spec.partition("@")[0], here):
            raise
        is_there = error.at == here and Path(here).is_dir()
        raise type(error)(
            f"the base {spec!r} {'cannot be used' if is_there else 'was not found'}: {error.problem}",
            at=at,
            fix=f"{error.fix}; or pass the base with --base FOLDER_OR_HUB_ID",
        ) from error


def _named_base(adapter: Path, spec: str, at: str, config: ExportConfig, progress: Progress) -> Base:
    """A base by its name; its 16-bit original if that is asked for, or is here and the base is not."""
    try:
        found = locate(spec, offline=config.offline, progress=progress)
    except (InputError, SystemFault):
        if (original := _instead_of(spec, config, progress)) is None:
            raise
        return original
    if is_adapter(found.folder) and not (found.folder / "config.json").is_file():
        raise on_an_adapter(spec, adapter, at)
    base = resolve_base(
        spec, offline=config.offline, trust_remote_code=config.trust_remote_code, progress=progress
    )
    if config.fold_into != "original":
        return base
    check_base(adapter, base)
    return _original_base(base, config, progress)


def _instead_of(spec: str, config: ExportConfig, progress: Progress) -> Base | None:
    """The 16-bit original of a packed base that is not here: if it is asked for, or is at hand itself."""
    original = original_of(spec.partition("@")[0], Path(spec))
    if original is None or config.fold_into == "quantized":
        return None
    offline = config.offline or config.fold_into == "auto"
    try:
        return resolve_base(
            original, offline=offline, trust_remote_code=config.trust_remote_code, progress=progress
        )
    except (InputError, SystemFault):
        return None


def _packed_base(folder: Path, base: Base) -> str | None:
    """The packed base that an adapter names, if another base is its 16-bit original by its name."""
    try:
        named = base_of(folder).spec.partition("@")[0]
    except InputError:
        return None
    return named if original_of(named, Path(named)) == base.id else None


def _original_base(base: Base, config: ExportConfig, progress: Progress) -> Base:
    """The 16-bit original of a packed base; the base itself if it is not packed.

    Raises:
        InputError: nobody says which one that is, or it is not there.
    """
    if method_of(base.config()) is None:
        return base
    original = original_of(base.id, base.folder)
    if original is None:
        raise InputError(
            f"neither its name nor its model card says which model {base.id} was made from",
            at="--fold-into",
            fix="pass the 16-bit original with --base, or use --fold-into quantized",
        )
    try:
        return resolve_base(
            original, offline=config.offline, trust_remote_code=config.trust_remote_code, progress=progress
        )
    except (InputError, SystemFault) as error:
        fix = f"{error.fix}; or fold into {base.id}, which is here: --fold-into quantized"
        raise type(error)(error.problem, at=error.at, fix=fix) from error


def _narrowed(asked: str, adapter: Path) -> str:
    """--base at the revision of the training, if the adapter names the same repository with one."""
    try:
        return base_of(adapter).narrowed(asked)
    except InputError:
        return asked


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


def _check_fold(config: ExportConfig, base: Base, weights: Checkpoint | PackedCheckpoint) -> None:
    """Refuse what cannot be done with a packed base, and what only can be meant for one."""
    if config.fold_into == "quantized" and not isinstance(weights, PackedCheckpoint):
        raise InputError(
            f"the base {base.id} is not packed",
            at="--fold-into",
            fix="pass the 4-bit or 8-bit base with --base, or leave --fold-into out",
        )
    if config.onto is not None and isinstance(weights, PackedCheckpoint):
        raise InputError(
            f"the base is packed ({weights.words}), and --onto looks for the 16-bit weights in the GGUF",
            at=f"{base.folder / 'config.json'}",
            fix=f"{_original(base)}, or leave --onto out",
        )


def _own_config(base: Base, weights: Checkpoint | PackedCheckpoint) -> dict[str, Any]:
    """The base's config.json; that of a packed base without what says how it is packed."""
    return dict(weights.config) if isinstance(weights, PackedCheckpoint) else base.config()


def _original(base: Base) -> str:
    """How to name the 16-bit original of a packed base."""
    original = original_of(base.id, base.folder)
    return f"pass its 16-bit original with --base{f' {original}' if original else ''}"


def _base_notes(base: Base, adapters: list[Path]) -> Iterator[str]:
    """That the first adapter names another model; later ones may name an adapter before them."""
    for folder in adapters:
        if (packed := _packed_base(folder, base)) is not None:
            yield (
                f"the adapter was trained on {packed} and is folded into {base.id}, its 16-bit original, "
                "which is nearer to the model; but what the adapter learned to make up for the packing is "
                f"too much there; to fold into what it was trained on, have {packed} at hand"
            )
        elif (named := other_base_named(folder, base)) is not None:
            yield (
                f"{folder.name} names {named} as its base, and is folded into {base.id}: that is right only "
                "if both have the same weights"
            )


def _packed_notes(base: Base, weights: Checkpoint | PackedCheckpoint, of_adapter: bool) -> Iterator[str]:
    """Which base was folded into if it is packed, what that may cost, and what would be the other way."""
    if not isinstance(weights, PackedCheckpoint):
        return
    what = f"the unpacked weights of {base.id} ({weights.words})"
    if not of_adapter:
        original = original_of(base.id, base.folder)
        yield f"this is made from {what}; the 16-bit original{f', {original},' if original else ''} is closer"
        return
    yield (
        f"the adapter is folded into {what}, which is right if it was trained on these; they lie on a coarse "
        "grid, and a 4-bit type may round the adapter's changes away (Q8_0 and Q6_K keep them); to fold into "
        f"the other weights, {_original(base)}"
    )


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
