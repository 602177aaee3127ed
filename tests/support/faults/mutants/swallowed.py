"""A failing disk that nobody tells of: the refusal is lost, and the run goes on."""

import contextlib
import errno
from pathlib import Path

import lorafold.artifacts


@contextlib.contextmanager
def system_faults(at: Path):
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


lorafold.artifacts.system_faults = system_faults
