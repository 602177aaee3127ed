"""Folders on disk: atomic commit, manifest with checksums, lock.

What a stage makes is written into a hidden folder beside the target, synced, and renamed into place, so the
target is always the complete old state or the complete new one. `lorafold.json` is the manifest of every
folder this program makes: what kind it is, which version made it, size and sha256 of each file in it, and its
own sha256.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any

from lorafold.errors import BusyError, InputError, SystemFault, UnsafeInputError, UsageError
from lorafold.files.renames import replace_folder, restore_folder, sync_folder, sync_tree
from lorafold.files.seals import MEANT, has_changed, sealed
from lorafold.files.shapes import check_shape
from lorafold.files.signatures import another_file, head_of
from lorafold.version import __version__

MANIFEST = "lorafold.json"
MANIFEST_FORMAT = 1
_SHOWN = 3  # names of files that an error shows


def check_output(
    out: Path, *, inputs: Iterable[Path] = (), force: bool = False, replaces: Sequence[str] = ()
) -> None:
    """Refuse an output that would overwrite an input, or what is there without `force`.

    Args:
        out: a folder; its successor replaces it with all that it holds.
        inputs: what is read.
        force: whether it may be replaced.
        replaces: the kinds of our folders that may be (see `write_manifest`); anything if none is given.

    Raises:
        UsageError: `out` is or lies in an input, holds one, is not a folder, or is not empty and may not be
            replaced.
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
    held = _names_in(out) if out.is_dir() else ""
    if not held:
        return
    problem = f"the output folder is not empty ({held})"
    if replaces and (kind := _kind_of(out)) not in replaces:
        if force:
            wanted = " or ".join(replaces)
            holds = f"holds no {MANIFEST} of an {wanted}" if kind is None else f"is a lorafold {kind}"
            problem = f"--force replaces only an earlier {wanted}, and this folder {holds} ({held})"
        raise UsageError(problem, at=out, fix="choose another --out, or remove the folder yourself")
    if not force:
        fix = "choose another folder, or pass --force to replace this one with all that it holds"
        raise UsageError(problem, at=out, fix=fix)


def _kind_of(folder: Path) -> str | None:
    """What kind of folder of ours it is, or None."""
    try:
        kind = (read_manifest(folder) or {}).get("kind")
    except InputError:
        return None
    return kind if isinstance(kind, str) else None


def _names_in(folder: Path) -> str:
    """The first names in a folder, as an error shows them; "" if it is empty."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a staging folder that becomes `out` if the block succeeds and vanishes if it fails.

    The staging folder lies beside the target, on the same file system, so that the last step is a rename.
    Of a symlink the target is what it leads to. One process at a time: a second one on the same output gets
    a `BusyError`.
    """
    check_output(out, force=force)
    target = out.resolve()
    with system_faults(out):
        target.parent.mkdir(parents=True, exist_ok=True)
    with lock(out):
        staging = target.parent / f".{target.name}.partial"
        try:
            with system_faults(out):
                if restore_folder(target):
                    check_output(out, force=force)
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
                yield staging
                sync_tree(staging)
                replace_folder(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, sync it, and rename it into place.

    What a killed process left of the same file is removed.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with system_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote this file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not _runs(int(pid)):
            with contextlib.suppress(OSError):  # it costs space only
                left.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the lock of an output for the length of the block.

    The lock is a file beside the target, held with flock: it ends with the process, however that ends.

    Raises:
        BusyError: another process holds it; its pid is named.
    """
    target = out.resolve()
    path = target.parent / f".{target.name}.lock"
    file = _locked(path, out)
    try:
        with system_faults(out):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield
    finally:
        # While it is held: the next one makes its own. A file that cannot be removed holds nobody up.
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _locked(path: Path, out: Path) -> FileIO:
    """The lock's file, opened and held."""
    while True:
        with system_faults(out):
            file = FileIO(path, "a+")  # without a buffer that could fail once more when it is closed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it in between, and another process hold a new one by that name.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
            file.close()
        except FileNotFoundError:
            file.close()
        except OSError as error:
            with file:
                file.seek(0)
                pid = file.read().decode(errors="replace").strip() or "unknown"
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                with contextlib.suppress(OSError):
                    path.unlink()
                with system_faults(out):
                    raise
            raise BusyError(
                f"process {pid} is writing this output", at=out, fix="wait for it, or choose another --out"
            ) from error


_LOCAL = "choose an --out on a local disk"
_UNABLE = ("the file system cannot do this (a network or FUSE file system?)", _LOCAL)
_GONE = ("the network file system does not answer", "mount it again, or choose an --out on a local disk")
CURES = {
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
    errno.EINVAL: _UNABLE,
    errno.EOPNOTSUPP: _UNABLE,
    errno.ENOSYS: _UNABLE,
    errno.EXDEV: ("the file system cannot rename this (an overlay's lower layer?)", _LOCAL),
    errno.ENOLCK: ("the file system has no locks", _LOCAL),
    errno.ESTALE: _GONE,
    errno.ENOTCONN: _GONE,
    errno.ETIMEDOUT: _GONE,
    errno.ENOMEM: ("the system has no memory left", "close other programs"),
    errno.EMFILE: ("too many files are open", "raise the limit, `ulimit -n 4096`"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
}
"""What the operating system may refuse a user, by its number (errno(3)): in our words, with a cure."""


def system_fault(error: OSError, at: Path | str | None = None) -> SystemFault | None:
    """What the operating system refused, as a one-line error; None if a user cannot have caused or mend it.

    Args:
        error: as it was raised.
        at: the file that was worked on, if the error names none.
    """
    if error.errno not in CURES:
        return None
    problem, fix = CURES[error.errno]
    # Of a copy or a rename the second name is the one that was to be written.
    return SystemFault(problem, at=error.filename2 or error.filename or at, fix=fix)


@contextlib.contextmanager
def system_faults(at: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, permission, quota, I/O) into one-line errors."""
    try:
        yield
    except OSError as error:
        fault = system_fault(error, at)
        if fault is None:
            raise
        raise fault from error


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
    """Write `lorafold.json`: kind, version, `facts`, size and sha256 of every other file, and a seal.

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
    write_atomic(folder / MANIFEST, sealed(manifest, indent=2))
    return manifest


def system_of(folder: Path) -> str:
    """The system message that an adapter was trained under, or that an export carries; "" if there is none.

    Raises:
        LorafoldError: as `read_manifest`.
    """
    config = (read_manifest(folder) or {}).get("config")
    system = config.get("system") if isinstance(config, dict) else None
    return system if isinstance(system, str) else ""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if there is none (a folder made by another tool).

    Raises:
        InputError: it is none of ours, damaged, or a later version gave it another meaning.
        UnsafeInputError: it names a file outside of the folder.
        SystemFault: the system does not let it be read.
    """
    path = folder / MANIFEST
    try:
        with system_faults(path):
            text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise another_file(path, head_of(path)) or InputError(
            f"the manifest cannot be read ({error})", at=path, fix="make the folder again"
        ) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise another_file(path, head_of(path)) or InputError(
            "this is not a lorafold manifest", at=path, fix="make the folder again"
        )
    if has_changed(text):
        raise InputError(
            "the manifest changed since it was written (its sha256 is another)",
            at=path,
            fix=MEANT,
        )
    number = manifest.get("format", MANIFEST_FORMAT)
    if not isinstance(number, int) or number > MANIFEST_FORMAT:
        raise InputError(
            f"its format is {number!r}, expected at most {MANIFEST_FORMAT}: a newer lorafold made it",
            at=path,
            fix="upgrade lorafold, or make the folder again with this version",
        )
    check_shape(manifest, MANIFEST, path)
    for name, entry in manifest["files"].items():
        if entry is None or not _inside(name):
            raise UnsafeInputError(
                f"files: {name!r} is no file of this folder", at=path, fix="do not use this folder"
            )
    return manifest


def _inside(name: str) -> bool:
    """Whether a name is that of a file in the folder or below it."""
    pure = PurePosixPath(name)
    return bool(name) and not pure.is_absolute() and ".." not in pure.parts and name.isprintable()


def damaged_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Names of files that are missing, of another size, or of another sha256 than the manifest says."""
    damaged = []
    for name, entry in manifest["files"].items():
        path = folder / name
        with system_faults(path):
            noted = entry if isinstance(entry, dict) else {}
            whole = path.is_file() and path.stat().st_size == noted.get("size")
            if not whole or sha256_file(path) != noted.get("sha256"):
                damaged.append(name)
    return damaged


def read_whole(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder with every file as it says; None if there is no such folder.

    Raises:
        SystemFault: the system does not let a file be read.
    """
    try:
        manifest = read_manifest(folder)
    except InputError:
        return None
    return manifest if manifest is not None and not damaged_files(folder, manifest) else None


def check_whole(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Hold the files of an adapter, a checkpoint or a base against its manifest.

    Raises:
        InputError: files are missing or changed; all are named.
        SystemFault: the system does not let one be read.
    """
    if damaged := damaged_files(folder, manifest):
        problem = f"{', '.join(damaged)} changed since it was made (size or sha256)"
        raise InputError(problem, at=folder, fix="make it again, or copy it again from where it is whole")


def read_export(folder: Path) -> dict[str, Any]:
    """The manifest of an export whose files are whole.

    Raises:
        InputError: there is no such folder, it is no export, or a file changed.
        SystemFault: the system does not let it be read.
    """
    with system_faults(folder):
        if folder.is_file():
            raise InputError("this is a file, not an export's folder", at=folder, fix=f"give {folder.parent}")
        if not folder.exists():
            raise InputError("there is no such folder", at=folder, fix="check the path")
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "export":
        fix = "give the folder that `lorafold export --out` named"
        raise InputError("this is not an export of lorafold", at=folder, fix=fix)
    if damaged := damaged_files(folder, manifest):
        problem = f"{', '.join(damaged)} changed since the export (size or sha256)"
        raise InputError(problem, at=folder, fix="export again")
    return manifest
