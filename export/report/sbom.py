"""What went into an export, as a CycloneDX bill of materials for those who must keep one.

Specification: https://cyclonedx.org/docs/1.6/json/. It names the base and the adapters with the sha256 of
each of their files, the data set's hash if the training noted it, what was made, and the packages that took
part. There is no time and no path of this machine in it: the same inputs and versions give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorafold.artifacts import read_manifest, sha256_file
from lorafold.errors import LorafoldError
from lorafold.version import __version__

SBOM = "sbom.cdx.json"
_PACKAGES = (
    "gguf",
    "huggingface-hub",
    "jinja2",
    "llama-cpp-python",
    "numba",
    "numpy",
    "pyyaml",
    "safetensors",
    "sentencepiece",
    "tokenizers",
)
_MATERIAL = (".json", ".safetensors", ".model", ".jinja", ".txt")

_Json = dict[str, Any]


def bill_of_materials(
    name: str,
    base: Mapping[str, Any],
    folder: Path,
    adapters: Iterable[tuple[Path, float]],
    made: Path,
    checksums: Mapping[str, str],
) -> str:
    """The text of the bill.

    Args:
        name: of the model.
        base: its identity: id, revision, fingerprint.
        folder: of the base.
        adapters: folder and weight of each, in the order of the fold.
        made: folder with what was made.
        checksums: sha256 of files in it that are known already, by relative name: they are not read again.
    """
    parts = [
        _model(
            "base",
            _name(str(base.get("id"))),
            folder,
            base.get("revision"),
            {"fingerprint": str(base.get("fingerprint"))},
        )
    ]
    for number, (adapter, weight) in enumerate(adapters, 1):
        parts.append(_model(f"adapter-{number}", adapter.name, adapter, None, {"weight": f"{weight:g}"}))
        if (data := _data(adapter)) is not None:
            parts.append({**data, "bom-ref": f"data-{number}"})
    parts += [_package(package) for package in _PACKAGES if _is_installed(package)]
    files = [_file(path, made, checksums) for path in sorted(made.rglob("*")) if _is_made(path)]
    model = {"type": "machine-learning-model", "bom-ref": "model", "name": name, "components": files}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "lorafold", "version": __version__}]},
            "component": model,
        },
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(bill, indent=2, ensure_ascii=True) + "\n"


def _is_made(path: Path) -> bool:
    """Whether a file is what the export is made for, and not its report, which tells how long it took."""
    return path.name == "Modelfile" or path.suffix in (".gguf", ".safetensors")


def _name(known: str) -> str:
    """An id of the hub, or the last part of a path of this machine."""
    return Path(known).name if Path(known).is_absolute() else known


def _model(ref: str, name: str, folder: Path, revision: Any, about: Mapping[str, str]) -> _Json:
    files = [
        _file(path, folder)
        for path in sorted(folder.iterdir())
        if path.suffix in _MATERIAL and path.is_file()
    ]
    entry: _Json = {"type": "machine-learning-model", "bom-ref": ref, "name": name}
    entry |= {"version": str(revision)} if revision else {}
    properties = [{"name": f"lorafold:{key}", "value": value} for key, value in about.items()]
    return entry | {"properties": properties, "components": files}


def _file(path: Path, folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> _Json:
    name = path.relative_to(folder).as_posix()
    hashes = [{"alg": "SHA-256", "content": known.get(name) or sha256_file(path)}]
    return {"type": "file", "name": name, "hashes": hashes}


def _data(adapter: Path) -> _Json | None:
    """The data set that an adapter's training noted."""
    try:
        noted = (read_manifest(adapter) or {}).get("data") or {}
    except LorafoldError:
        return None
    if not noted.get("sha256"):
        return None
    about = [{"name": "lorafold:examples", "value": str(noted.get("examples"))}]
    digest = {"name": "lorafold:sha256-of-examples", "value": str(noted["sha256"])}
    return {"type": "data", "name": "training data", "properties": [digest, *about]}


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _package(package: str) -> _Json:
    number = version(package)
    entry: _Json = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{package}@{number}",
        "name": package,
        "version": number,
    }
    entry["purl"] = entry["bom-ref"]
    about = metadata(package)
    told = next((about[key] for key in ("License-Expression", "License") if key in about), "")
    trove = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License")
    ]
    words = told.splitlines()[0].strip() if told and len(told) < 200 else ", ".join(trove)
    return entry | ({"licenses": [{"license": {"name": words}}]} if words else {})
