"""Archives and folders of data files: every member is read, named as left out, or refused.

Members are read where they are, nothing is unpacked.
"""

from __future__ import annotations

import errno
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from lorafold.errors import InputError, UnsafeInputError
from lorafold.records.contents import refuse_foreign
from lorafold.records.packed import kind_of, unpacked

# A directory that names no place in the file, a member that is encrypted or packed in an unknown way.
# For such a member zipfile raises a RuntimeError, or a subclass of it.
_DAMAGED_ZIP = (zipfile.BadZipFile, RuntimeError, EOFError, UnicodeDecodeError)
# What reading a member may raise when its bytes are not what the archive says.
DAMAGED_MEMBER = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)

ARCHIVES = (".zip", ".tar")
CODE = (".py", ".ipynb")
# Texts that tell about the data beside them; a file of such a name is never data itself.
_ABOUT = {"readme", "license", "licence", "copying", "copyright", "notice", "changelog", "changes", "authors"}
_ABOUT |= {"citation", "contributing"}
_TRAIN, _OTHER_SPLIT = (
    re.compile(rf"(?:^|[\W_])(?:{words})(?:$|[\W_])", re.IGNORECASE)
    for words in ("train|training", "test|testing|valid|validation|val|dev|eval|evaluation")
)
_METADATA = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive or folder.

    Attributes:
        name: its path inside.
        open: its bytes; None for what is no plain file (a link, a device).
    """

    name: str
    open: Callable[[], IO[bytes]] | None


@contextmanager
def opened_members(path: Path) -> Iterator[list[Member]]:
    """The files of a folder or an archive, readable until the block ends.

    Raises:
        InputError: it is not a readable archive.
        UnsafeInputError: a member's path leaves the archive.
    """
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
        yield [Member(file.relative_to(path).as_posix(), partial(_bytes_of, file)) for file in files]
        return
    kind, packed = kind_of(path.name)
    with open(path, "rb") as file:
        refuse_foreign(file, path.name)
        with unpacked(file, packed, path.name) as content:
            yield from (_zip if kind == ".zip" else _tar)(content, path)


def _bytes_of(file: Path) -> IO[bytes]:
    return open(file, "rb")


def _zip(file: IO[bytes], path: Path) -> Iterator[list[Member]]:
    try:
        archive = zipfile.ZipFile(file)
        inside = [info for info in archive.infolist() if info.filename and not info.is_dir()]
    except (*_DAMAGED_ZIP, ValueError, struct.error) as error:
        raise _unreadable(error, path) from error
    with archive:
        _stay_inside((info.filename for info in inside), path)
        try:
            yield [Member(info.filename, partial(archive.open, info)) for info in inside]
        except _DAMAGED_ZIP as error:
            raise _unreadable(error, path) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the file's beginning
                raise
            raise _unreadable(error, path) from error


def _unreadable(error: Exception, path: Path) -> InputError:
    problem = f"not a readable zip archive ({str(error) or type(error).__name__})"
    return InputError(problem, at=path, fix="pack it again")


def _tar(file: IO[bytes], path: Path) -> Iterator[list[Member]]:
    try:
        with tarfile.open(fileobj=file) as archive:
            inside = [info for info in archive.getmembers() if not info.isdir()]
            _stay_inside((info.name for info in inside), path)

            def content(info: tarfile.TarInfo) -> IO[bytes]:
                found = archive.extractfile(info)
                assert found is not None, "only regular files are opened"
                return found

            yield [Member(info.name, partial(content, info) if info.isreg() else None) for info in inside]
    except (tarfile.TarError, EOFError, OSError, ValueError, MemoryError) as error:  # sizes of any number
        problem = f"not a readable tar archive ({type(error).__name__})"
        raise InputError(problem, at=path, fix="pack it again") from error


def _stay_inside(names: Iterator[str], archive: Path) -> None:
    for name in names:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts:
            problem = f"the member {name!r} leaves the archive's folder"
            raise UnsafeInputError(problem, at=archive, fix="do not use this archive")


def sort_out(members: Sequence[Member], known: frozenset[str]) -> tuple[list[Member], dict[str, str]]:
    """Which members are data.

    Plain texts are data if there is nothing else; beside tables of records they tell about them. If files are
    called after splits, as `datasets` wants it, those of other splits than `train` are not to be trained on.

    Args:
        members: of `opened_members`.
        known: file types that have a reader.

    Returns:
        The members to read, and name -> reason of those that are left out.
    """
    left_out = {member.name: reason for member in members if (reason := _no_data(member, known))}
    data = [member for member in members if member.name not in left_out]
    if any(kind_of(member.name)[0] != ".txt" for member in data):
        texts = [member.name for member in data if kind_of(member.name)[0] == ".txt"]
        left_out |= dict.fromkeys(texts, "a text file beside data files")
        data = [member for member in data if member.name not in left_out]
    if any(_TRAIN.search(member.name) for member in data):
        others = [member.name for member in data if _OTHER_SPLIT.search(member.name)]
        left_out |= {name: "not the train split" for name in others if not _TRAIN.search(name)}
        data = [member for member in data if member.name not in left_out]
    return data, left_out


def _no_data(member: Member, known: frozenset[str]) -> str | None:
    """Why a member cannot be data, or None."""
    pure = PurePosixPath(member.name.replace("\\", "/"))
    kind, _ = kind_of(pure.name)
    if member.open is None:
        return "not a plain file"
    if any(part.startswith(".") or part == "__MACOSX" for part in pure.parts):
        return "hidden"
    if pure.name.lower() in _METADATA or pure.name.lower().partition(".")[0] in _ABOUT:
        return "describes the data"
    if kind in ARCHIVES:
        return "an archive inside another"
    if kind in CODE:
        return "code"
    return None if kind in known else "no reader for this type"
