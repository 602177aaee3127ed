"""Which base an adapter was trained on, and whether a base is that one: one rule for all stages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.adapters.config import is_mlx
from lorafold.artifacts import MANIFEST, read_manifest
from lorafold.errors import InputError, LorafoldError
from lorafold.files.home import expanded, is_name
from lorafold.files.jsonfile import read_object
from lorafold.models import Base, fingerprint
from lorafold.sources.naming import HUB_ID
from lorafold.sources.recognize import ADAPTER, is_adapter, likely_hub_id

_NAMED = "base_model_name_or_path"
# What the name of a packed version of a model ends in.
_PACKED = re.compile(
    r"(?:[-_.](?:unsloth|bnb|nf4|[48]-?bit|int[48]|w\d+a\d+|gptq|awq|fp8|mlx|dynamic|quantized|hf|g\d+))+$"
)


@dataclass(frozen=True, slots=True)
class NamedBase:
    """The base that an adapter names.

    Attributes:
        spec: what `resolve_base` finds it by: a folder, or a hub id with the revision of the training.
        at: where it is named, for messages.
    """

    spec: str
    at: str

    def narrowed(self, asked: str) -> str:
        """What the user asked for, at the revision of the training if that is the same repository."""
        return self.spec if self.spec.partition("@")[0] == asked else asked


def base_of(folder: Path, fix: str = "name it: --base FOLDER_OR_HUB_ID") -> NamedBase:
    """The base that an adapter names.

    Our manifest knows it exactly; PEFT's configuration gives a path or an id, and beside it the revision.

    Args:
        folder: the adapter's.
        fix: what to do if it names none.

    Raises:
        InputError: none is named, or what is named is an adapter itself.
    """
    identity = _noted(folder)
    spec = identity.get("spec")
    if (
        isinstance(spec, str)
        and _may_be_a_path(spec)
        and (not Path(spec).is_absolute() or Path(spec).is_dir())
    ):
        return NamedBase(spec, f"{folder / MANIFEST}: base")
    config = read_object(folder / ADAPTER)
    at = f"{folder / ADAPTER}: {_NAMED}"
    named, revision = config.get(_NAMED), config.get("revision")
    if named is None and is_mlx(config):
        named, at = config.get("model"), f"{folder / ADAPTER}: model"
    if identity.get("id"):
        named, revision = identity["id"], identity.get("revision")
    if not isinstance(named, str) or not named:
        raise InputError(
            f"{_NAMED} is missing, so the base is not known",
            at=folder / ADAPTER,
            fix=fix,
        )
    if not _may_be_a_path(named):
        raise InputError(f"{named!r} is neither a path nor an id", at=at, fix=fix)
    path = expanded(named)
    if path.is_dir() and is_adapter(path):
        raise on_an_adapter(named, folder, at)
    if isinstance(revision, str) and revision and re.fullmatch(HUB_ID, named) and not path.exists():
        named = f"{named}@{revision}"
    return NamedBase(named, at)


def _may_be_a_path(text: str) -> bool:
    """Whether a text of a file can be looked up on a file system, or be an id."""
    names = [part for part in text.split("/") if part]
    return len(text) <= 4096 and bool(names) and all(map(is_name, names))


def on_an_adapter(named: str, folder: Path, at: str) -> InputError:
    """The refusal of an adapter whose base is an adapter itself, as DPO after SFT leaves it.

    That one may stand on another adapter in its turn: the cure names all of them, the first one first.
    """
    order = [named, str(folder)]
    while (below := _named_by(expanded(order[0]))) and below not in order:
        order.insert(0, below)
    others = " ".join(f"--adapter {path}" for path in order[1:])
    how_many = "both" if len(order) == 2 else "all"
    return InputError(
        f"the base {named!r} is an adapter itself",
        at=at,
        fix=f"fold {how_many} in their order: lorafold export {order[0]} {others}",
    )


def _named_by(adapter: Path) -> str | None:
    """The adapter that an adapter names as its base, if it lies on this disk."""
    try:
        named = read_object(adapter / ADAPTER).get(_NAMED)
    except LorafoldError:
        return None
    return named if isinstance(named, str) and named and is_adapter(expanded(named)) else None


def other_base_named(folder: Path, base: Base) -> str | None:
    """The repository that an adapter names as its base, if the base is of another one.

    Mirrors and packed versions of a model keep its name, apart from an ending; folders may have any name, so
    they are not compared.
    """
    try:
        named = base_of(folder).spec.partition("@")[0]
    except InputError:
        return None
    asked = base.id.removeprefix("modelscope:")
    ids = [spec if re.fullmatch(HUB_ID, spec) else likely_hub_id(spec) for spec in (named, asked)]
    if None in ids or expanded(named).exists():
        return None
    names = {_PACKED.sub("", str(spec).rpartition("/")[2].lower()) for spec in ids}
    return named if len(names) > 1 else None


def check_base(folder: Path, base: Base) -> None:
    """Compare a base with the one that the training noted, if it did.

    Raises:
        InputError: they differ.
    """
    noted, found = _noted(folder).get("fingerprint"), fingerprint(base.folder)
    if noted and noted != found:
        raise InputError(
            f"this adapter was made for another base (its fingerprint is {str(noted)[:12]}, "
            f"that of {base.id} is {found[:12]})",
            at=folder,
            fix="name the base it was trained on with --base",
        )


def _noted(folder: Path) -> dict[str, Any]:
    """What our training noted of the base; empty for adapters made elsewhere."""
    noted = (read_manifest(folder) or {}).get("base")
    return noted if isinstance(noted, dict) else {}
