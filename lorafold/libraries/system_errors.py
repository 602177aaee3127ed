"""What the operating system refused a library that tells of it in words alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorafold.errors import LorafoldError

# How Rust's std::io::Error ends (safetensors, tokenizers), and torch's "unable to open file <NAME> … (5)".
_NUMBER = re.compile(r"\((?:os error )?(\d+)\)(?: at path .*)?$", re.DOTALL)


@contextmanager
def system_errors(at: Path) -> Iterator[None]:
    """Raise the OSError that the text of a library's exception tells of.

    Args:
        at: the file or folder that is worked on.

    Raises:
        OSError: with the errno.
    """
    try:
        yield
    except (OSError, LorafoldError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(at)) from error
