"""What a hub's refusals mean, in one line with a cure; neither tokens nor headers are part of any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from lorafold.artifacts import system_faults
from lorafold.errors import InputError, SystemFault
from lorafold.hub.pace import keep_pace

_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Packages that huggingface_hub connects with; they share no class of errors."""


@contextmanager
def hub_faults(
    repository: str, *, offline: bool = False, instead: str = "give a local folder"
) -> Iterator[None]:
    """Say what stops a download.

    Args:
        repository: "org/name", for messages.
        offline: connecting was forbidden.
        instead: the last resort of somebody without network.

    Raises:
        InputError: there is no such repository, or it is closed to this user.
        SystemFault: the network, the hub, or the disk failed, or the hub sends next to nothing.
    """
    from huggingface_hub import errors as hub

    if not offline:
        keep_pace()
    try:
        with system_faults(Path(repository)):
            yield
    except hub.GatedRepoError as error:
        fix = "accept its terms on the hub and log in with `hf auth login`"
        raise InputError("the repository is gated for you", at=repository, fix=fix) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        fix = "check the id, or log in with `hf auth login` if it is private"
        raise InputError("the hub has no such repository or revision", at=repository, fix=fix) from error
    except hub.LocalEntryNotFoundError as error:
        raise unreachable(repository, offline=offline, instead=instead) from error
    except (hub.HfHubHTTPError, OSError) as error:
        problem = f"the download failed ({type(error).__name__})"
        raise SystemFault(problem, at=repository, fix="try again; finished files are kept") from error
    except ValueError as error:  # a page where JSON was expected: a captive portal, a proxy
        raise _no_hub(repository) from error
    except Exception as error:
        if _raised_by(error) == "huggingface_hub":  # JSON of another form than it indexes
            raise _no_hub(repository) from error
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise unreachable(repository, offline=offline, instead=instead) from None  # it may hold a header


def _no_hub(repository: str) -> SystemFault:
    problem = "the hub's answer is not one of a hub"
    fix = "check the network: does it ask for a login, or does HF_ENDPOINT name something else?"
    return SystemFault(problem, at=repository, fix=fix)


def _raised_by(error: Exception) -> str:
    """The package whose code an error comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] if trace else ""


def unreachable(repository: str, *, offline: bool, instead: str) -> SystemFault:
    """That something is not in the cache, and cannot be fetched."""
    if offline:
        return SystemFault("not in the local cache", at=repository, fix="run once without --offline")
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname  # without what it may hold of a password
    place, fix = (
        (f"the mirror {mirror} (HF_ENDPOINT)", "set HF_ENDPOINT to another one, or unset it")
        if mirror
        else ("the hub", "use a mirror (HF_ENDPOINT=https://hf-mirror.com)")
    )
    return SystemFault(
        f"{place} cannot be reached and the cache lacks it",
        at=repository,
        fix=f"check the network, {fix}, take it from ModelScope (modelscope:{repository}), or {instead}",
    )
