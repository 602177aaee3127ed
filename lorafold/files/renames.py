"""Folders that change names: a finished one takes its place in one step, or a kill can be made up for.

A folder that was moved aside is called `.NAME.old` while it may still be wanted, and `.NAME.removed` when it
is only in the way. What the operating system refuses is raised as it comes, an OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path


def replace_folder(staging: Path, out: Path) -> None:
    """Put a finished folder in the place of `out`, which neither may be a symlink nor lead through one.

    Where the system cannot let two names change places, the old folder is moved aside first, and
    `restore_folder` brings it back after a kill between the two renames.
    """
    if not out.exists():
        staging.rename(out)
        sync_folder(out.parent)
        return
    if _exchange(staging, out):
        sync_folder(out.parent)
        shutil.rmtree(staging, ignore_errors=True)
        return
    old = _old(out)
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    sync_folder(out.parent)
    with contextlib.suppress(OSError):  # the new one is in its place: what is left over costs space only
        remove_folder(old)


def restore_folder(out: Path) -> bool:
    """Bring back what a kill in the middle of `replace_folder` left under another name.

    Returns:
        Whether `out` was missing and is there again.
    """
    old = _old(out)
    if not old.exists():
        return False
    if out.exists():  # the kill came later: what is there is whole and newer
        remove_folder(old)
        return False
    old.rename(out)
    sync_folder(out.parent)
    return True


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step, by renameat2(2); False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux, or a C library from before 2018
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # not on this file system, or kernel
        return False
    raise OSError(code, os.strerror(code), str(other))


def remove_folder(folder: Path) -> None:
    """Remove a folder; what a kill in the middle leaves over does not carry its name."""
    aside = folder.parent / f".{folder.name.removeprefix('.')}.removed"
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, so that a rename after it survives a power loss."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """fsync a directory entry; a file system that knows no such thing keeps names as surely as it can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
