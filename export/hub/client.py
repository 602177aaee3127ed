"""The Hugging Face Hub: a repository is made, large files go up one after the other, one commit joins them.

A file that the hub has already (by its sha256) is not sent again, so the same command goes on after a break.
What the hub answers becomes one line; neither tokens nor headers are part of any message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.progress import Progress

_TOKEN = re.compile(r"\bhf_\w+|\bapi_\w{20,}|Bearer\s+\S+")
_AGAIN = "give the same command again: what the hub has is not sent a second time"
_MESSAGE = "lorafold: the export, its model card and its proof"
_OURS = "lorafold"  # tag of a card that this program wrote

# What a status means for a push: problem, cure.
_STATUS: Mapping[int, tuple[str, str]] = {
    401: ("the hub does not know you: the token is missing, wrong or expired", "run `hf auth login`"),
    403: ("your token may not write there", "use a token with write access, and a namespace that is yours"),
    404: ("the hub has no such namespace, or your token does not see it", "check ORG in ORG/NAME"),
    409: ("the name is taken", "choose another name"),
    413: ("the hub refuses a file of this size", "export with --split-max-size"),
    429: ("the hub asks to wait: too many requests", f"wait some minutes, then {_AGAIN}"),
    507: ("your storage on the hub is full", "free some, or choose another namespace"),
}


@dataclass(frozen=True, slots=True)
class PushFile:
    """A file to be pushed.

    Attributes:
        name: in the repository.
        content: the file, or its bytes.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def push_files(repo: str, files: Sequence[PushFile], *, public: bool, force: bool, progress: Progress) -> str:
    """Make the repository and fill it.

    Args:
        repo: "org/name".
        files: all of them.
        public: everybody may see it.
        force: also into a repository that something else is in.
        progress: told the bytes that are there.

    Returns:
        Its address.

    Raises:
        UsageError: the name is taken, or the repository is public and that was not asked for.
        SystemFault: the hub, the network or the disk failed; the same command goes on.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # ours tells
    api = HfApi()
    try:
        _make(api, repo, public=public, force=force)
        total, done = sum(file.size for file in files), 0
        progress("push", 0, total)
        operations = []
        for file in sorted(files, key=lambda file: file.size):
            content = file.content if isinstance(file.content, bytes) else str(file.content)
            operation = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content)
            api.preupload_lfs_files(repo, [operation])
            operations.append(operation)
            done += file.size
            progress("push", done, total, file.name)
        made = api.create_commit(repo, operations, commit_message=_MESSAGE)
    except LorafoldError:
        raise
    except Exception as error:  # of httpx, requests, xet and the library itself: no common class
        raise hub_fault(error, repo) from None  # its text may hold a header
    return str(made.repo_url)


def _make(api: Any, repo: str, *, public: bool, force: bool) -> None:
    """Make the repository, or see that the one that is there may be filled."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise SystemFault("no token of the hub was found", at=repo, fix="run `hf auth login`")
    try:
        found = api.model_info(repo)
    except RepositoryNotFoundError:  # also 401, by which the hub hides what a token may not see
        api.create_repo(repo, private=not public)
        return
    others = [row.rfilename for row in found.siblings or () if row.rfilename != ".gitattributes"]
    if others and _OURS not in (found.tags or ()) and not force:
        problem = f"the repository exists and holds other files ({', '.join(others[:3])})"
        raise UsageError(problem, at=repo, fix="choose another name, or pass --force to add to it")
    if not found.private and not public:
        problem = "the repository exists and everybody can see it"
        raise UsageError(problem, at=repo, fix="pass --public, or make it private on the hub first")


def hub_fault(error: Exception, repo: str) -> LorafoldError:
    """What a failure means, in one line without secrets."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return SystemFault("no token of the hub was found", at=repo, fix="run `hf auth login`")
    if isinstance(error, OfflineModeIsEnabled):
        return SystemFault("HF_HUB_OFFLINE is set, so nothing is sent", at=repo, fix="unset it")
    if isinstance(error, HFValidationError):
        return UsageError("not a name that the hub takes", at=repo, fix="write ORG/NAME")
    status = _status_of(error)
    if status is not None and status in _STATUS:
        problem, fix = _STATUS[status]
        return SystemFault(f"{problem} (HTTP {status})", at=repo, fix=fix)
    if status is not None and status >= 500:
        return SystemFault(f"the hub failed (HTTP {status})", at=repo, fix=_AGAIN)
    if status is not None:
        return SystemFault(f"the hub refuses this (HTTP {status}): {_plain(error)}", at=repo, fix=_AGAIN)
    if isinstance(error, FileNotFoundError):
        name = Path(str(error.filename or "")).name
        return InputError(f"{name or 'a file'} is gone", at=repo, fix="export again")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return SystemFault(f"the hub answered what nobody expects: {_plain(error)}", at=repo, fix=_AGAIN)
    return SystemFault(f"the upload broke off ({type(error).__name__})", at=repo, fix=_AGAIN)


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error; the library wraps some."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _plain(error: Exception) -> str:
    """The first line of an error's text, without tokens."""
    text = str(error).strip().splitlines()
    return _TOKEN.sub("…", text[0])[:160] if text else type(error).__name__
