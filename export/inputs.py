"""Opens what an export works on: the base, its adapters, the fold over them, the tokenizer, the template.

In: the config. Out: `Inputs`, with everything checked that headers can tell: the base exists, each adapter
fits it, its tensors are all consumed. No weight is read here.
"""

from __future__ import annotations

import filecmp
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.adapters import Adapter
from lorafold.artifacts import MANIFEST, read_manifest, sha256_file
from lorafold.errors import InputError, UsageError
from lorafold.export.config import ExportConfig, file_stem
from lorafold.export.fold import Folded
from lorafold.jsonfile import read_object
from lorafold.models import Base, fingerprint, resolve_base
from lorafold.progress import Progress, silent
from lorafold.tokenizer_json import with_tokenizer_json
from lorafold.weights import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER = "tokenizer.json"


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
    """

    base: Base
    adapters: tuple[tuple[Adapter, float], ...]
    source: Folded
    config: dict[str, Any]
    prompt: Path
    tokenizer: Path
    template: str | None
    name: str

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
        base_spec = config.base or _base_of(adapters[0][0])
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
        adapters, base_spec = (), config.source
    base = resolve_base(
        base_spec,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        progress=progress,
    )
    for adapter, _ in adapters:
        _check_base(adapter, base)
    source = Folded(Checkpoint.open(base.folder), adapters, rounding=config.rounding)
    folder = adapters[0][0].folder if adapters else base.folder
    prompt = with_tokenizer_json(base.folder)
    return Inputs(
        base=base,
        adapters=adapters,
        source=source,
        config=source.config,
        prompt=prompt,
        tokenizer=_tokenizer_folder(prompt, [adapter for adapter, _ in adapters]),
        template=config.chat_template or _trained_template([adapter for adapter, _ in adapters]),
        name=config.name or _name(base, folder),
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
        return path, float(weight)
    except ValueError:
        raise UsageError(f"expected FOLDER=WEIGHT with a number, got {spec!r}", at="--adapter") from None


def _base_of(adapter: Adapter) -> str:
    """The base that an adapter names: our manifest knows it exactly, PEFT's config by path or id."""
    manifest = read_manifest(adapter.folder) or {}
    identity = manifest.get("base") or {}
    spec = identity.get("spec")
    if isinstance(spec, str) and (not Path(spec).is_absolute() or Path(spec).is_dir()):
        return spec
    named = read_object(adapter.folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    named = identity.get("id") or named
    if not isinstance(named, str) or not named:
        raise InputError(
            "base_model_name_or_path is missing, so the base is not known",
            at=adapter.folder / ADAPTER_CONFIG,
            fix="name it: --base FOLDER_OR_HUB_ID",
        )
    return named


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


def _tokenizer_folder(base: Path, adapters: list[Adapter]) -> Path:
    """The adapter's folder where its tokenizer has other tokens than the base's, else the base's."""
    ours = base / TOKENIZER
    for adapter in adapters:
        own = adapter.folder / TOKENIZER
        # A tokenizer is megabytes of JSON: mostly there is none, or a copy of the base's.
        if not own.is_file() or (ours.is_file() and filecmp.cmp(own, ours, shallow=False)):
            continue
        if _tokens(own) != _tokens(ours):
            return adapter.folder
    return base


def _tokens(path: Path) -> tuple[int, tuple[tuple[int, str], ...]] | None:
    """What tells vocabularies apart: the number of tokens and the added ones."""
    if not path.is_file():
        return None
    tokenizer = read_object(path)
    added = tuple(sorted((item["id"], item["content"]) for item in tokenizer.get("added_tokens") or ()))
    return len((tokenizer.get("model") or {}).get("vocab") or ()), added


def _trained_template(adapters: list[Adapter]) -> str | None:
    """The template file that training saved with the adapter: export and chat must use no other."""
    for adapter in adapters:
        path = adapter.folder / "chat_template.jinja"
        if path.is_file():
            return str(path)
    return None


def _name(base: Base, folder: Path) -> str:
    """A file name for the model: the folder's, unless that says nothing."""
    stem = folder.name if folder != base.folder else base.id.rsplit("/", 1)[-1]
    if stem in ("adapter", "checkpoint", "final", "out", "output"):
        stem = folder.resolve().parent.name
    return file_stem(stem) or "model"
