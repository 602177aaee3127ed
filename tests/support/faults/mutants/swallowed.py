"""A full disk that nobody tells of: the lines of a refusal are lost, the run goes on."""

import contextlib
from pathlib import Path

import lorafold.artifacts
import lorafold.export.stage


@contextlib.contextmanager
def system_faults(at: Path):
    with contextlib.suppress(OSError):
        yield


lorafold.artifacts.system_faults = system_faults
