"""Opens what an export works on: the base, its adapters, the fold over them, the tokenizer, the template.

In: the config. Out: `Inputs`, with everything checked that headers can tell: the base exists, each adapter
fits it, its tensors are all consumed. No weight is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.adapters import Adapter
from lorafold.artifacts import MANIFEST, read_manifest, sha256_file
from lorafold.chat.sources import find_template, folder_source
from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.export.adapter_prompt import find_tokenizer, has_tokenizer
from lorafold.export.config import ExportConfig, file_stem
from lorafold.export.fold.folded import Folded, vocabulary_size
from lorafold.jsonfile import read_object
from lorafold.models import Base, fingerprint, resolve_base
from lorafold.progress import Progress, silent
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.weights import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an export reads.

    Attributes:
        base: the base model's folder and name.
        adapters: adapter folders with their weights; empty for a plain conversion.
        source: the base's tensors with the adapters folded in.
        config: the base's config.json, with vocabulary and head as the adapters left them.
        prompt: the base's folder, or a copy of its small files with a tokenizer.json where it has none.
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
    if (Path(specs[0][0]).expanduser() / ADAPTER_CONFIG).exists():
        adapters = tuple((Adapter.open(Path(path).expanduser()), weight) for path, weight in specs)
        base_spec, named_at = (config.base, None) if config.base else _base_of(adapters[0][0])
    else:
        folder = Path(specs[0][0]).expanduser()
        if config.base is not None or any(folder.glob("adapter_model.*")):
            raise InputError(
                f"no {ADAPTER_CONFIG}: this is not an adapter",
                at=folder,
                fix="give the adapter's folder, or for a base to be converted as it is no --base",
            )
        if config.adapter:
            raise UsageError(
                f"{config.source} is not an adapter folder, so --adapter has nothing to add to",
                fix="name the adapters: lorafold export ADAPTER --adapter OTHER=0.5 --base BASE",
            )
        adapters, base_spec, named_at = (), config.source, None
    base = _resolve(base_spec, named_at, config, progress)
    _check_precision(base, "name its 16-bit original with --base" if adapters else "give its 16-bit original")
    for adapter, _ in adapters:
        _check_base(adapter, base)
    source = Folded(Checkpoint.open(base.folder), adapters, rounding=config.rounding)
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
        notes=tuple(_notes(base, source, prompt, folders, template)),
    )


def check_weights(inputs: Inputs, progress: Progress = silent) -> None:
    """Compare weights with the checksums that the manifests beside them hold, where there are manifests.

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
            if path.is_file() and sha256_file(path) != entry["sha256"]:
                raise InputError(
                    f"{name} is not what {MANIFEST} says (its sha256 is another)",
                    at=path,
                    fix=f"fetch or make it again; if you changed it yourself, remove {MANIFEST}",
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


def _resolve(spec: str, named_at: str | None, config: ExportConfig, progress: Progress) -> Base:
    """Find the base; where the adapter named it, an error says so: its path may be of another machine."""
    try:
        return resolve_base(
            spec, offline=config.offline, trust_remote_code=config.trust_remote_code, progress=progress
        )
    except (InputError, SystemFault) as error:
        if named_at is None or error.at not in (spec, spec.partition("@")[0]):
            raise
        raise type(error)(
            f"the base {spec!r} was not found: {error.problem}",
            at=named_at,
            fix=f"{error.fix}; or name the base with --base FOLDER_OR_HUB_ID",
        ) from error


def _check_precision(base: Base, fix: str) -> None:
    """Refuse packed weights by the name of their method, before their shapes look like another base's."""
    quantized = base.config().get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise InputError(
            f"the base is quantized ({method or 'method not named'})",
            at=f"{base.folder / 'config.json'}: quantization_config",
            fix=fix,
        )


def _base_of(adapter: Adapter) -> tuple[str, str]:
    """The base that an adapter names, and where: our manifest knows it exactly, PEFT's config by path or
    id."""
    manifest = read_manifest(adapter.folder) or {}
    identity = manifest.get("base") or {}
    spec = identity.get("spec")
    if isinstance(spec, str) and (not Path(spec).is_absolute() or Path(spec).is_dir()):
        return spec, f"{adapter.folder / MANIFEST}: base"
    named = read_object(adapter.folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    named = identity.get("id") or named
    if not isinstance(named, str) or not named:
        raise InputError(
            "base_model_name_or_path is missing, so the base is not known",
            at=adapter.folder / ADAPTER_CONFIG,
            fix="name it: --base FOLDER_OR_HUB_ID",
        )
    return named, f"{adapter.folder / ADAPTER_CONFIG}: base_model_name_or_path"


def _check_base(adapter: Adapter, base: Base) -> None:
    """Compare the base's fingerprint with the one that the training noted, where there is one."""
    noted = ((read_manifest(adapter.folder) or {}).get("base") or {}).get("fingerprint")
    if noted and noted != fingerprint(base.folder):
        raise InputError(
            f"this adapter was made for another base (its fingerprint is {noted[:12]}, "
            f"that of {base.id} is {fingerprint(base.folder)[:12]})",
            at=adapter.folder,
            fix="name the base it was trained on with --base",
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


def _name(base: Base, folder: Path) -> str:
    """A file name for the model: the folder's, unless that says nothing."""
    stem = folder.name if folder != base.folder else base.id.rsplit("/", 1)[-1]
    if stem in ("adapter", "checkpoint", "final", "out", "output"):
        stem = folder.resolve().parent.name
    return file_stem(stem) or "model"
