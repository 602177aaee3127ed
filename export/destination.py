"""Whether an export may write to `--out`: never over its inputs, and with `--force` only over an export.

The new folder replaces the whole old one, so everything in that one is lost. It must have been made by us.
The same holds for the folders beside `--out` that keep an export whose proof failed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lorafold.artifacts import check_output, lock, system_faults
from lorafold.errors import SystemFault
from lorafold.export.config import ExportConfig
from lorafold.export.inputs import Inputs
from lorafold.files.renames import replace_folder, sync_tree


def check_destination(config: ExportConfig, inputs: Inputs | None = None) -> None:
    """Refuse an output folder that would overwrite an input, or what no export has made.

    Args:
        config: the output folder, whether it may be replaced, and the files that are read.
        inputs: the folders that are read; None as long as they are not opened.

    Raises:
        UsageError: the folder is not empty and `force` is not set, holds or lies in an input, or is to be
            replaced and holds something else than an export.
    """
    files = [config.imatrix, config.imatrix_data, config.chats]
    for given in (config.onto, config.mmproj):
        if given is not None and Path(given).exists():
            files.append(Path(given))  # otherwise it lies on a hub
    if config.chat_template is not None and Path(config.chat_template).is_file():
        files.append(Path(config.chat_template))  # otherwise it is the name of one of ours
    folders = [] if inputs is None else inputs.folders
    read = [*folders, *(path for path in files if path is not None)]
    places = [config.out]
    if config.verify:
        places.append(aside(config.out, "failed"))
    if config.require_proof:
        places.append(aside(config.out, "unproven"))
    for place in places:
        check_output(place, inputs=read, force=config.force, replaces=("export",))


def aside(out: Path, why: str) -> Path:
    """The folder beside `--out` that keeps an export which did not get that name."""
    return out.with_name(f"{out.name or out.resolve().name}.{why}")


def keep_aside(staging: Path, out: Path, why: str) -> Path:
    """Give a finished folder a name that says why it is not `--out`.

    Args:
        staging: the finished folder.
        out: where it would have gone.
        why: "failed" or "unproven".

    Returns:
        Where it is now. An earlier one of that name is replaced: `check_destination` has allowed it.
    """
    place = aside(out.resolve(), why)
    with lock(place), system_faults(place):
        sync_tree(staging)
        replace_folder(staging, place)
    return aside(out, why)


def check_disk(size: int, out: Path) -> int:
    """Bytes free where `out` will be made, of which it needs `size`.

    Raises:
        SystemFault: less is free than the output needs.
    """
    folder = next(parent for parent in out.resolve().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise SystemFault(
            f"the disk is too small (needs {size:,} bytes, {free:,} are free)",
            at=out,
            fix="free space, or choose an --out on another disk or a smaller --quant",
        )
    return free
