"""Data sets of the `datasets` library -> records: a folder that it saved, or one on the hub.

Of several splits, `train` is read, and what is left is told. A data set with a loading script is refused:
scripts are code. What was downloaded stays in the hub's cache; offline, the newest copy there is read and
nothing connects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafold.errors import InputError, LorafoldError, SystemFault, UnsafeInputError
from lorafold.models import require
from lorafold.records.jsontext import Placed
from lorafold.sources.naming import HUB_ID

_ID = re.compile(rf"{HUB_ID}(@[\w./-]+)?(#[\w.-]+)?")
_SPLIT = "train"  # what is read if nobody names another


def is_hub_id(spec: str) -> bool:
    """Whether a text looks like "org/name", "org/name@revision" or "org/name#split"."""
    return _ID.fullmatch(spec) is not None


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made a folder."""
    several, *single = (folder / name for name in ("dataset_dict.json", "dataset_info.json", "state.json"))
    return several.is_file() or all(file.is_file() for file in single)


def read_saved(folder: Path, note: Callable[[str], None]) -> Iterator[Placed]:
    """Read a folder that the `datasets` library saved.

    Args:
        folder: of one data set, or of several splits.
        note: told which split is read.

    Raises:
        InputError: it is damaged.
    """
    require("datasets", extra="train")
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises many kinds for a damaged folder
        problem = f"not a readable saved data set ({_reason(error)})"
        raise InputError(problem, at=folder, fix="save it again") from error
    yield from _rows(loaded, folder.name, _SPLIT, f"{folder}/", note)


def read_hub(spec: str, note: Callable[[str], None], *, offline: bool = False) -> Iterator[Placed]:
    """Read a data set of the hub.

    Args:
        spec: "org/name", with "@revision" and "#split" if wanted.
        note: told which split is read.
        offline: read the copy in the cache.

    Raises:
        InputError: the hub has no such data set, or it is gated for this user.
        UnsafeInputError: it brings a loading script.
        SystemFault: the hub cannot be reached; offline, the cache lacks it.
    """
    require("datasets", extra="train")
    whole, _, split = spec.partition("#")
    name, _, revision = whole.partition("@")
    try:
        loaded = _cached(name, revision) if offline else _fetched(name, revision or None)
    except LorafoldError as error:
        raise type(error)(error.problem, at=spec, fix=error.fix) from error
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow: no common class
        raise _hub_error(error, spec) from error
    told = note if not split else lambda _: None
    yield from _rows(loaded, spec, split or _SPLIT, f"{whole}#", told)


def _fetched(name: str, revision: str | None) -> Any:
    import datasets

    _ask_once(name, revision)
    builder = datasets.load_dataset_builder(name, revision=revision)
    if type(builder).__name__ == "Cache":  # what the library falls back on without a word
        raise _away()
    builder.download_and_prepare()
    return builder.as_dataset()


def _ask_once(name: str, revision: str | None) -> None:
    """Say at once that the hub is away: the library would try again for 25 seconds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().dataset_info(name, revision=revision, timeout=30)
    except (HfHubHTTPError, OfflineModeIsEnabled, ValueError):
        pass  # an answer, or a setting: the library knows what they mean for a data set
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        raise _away() from error


def _away() -> SystemFault:
    fix = "check the network, or pass --offline to read the cached copy"
    return SystemFault("the hub cannot be reached", fix=fix)


def _cached(name: str, revision: str) -> Any:
    """The newest copy in the cache, found as the library finds it when the hub is away.

    The cache knows a copy by its commit, so no other name of a revision can be told there.
    """
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = Cache(dataset_name=name.rpartition("/")[2], repo_id=name, version="auto", hash="auto")
    except ValueError as error:
        fix = "run once without --offline, or give a data file"
        raise SystemFault("the data set is not in the local cache", fix=fix) from error
    if revision and not str(builder.hash).startswith(revision):
        problem = f"the copy in the local cache is of commit {builder.hash}"
        raise SystemFault(problem, fix="name that one, or run without --offline")
    return builder.as_dataset()


def _hub_error(error: Exception, spec: str) -> LorafoldError:
    text = str(error)
    if "gated" in text:
        fix = "accept its terms on the hub and log in with `hf auth login`"
        return InputError("you have no access to this gated data set", at=spec, fix=fix)
    if isinstance(error, FileNotFoundError):
        problem = "neither a file here nor a data set on the hub"
        return InputError(
            problem, at=spec, fix="check the path or the id, or `hf auth login` if it is private"
        )
    if "script" in text:
        problem = "the data set brings a loading script, which is not run"
        return UnsafeInputError(problem, at=spec, fix="convert it to parquet first")
    if "Config name is missing" in text:
        problem = "the data set has several configurations, and none is the default"
        return InputError(problem, at=spec, fix="download the files of one and give those")
    if isinstance(error, OSError):
        problem = f"the hub cannot be reached ({type(error).__name__})"
        return SystemFault(problem, at=spec, fix="check the network and try again; finished files are kept")
    return InputError(f"the hub's data set cannot be read ({_reason(error)})", at=spec, fix="give its files")


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _rows(loaded: Any, name: str, split: str, prefix: str, note: Callable[[str], None]) -> Iterator[Placed]:
    """Rows of a data set; of several splits, those of one.

    Args:
        loaded: by `datasets`.
        name: for places.
        split: to be read.
        prefix: of a split's name makes what a user gives to have it read.
        note: told which is read, and which are not.
    """
    if isinstance(loaded, Mapping):
        others = [each for each in loaded if each != split]
        if split not in loaded:
            problem = f"no split called {split} (splits: {', '.join(others) or 'none'})"
            fix = f"give one of them: {prefix}{others[0]}" if others else "save the data set again"
            raise InputError(problem, at=name, fix=fix)
        loaded = loaded[split]
        if others:
            note(f"{name}: the split {split} is read; another is had with {prefix}{' or '.join(others)}")
    for number, row in enumerate(loaded, 1):
        yield f"{name}: row {number}", dict(row)
