"""Files that are moved into their folder one by one, the manifest first: it stands there for what is not."""

from pathlib import Path

import lorafold.artifacts
from lorafold.artifacts import MANIFEST


def replace_folder(staging: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name != MANIFEST):
        path.rename(out / path.name)
    staging.rmdir()


lorafold.artifacts.replace_folder = replace_folder
