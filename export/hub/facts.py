"""What is known of an export: from its manifest, the manifest of its adapter, and the folder of its base.

Nothing of this machine goes into it: a base or an adapter that is no repository of the hub goes by its
folder's name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorafold.artifacts import MANIFEST, read_export, read_manifest
from lorafold.errors import InputError

# Settings of the training that a reader wants to see.
_SETTINGS = (
    "method",
    "r",
    "lora_alpha",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "seed",
)


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """An export.

    Attributes:
        folder: where it lies.
        name: of the model.
        version: of lorafold that made it.
        format: gguf, folder or adapter.
        base: id on the hub, or the name of a folder.
        on_hub: whether `base` is an id of the hub.
        revision: of the base, or "".
        license: of the base as its card tells, or "".
        adapters: their names.
        data: sha256 of the data set and its number of examples, or None.
        settings: of the training.
        files: the artifacts with size and sha256.
        verdict: of the proof.
        checks: of the proof: name, verdict, meaning.
        local: paths of this machine that no text may hold, with what stands for them.
    """

    folder: Path
    name: str
    version: str
    format: str
    base: str
    on_hub: bool
    revision: str
    license: str
    adapters: tuple[str, ...]
    data: tuple[str, int] | None
    settings: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    verdict: str
    checks: tuple[tuple[str, str, str], ...]
    local: Mapping[str, str] = field(default_factory=dict)

    def clean(self, text: str) -> str:
        """A text without the paths of this machine."""
        for path, name in sorted(self.local.items(), key=lambda row: -len(row[0])):
            text = text.replace(path, name)
        return text


def read_facts(folder: Path) -> ExportFacts:
    """Read an export, and see that its files are whole.

    Raises:
        InputError: it is no export, a file changed, or its proof failed.
    """
    manifest = read_export(folder)
    if manifest.get("verdict") == "failed":
        raise InputError("the proof of this export failed", at=folder, fix="see report.md, and export again")
    base = manifest.get("base") or {}
    home = Path(str(base.get("path") or ""))
    known = str(base.get("id") or home.name)
    on_hub = not Path(known).is_absolute() and known.count("/") == 1
    adapters = [Path(row["folder"]) for row in manifest.get("adapters") or ()]
    trained = next((found for path in adapters if (found := _manifest_of(path)) is not None), {})
    data = trained.get("data") or {}
    paths = {str(folder.resolve()): folder.name, str(home): known if on_hub else home.name}
    return ExportFacts(
        folder=folder,
        name=str(manifest.get("name") or folder.name),
        format=str((manifest.get("config") or {}).get("format") or "gguf"),
        version=str((manifest.get("versions") or {}).get("lorafold") or ""),
        base=known if on_hub else Path(known).name,
        on_hub=on_hub,
        revision=str(base.get("revision") or ""),
        license=base_license(home),
        adapters=tuple(path.name for path in adapters),
        data=(str(data["sha256"]), int(data.get("examples") or 0)) if data.get("sha256") else None,
        settings={name: value for name, value in _settings(trained) if value is not None},
        files=manifest["files"],
        verdict=str(manifest.get("verdict") or "not checked"),
        checks=_checks(manifest),
        local={**paths, **{str(path): path.name for path in adapters}},
    )


def _manifest_of(adapter: Path) -> dict[str, Any] | None:
    """The manifest of an adapter's folder; None if it is gone, out of reach, or not ours."""
    try:
        return read_manifest(adapter) if (adapter / MANIFEST).is_file() else None
    except (InputError, OSError):  # a name may be too long for a path
        return None


def _settings(trained: Mapping[str, Any]) -> list[tuple[str, Any]]:
    config = trained.get("config") or {}
    return [(name, config.get(name)) for name in _SETTINGS]


def _checks(manifest: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    proof = manifest.get("proof")
    rows = proof.get("checks", proof) if isinstance(proof, Mapping) else proof
    return tuple(
        (str(row.get("name")), str(row.get("verdict")), str(row.get("meaning") or ""))
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, Mapping)
    )


def base_license(folder: Path) -> str:
    """The licence that the card of a base names in its head; "" if there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---") else ""
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return ""
    value = found.get("license") if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""
