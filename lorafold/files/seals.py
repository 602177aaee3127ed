"""Records that carry their own sha256: JSON whose last entry is the digest of all the rest.

    {"number": 3, "row": …, "sha256": "5f16…"}

The digest is taken of the text as it stands in the file, with zeros in its own place, so that any bit that
changes there is found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

MEANT = "copy it again from where it is whole; if you changed it yourself, remove its sha256, the last entry"
"""What to do about a file that has changed."""
_ZEROS = "0" * 64
_PLACE = re.compile(r'(?<=")[0-9a-f]{64}(?="\s*\}\s*\Z)')
_LENGTH = 80  # a seal has one bit that is wrong at most: its name or its digest is as it should be
_SEAL = re.compile(r'"sha256": "[0-9a-f]{64}"\s*\}\s*\Z')


def sealed(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """A record as a line of JSON, or as a file of it, with its digest.

    Args:
        record: JSON values; lone surrogates come out as JSON writes them.
        indent: spaces, for a file on several lines.
    """
    text = json.dumps({**record, "sha256": _ZEROS}, ensure_ascii=False, indent=indent) + "\n"
    return _with_digest(text.encode("utf-8", errors="backslashreplace").decode())


def is_intact(text: str) -> bool:
    """Whether a sealed text is as it was written."""
    return bool(_SEAL.search(text)) and _with_digest(text) == text


def has_changed(text: str) -> bool:
    """Whether a sealed file of several lines is not as it was written, its seal included.

    A file on one line was written by another program, which meant what it changed; one without a seal is of a
    time before seals.
    """
    looks_sealed = _PLACE.search(text) or '"sha256": "' in text[-_LENGTH:]
    return text.startswith("{\n") and bool(looks_sealed) and not is_intact(text)


def _with_digest(text: str) -> str:
    empty = _PLACE.sub(_ZEROS, text)
    return _PLACE.sub(hashlib.sha256(empty.encode("utf-8", errors="surrogateescape")).hexdigest(), empty)
