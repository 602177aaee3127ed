"""What an export may put in the place of: nothing it reads, and with `--force` only an earlier export.

In: the config and, once they are known, the inputs. Out: nothing, or an error before the first byte. The new
folder takes the place of the whole old one, so what lies there is lost: that must be ours to lose.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lorafold.artifacts import MANIFEST, check_output, read_manifest
from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.export.config import ExportConfig
from lorafold.export.inputs import Inputs

SHOWN = 3  # names of files that an error shows


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
    if config.chat_template is not None and Path(config.chat_template).is_file():
        files.append(Path(config.chat_template))  # otherwise it is the name of one of ours
    folders = [] if inputs is None else inputs.folders
    read = [*folders, *(path for path in files if path is not None)]
    check_output(config.out, inputs=read, force=config.force)
    if config.force and config.out.is_dir():
        _check_replaceable(config.out)


def _check_replaceable(out: Path) -> None:
    """Refuse to remove a folder that is neither empty nor an export."""
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    try:
        kind = (read_manifest(out) or {}).get("kind")
    except InputError:
        kind = None
    if kind == "export":
        return
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    holds = f"holds no {MANIFEST} of an export" if kind is None else f"is a lorafold {kind}"
    raise UsageError(
        f"--force replaces only an earlier export, and this folder {holds} ({shown})",
        at=out,
        fix="choose another --out, or remove the folder yourself",
    )


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
