"""Which base an adapter is folded into: the one that is named, or the 16-bit original of a packed one.

An adapter that was trained on a packed base names that. Its original is known by name or model card
(`packed.originals`), and may lie on this disk beside it or in its place. No weight is read here; what the two
do to the answers is measured in `judge`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lorafold.artifacts import read_manifest
from lorafold.errors import InputError, LorafoldError, SystemFault
from lorafold.export.config import ExportConfig
from lorafold.files.home import expanded
from lorafold.models import Base, locate, read_config, resolve_base
from lorafold.packed.formats import method_of
from lorafold.packed.originals import original_of
from lorafold.packed.source import PackedCheckpoint
from lorafold.progress import Progress
from lorafold.sources.adapter_base import base_of, check_base, on_an_adapter, other_base_named
from lorafold.sources.recognize import is_adapter
from lorafold.weights import Checkpoint


def find_base(adapter: Path, config: ExportConfig, progress: Progress) -> Base:
    """The base of an adapter: what the user names, else what the adapter names.

    An error says where the base was named: an adapter's path may be of another machine.

    Raises:
        InputError: there is no such base, or the adapter was made for another one.
        SystemFault: the hub cannot be asked.
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


def original_at_hand(base: Base, config: ExportConfig, progress: Progress) -> Base | None:
    """The 16-bit original of a packed base, if it is known and lies on this disk: nothing is downloaded."""
    original = original_of(base.id, base.folder)
    if original is None:
        return None
    try:
        return _resolved(original, config, progress, offline=True)
    except LorafoldError:
        return None


def names_base(adapter: Path, base: Base) -> bool:
    """Whether an adapter names just this base as its own."""
    try:
        named = base_of(adapter).spec.partition("@")[0]
    except InputError:
        return False
    return _is_called(base, named)


def compare_base(adapter: Path, base: Base) -> None:
    """Compare a base with the one that the training noted; a packed one's original cannot be compared so.

    Raises:
        InputError: they differ.
    """
    if _packed_version(adapter, base) is None:
        check_base(adapter, base)


def check_fold(config: ExportConfig, base: Base, weights: Checkpoint | PackedCheckpoint) -> None:
    """Refuse what cannot be done with a packed base, and what only can be meant for one.

    Raises:
        InputError: the config asks for the other kind of base.
    """
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
            fix=f"{_pass_original(base)}, or leave --onto out",
        )


def base_notes(base: Base, weights: Checkpoint | PackedCheckpoint, adapters: list[Path]) -> Iterator[str]:
    """Which base was taken, if there is another one that it could have been, and what that may cost.

    Args:
        base: what was taken.
        weights: the same, opened.
        adapters: their folders; only the first names a base, later ones may name an adapter before them.
    """
    for folder in adapters[:1]:
        yield from _other_notes(base, folder)
    if not isinstance(weights, PackedCheckpoint):
        return
    what = f"the unpacked weights of {base.id} ({weights.words})"
    if not adapters:
        original = original_of(base.id, base.folder)
        yield f"this is made from {what}; the 16-bit original{f', {original},' if original else ''} is closer"
        return
    yield (
        f"the adapter is folded into {what}, which is right if it was trained on these; they lie on a coarse "
        "grid, and a 4-bit type may round the adapter's changes away (Q8_0 and Q6_K keep them); to fold into "
        f"the other weights, {_pass_original(base)}"
    )


def _other_notes(base: Base, adapter: Path) -> Iterator[str]:
    """That an adapter names another base than the one that it is folded into."""
    if (packed := _packed_version(adapter, base)) is not None:
        into = f"and is folded into {base.id}, its 16-bit original, which is nearer to the model"
        if not _is_original(base, packed):
            into = f"which is packed: {base.id} is right only if it is its 16-bit original"
        yield (
            f"the adapter was trained on {packed} {into}; but what the adapter learned to make up for the "
            f"packing is too much there; to fold into what it was trained on, have {packed} at hand"
        )
    elif (packed := _packed_meanwhile(adapter)) is not None:
        yield (
            f"the adapter was trained on {base.id} while its weights were packed ({packed}), and is folded "
            "into them as they are; what it learned to make up for the packing is too much there"
        )
    elif (named := other_base_named(adapter, base)) is not None:
        yield (
            f"{adapter.name} names {named} as its base, and is folded into {base.id}: that is right only "
            "if both have the same weights"
        )


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
    base = _resolved(spec, config, progress)
    if config.fold_into != "original":
        return base
    compare_base(adapter, base)
    return _original_base(base, config, progress)


def _resolved(spec: str, config: ExportConfig, progress: Progress, *, offline: bool = False) -> Base:
    """A base by its name; nothing is downloaded if that is asked for, here or by the user."""
    return resolve_base(
        spec,
        offline=offline or config.offline,
        trust_remote_code=config.trust_remote_code,
        progress=progress,
    )


def _instead_of(spec: str, config: ExportConfig, progress: Progress) -> Base | None:
    """The 16-bit original of a packed base that is not here: if it is asked for, or is at hand itself."""
    original = original_of(spec.partition("@")[0], Path(spec))
    if original is None or config.fold_into == "quantized":
        return None
    try:
        return _resolved(original, config, progress, offline=config.fold_into == "auto")
    except (InputError, SystemFault):
        return None


def _packed_version(adapter: Path, base: Base) -> str | None:
    """The packed base that an adapter names, if this plain one may be its original."""
    try:
        named = base_of(adapter).spec.partition("@")[0]
        folder = expanded(named)
        if original_of(named, Path(named)) is None and not (
            folder.is_dir() and method_of(read_config(folder)) is not None
        ):
            return None
        plain = method_of(base.config()) is None
    except InputError:
        return None
    return named if plain and (_is_original(base, named) or other_base_named(adapter, base) is None) else None


def _packed_meanwhile(adapter: Path) -> str | None:
    """How a base of plain weights was packed for the training alone, if the manifest says that it was."""
    noted = (read_manifest(adapter) or {}).get("base")
    weights = noted.get("weights") if isinstance(noted, dict) else None
    found = re.search(r", packed for the training \((.+)\)$", weights) if isinstance(weights, str) else None
    return found[1] if found else None


def _is_original(base: Base, packed: str) -> bool:
    """Whether name or card say that a base is the original of a packed one."""
    original = original_of(packed, Path(packed))
    return original is not None and _is_called(base, original)


def _is_called(base: Base, name: str) -> bool:
    """Whether an id or a path names a base."""
    return name == base.id or expanded(name).resolve() == base.folder


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
        return _resolved(original, config, progress)
    except (InputError, SystemFault) as error:
        fix = f"{error.fix}; or fold into {base.id}, which is here: --fold-into quantized"
        raise type(error)(error.problem, at=error.at, fix=fix) from error


def _narrowed(asked: str, adapter: Path) -> str:
    """--base at the revision of the training, if the adapter names the same repository with one."""
    try:
        return base_of(adapter).narrowed(asked)
    except InputError:
        return asked


def _pass_original(base: Base) -> str:
    """How to name the 16-bit original of a packed base."""
    original = original_of(base.id, base.folder)
    return f"pass its 16-bit original with --base{f' {original}' if original else ''}"
