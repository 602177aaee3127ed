"""Folders on disk: atomic commit, manifest with checksums, lock.

What a stage makes is written into a hidden folder beside the target, synced, and renamed into place, so the
target is always the complete old state or the complete new one. `lorafold.json` is the manifest of every
folder this program makes: what kind it is, which version made it, and size and sha256 of each file in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafold import __version__
from lorafold.errors import BusyError, InputError, LorafoldError, SystemFault, UsageError

MANIFEST = "lorafold.json"
MANIFEST_FORMAT = 1


def check_output(out: Path, *, inputs: Iterable[Path] = (), force: bool = False) -> None:
    """Refuse an output that would overwrite an input or, without `force`, anything at all.

    Raises:
        UsageError: `out` is or lies in an input, holds one, is not a folder, or is not empty.
    """
    target = out.resolve()
    for source in inputs:
        if not source.exists():
            continue
        origin = source.resolve()
        if target == origin or origin in target.parents or target in origin.parents:
            raise UsageError(
                f"the output overlaps the input {source}", at=out, fix="choose a folder outside of it"
            )
    if out.exists() and not out.is_dir():
        raise UsageError("the output exists and is not a folder", at=out, fix="choose another name")
    if not force and out.is_dir() and any(out.iterdir()):
        raise UsageError("the output folder is not empty", at=out, fix="pass --force to replace it")


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a staging folder that becomes `out` if the block succeeds and vanishes if it fails.

    The staging folder lies beside the target, on the same file system, so that the last step is a rename.
    One process at a time: a second one on the same output gets a `BusyError`.
    """
    check_output(out, force=force)
    parent = out.resolve().parent
    with system_faults(out):
        parent.mkdir(parents=True, exist_ok=True)
    with lock(out):
        staging = parent / f".{out.name}.partial"
        with system_faults(out):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        try:
            with system_faults(out):
                yield staging
                sync_tree(staging)
                replace_folder(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def replace_folder(staging: Path, out: Path) -> None:
    """Put a finished folder in the place of `out`; an existing one is moved aside first, then removed."""
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; what a kill in the middle leaves over does not carry its name."""
    aside = folder.parent / f".{folder.name}.old"
    with system_faults(folder):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, sync it, and rename it into place."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with system_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


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
    """fsync a directory entry."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the lock of an output for the length of the block.

    The lock is a file beside the target, held with flock: it ends with the process, however that ends.

    Raises:
        BusyError: another process holds it; its pid is named.
    """
    path = out.resolve().parent / f".{out.name}.lock"
    with system_faults(out):
        file = open(path, "a+")  # noqa: SIM115 - closed in the finally below, after the block
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise BusyError(
                f"process {pid} is writing this output", at=out, fix="wait for it, or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        path.unlink(missing_ok=True)
    finally:
        file.close()


# What the operating system may refuse a user, by errno(3).
_CURES = {
    errno.ENOSPC: ("the disk is full", "free space or choose an --out on another disk"),
    errno.EDQUOT: ("the disk quota is used up", "free space or choose an --out on another disk"),
    errno.EFBIG: (
        "the file is larger than the file system or `ulimit -f` allows",
        "raise the limit or choose an --out on another disk",
    ),
    errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
    errno.EACCES: ("permission denied", "choose a folder that you may write"),
    errno.EPERM: ("permission denied", "choose a folder that you may write"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter one"),
    errno.ELOOP: ("its symbolic links lead in a circle", "choose another path"),
    errno.EIO: ("the disk reports an input/output error", "check the disk, choose another one"),
}


@contextlib.contextmanager
def system_faults(at: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, permission, quota, I/O) into one-line errors."""
    try:
        yield
    except LorafoldError:
        raise
    except OSError as error:
        if error.errno not in _CURES:
            raise
        problem, fix = _CURES[error.errno]
        # Of a copy or a rename the second name is the one that was to be written.
        raise SystemFault(problem, at=error.filename2 or error.filename or at, fix=fix) from error


def sha256_file(path: Path) -> str:
    """The sha256 of a file as hexadecimal text."""
    digest = hashlib.sha256()  # hashlib.file_digest is not in Python 3.10
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(
    folder: Path, kind: str, facts: Mapping[str, Any], *, checksums: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write `lorafold.json`: kind, version, `facts`, and size and sha256 of every other file in the folder.

    Args:
        kind: "adapter", "checkpoint", "export" or "base".
        facts: JSON values of the stage's own (resolved config, base identity, proof figures).
        checksums: sha256 of files that are known already, by relative name: they are not read again.
    """
    known = checksums or {}
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {
        "format": MANIFEST_FORMAT,
        "kind": kind,
        "lorafold": __version__,
        **facts,
        "files": {
            name: {"size": path.stat().st_size, "sha256": known.get(name) or sha256_file(path)}
            for name, path in files.items()
        },
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none (a folder made by another tool).

    Raises:
        InputError: there is one, but it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the manifest cannot be read ({error})", at=path, fix="make the folder again"
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError("this is not a lorafold manifest", at=path, fix="make the folder again")
    return manifest


def damaged_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of files that are missing, of another size, or of another sha256 than the manifest says."""
    damaged = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            damaged.append(name)
    return damaged
