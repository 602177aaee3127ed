"""A folder that gets its name before it is filled."""

import contextlib
from pathlib import Path

import lorafold.artifacts
import lorafold.export.stage


@contextlib.contextmanager
def new_folder(out: Path, *, force: bool = False):
    out.mkdir(exist_ok=force)
    yield out


lorafold.artifacts.new_folder = lorafold.export.stage.new_folder = new_folder
