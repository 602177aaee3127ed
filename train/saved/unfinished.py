"""The folder of an unfinished run, `OUT.run` beside its target: made, recognised, and removed.

    out.run/
        metrics.jsonl, checkpoint-100/, best/, runs/   what the run has so far
        tokenizer/, extended/, worker-1/               files that it works with

Nothing else in it is ours. If such a folder holds other things, it belongs to the user and is left alone.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from lorafold.artifacts import system_faults
from lorafold.errors import UsageError
from lorafold.train.config import TrainConfig
from lorafold.train.saved import checkpoints
from lorafold.train.saved.curve import read_metrics

_NAMES = r"(metrics\.jsonl|checkpoint-\d+|best|runs|tokenizer|extended|worker-\d+)"
# A name of ours, or what a kill left of it: `.checkpoint-100.partial`, `.metrics.jsonl.4711.partial`.
_OURS = re.compile(rf"{_NAMES}|\.{_NAMES}(\.\d+)?\.(partial|old|removed|lock)")


def prepare(run: Path, config: TrainConfig) -> None:
    """Make the run's folder, or make sure that the run in it can be continued.

    Raises:
        UsageError: it holds an unfinished run or things that are not ours, and the config does not say
            what to do about them.
    """
    if run.is_symlink() or (run.exists() and not run.is_dir()):
        raise UsageError(
            "the run keeps its checkpoints under this name, which is no folder",
            at=run,
            fix="move it away, or choose another --out",
        )
    strangers = _strangers(run)
    if strangers and not config.force:
        raise UsageError(
            f"the run keeps its checkpoints here, and the folder holds other things ({strangers[0]})",
            at=run,
            fix="move them away, choose another --out, or pass --force to lose them",
        )
    if checkpoints.list_checkpoints(run) and not (config.resume or config.force):
        raise UsageError(
            "there is an unfinished run with checkpoints",
            at=run,
            fix="pass --resume to continue it, or --force to discard it",
        )
    with system_faults(run):
        if run.exists() and not config.resume:
            shutil.rmtree(run)
        run.mkdir(exist_ok=True)


def _strangers(run: Path) -> list[str]:
    """Names in a folder that no run gives."""
    names = (path.name for path in run.iterdir()) if run.is_dir() else ()
    return sorted(name for name in names if not _OURS.fullmatch(name))


def forget(run: Path) -> None:
    """Remove checkpoints and metrics that the run does not go on from: they would mix with the new ones."""
    with system_faults(run):
        for path in (run / "metrics.jsonl", *checkpoints.list_checkpoints(run)):
            _remove(path)


def discard_unless_begun(run: Path) -> None:
    """Remove the folder of a run that has failed before it had anything worth keeping."""
    if run.is_dir() and not checkpoints.list_checkpoints(run) and not read_metrics(run / "metrics.jsonl"):
        with contextlib.suppress(OSError):  # another worker may still be writing there
            _remove_ours(run)


def tidy(run: Path, out: Path) -> None:
    """Move the checkpoints of a finished run into its result and remove the run's folder."""
    with system_faults(run):
        for path in checkpoints.list_checkpoints(run):
            if not (out / path.name).exists():
                path.rename(out / path.name)
        if run.is_dir():
            _remove_ours(run)


def _remove_ours(run: Path) -> None:
    """Remove what a run makes, and its folder unless somebody has put things there."""
    for path in list(run.iterdir()):
        if _OURS.fullmatch(path.name):
            _remove(path)
    if not any(run.iterdir()):
        run.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
