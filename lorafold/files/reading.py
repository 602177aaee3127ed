"""A file that cannot be read, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorafold.errors import SystemFault
from lorafold.files.signatures import no_file


@contextmanager
def read_faults(path: Path) -> Iterator[None]:
    """Tell what the system refuses while a file is opened and read.

    Raises:
        InputError: there is no such file.
        SystemFault: it cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise no_file(path) from None
    except OSError as error:
        fix = "check the path and its permissions"
        raise SystemFault(f"cannot read: {error.strerror}", at=path, fix=fix) from None
