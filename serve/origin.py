"""Where a model comes from, as the manifests of its export and its adapters tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lorafold.artifacts import read_manifest, system_of
from lorafold.errors import LorafoldError
from lorafold.files.home import expanded
from lorafold.serve.config import ChatConfig, CompareConfig
from lorafold.serve.engines.open import is_served, pieces_of
from lorafold.serve.engines.servers.fields import fields, rows, text

_Config = TypeVar("_Config", ChatConfig, CompareConfig)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file was made of, and what became of its proof.

    Attributes:
        made: base and adapters ("org/base + tuned").
        checks: how many of the proof were made or could not be made; 0 if the proof was left out.
        passed: how many of them passed.
    """

    made: str
    checks: int
    passed: int

    def __str__(self) -> str:
        """As a sentence in English."""
        if not self.checks:
            proof = "not proven"
        elif self.passed == self.checks:
            proof = "proof passed"
        else:
            proof = f"{self.passed} of {self.checks} checks passed"
        return f"exported from {self.made}; {proof}"


def origin_of(source: str, digest: str) -> Origin | None:
    """What the manifest of an export says of the GGUF in it, if the file is still the one that was proven."""
    path = expanded(pieces_of(source)[0])
    try:
        manifest = read_manifest(path.parent) or {}
    except LorafoldError:  # the answers are worth as much without it
        return None
    noted = fields(fields(manifest.get("files")).get(path.name))
    if manifest.get("kind") != "export" or noted.get("sha256") != digest.split("+")[0]:
        return None
    base = fields(manifest.get("base"))
    adapters = [Path(text(row.get("folder"))).name for row in rows(manifest.get("adapters"))]
    # A note is no verdict, and what stands in the place of a proof that was left out is none either.
    verdicts = [
        said
        for check in rows(manifest.get("proof"))
        if (said := text(check.get("verdict"))) != "note" and text(check.get("name")) != "proof"
    ]
    made = " + ".join(filter(None, [text(base.get("id")) or text(base.get("path")), *adapters]))
    return Origin(made, len(verdicts), verdicts.count("passed"))


def with_own_system(config: _Config) -> tuple[_Config, str]:
    """A config with the system message of its models if the user gave none, and a note of it, or ""."""
    found = system_message(config.models) if config.system is None else None
    if found is None:
        return config, ""
    system, note = found
    return replace(config, system=system), note


def system_message(models: Sequence[str]) -> tuple[str, str] | None:
    """The system message under which models are asked if the user gives none, and a note that says so.

    An adapter that was trained under one hardly shows without it. All models are asked under the same one,
    so that what differs is the models; it is the first that any of them was trained under or exported with.

    Args:
        models: as the user names them.
    """
    for model in models:
        if is_served(model):
            continue
        for piece in map(Path, pieces_of(model)):
            place = expanded(piece)
            folder = place if place.is_dir() else place.parent if place.is_file() else None
            try:
                text = system_of(folder) if folder is not None else ""
            except LorafoldError:  # opening the model says more
                continue
            if text:
                return (
                    text,
                    f"the system message of {piece.name} is used: {text!r}; --system '' leaves it out",
                )
    return None
