"""What a file really is that does not hold what its name says: told by its first bytes.

A download that failed leaves a page or a pointer under the right name, and people rename what they have.
Every reader of a model's files asks here before it calls a file damaged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lorafold.errors import InputError

HEAD_BYTES = 512
"""First bytes of a file that are enough to tell."""

LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
"""First bytes of a Git LFS pointer (git-lfs/docs/spec.md)."""

LFS_FIX = "run `git lfs pull` in that folder, or download the file again"
_AGAIN = "download the file again"
LOGIN = (
    "download the file itself (`hf download ORG/NAME`, or its address with /resolve/ instead of /blob/), and "
    "log in with `hf auth login` if the repository is gated or private"
)
_UNPACK = "unpack it first"
_UTF8 = "save it as UTF-8, for example: iconv -f UTF-16 -t UTF-8 FILE > NEW"
_CONVERT = "load it where it was made, if you trust its author, and save it as safetensors"
_TRANSFORMERS = "give the Hugging Face folder"


@dataclass(frozen=True, slots=True)
class Signature:
    """A kind of file that is met under another kind's name.

    Attributes:
        pattern: of its first bytes.
        what: words that complete "this is …, not …".
        fix: what helps.
    """

    pattern: re.Pattern[bytes]
    what: str
    fix: str


def _starts(pattern: bytes, what: str, fix: str) -> Signature:
    return Signature(re.compile(pattern, re.DOTALL | re.IGNORECASE), what, fix)


def _magic(magic: bytes, what: str, fix: str) -> Signature:
    return Signature(re.compile(re.escape(magic)), what, fix)


_SPACE = rb"(?:\xef\xbb\xbf)?\s*"

# The first row that fits counts. Sources of the numbers: the formats' own specifications, or file(1)'s magic.
SIGNATURES = (
    _magic(LFS_MAGIC, "a Git LFS pointer", LFS_FIX),
    _magic(b"# xet version", "a Git Xet pointer", "install git-xet and pull again, or " + _AGAIN),
    _starts(rb"(?:\.\./)*(?:\.git)?/annex/objects/", "a git-annex pointer", "run `git annex get`"),
    _starts(rb"(?:\.\./)+blobs/[0-9a-f]+\s*$", "the text of a link into the hub's cache", _AGAIN),
    _starts(_SPACE + rb"(?:<!doctype\s+html|<html)", "a web page (HTML)", LOGIN),
    _starts(_SPACE + rb"<(?:\?xml|error>)", "a server's answer (XML)", LOGIN),
    _starts(
        rb"\s*(?:(?:404: )?not found|(?:entry|repository) not found|invalid (?:username|rev id|credentials)|"
        rb"access to model .{1,150} is restricted|unauthorized|forbidden|too many requests)\b.{0,250}$",
        "a server's refusal",
        LOGIN,
    ),
    _starts(rb"\s*\{\s*\"error\"\s*:\s*\"", "a server's refusal (JSON)", LOGIN),
    _magic(b"\x1f\x8b", "a gzip file", _UNPACK),
    _magic(b"BZh", "a bzip2 file", _UNPACK),
    _magic(b"\xfd7zXZ\0", "an xz file", _UNPACK),
    _magic(b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    _magic(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    _magic(b"Rar!", "a RAR archive", _UNPACK),
    _starts(rb"PK\x03\x04.{26,200}data\.pkl", "a PyTorch file (a pickle)", _CONVERT),
    _magic(b"PK\x03\x04", "a zip archive", _UNPACK),
    _starts(rb".{257}ustar", "a tar archive", _UNPACK),
    _starts(rb"\x80[\x02-\x05][\x8a\x95cK}(\]]", "a pickle", _CONVERT),
    _magic(b"PAR1", "a Parquet file (a data set)", "give the model's own file"),
    _magic(b"ARROW1", "an Arrow file (a data set)", "give the model's own file"),
    _magic(b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _CONVERT),
    _magic(b"\x93NUMPY", "a NumPy array", _CONVERT),
    _magic(b"SQLite format 3\0", "a SQLite database", "give the model's own file"),
    _magic(b"GGUF", "a GGUF file", _TRANSFORMERS),
    _starts(rb"(?:lmgg|fmgg|tjgg)", "a GGML file, from before GGUF", _TRANSFORMERS),
    _magic(b"%PDF", "a PDF", _AGAIN),
    _magic(b"\x89PNG", "an image (PNG)", _AGAIN),
    _starts(rb".{7}\0\{", "a safetensors file", "give it the name *.safetensors"),
    _starts(rb"(?:\xff\xfe\0\0|\0\0\xfe\xff|\{\0\0\0|\0\0\0\{)", "UTF-32 text, not UTF-8", _UTF8),
    _starts(
        rb"(?:\xff\xfe|\xfe\xff|[\x20-\x7e]\0[\x09-\x7e]\0|\0[\x20-\x7e]\0)",
        "UTF-16 text, not UTF-8",
        _UTF8,
    ),
    _starts(rb"(?:.*\n)?<{7} ", "a file with an open git conflict", "choose one of the two sides"),
    _starts(rb"\0{64,}$", "nothing but zero bytes: a download that was interrupted", _AGAIN),
)  # fmt: skip


def told_by(head: bytes) -> Signature | None:
    """What a file is that begins with these bytes; None if that is not known.

    Args:
        head: its first bytes, `HEAD_BYTES` of them if it has so many.
    """
    return next((known for known in SIGNATURES if known.pattern.match(head)), None)


def another_file(
    path: Path, head: bytes, wanted: str = "the file itself", own: str = ""
) -> InputError | None:
    """The error of a file that is something else than its name says; None if nothing known tells.

    Args:
        path: the file.
        head: its first bytes, `HEAD_BYTES` of them if it has so many.
        wanted: what it should be, for the message.
        own: what a right file would be told as; a damaged one still looks like it.
    """
    found = told_by(head)
    if found is None or found.what == own:
        return None
    said = f"this is {found.what}" + ("" if "not UTF-8" in found.what else f", not {wanted}")
    if found.what.startswith("a server's"):
        said += f": {' '.join(head[:80].decode('utf-8', 'replace').split())!r}"
    return InputError(said, at=path, fix=found.fix)


def head_of(path: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def no_file(path: Path) -> InputError:
    """The error of a file that is not there; a link whose target is gone is called so."""
    if path.is_symlink():
        return InputError(
            f"a link to {path.readlink()}, which is not there",
            at=path,
            fix="copy the folder with what its links point to (cp -rL), or download the file again",
        )
    return InputError("no such file", at=path, fix="check the path")
