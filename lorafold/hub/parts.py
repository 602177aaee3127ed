"""Parts of files on a hub, read by HTTP ranges; nothing is stored on disk.

A file is one commit's, so it cannot change under its name. All the same each answer is held against the first
one: ETag, size and commit must be those. Signed addresses run out; then a new one is asked for.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafold.errors import InputError, SystemFault
from lorafold.hub.faults import hub_faults
from lorafold.hub.files import OTHERWISE, HubFile
from lorafold.progress import Progress, silent

LARGEST = 1 << 24
"""Bytes that are asked for at once, at most."""
HELD = 1 << 26
"""Bytes of parts that are held for the next reader, all files together."""
_TRIES = 5
_WAIT = 0.5  # seconds before the second try; twice as many before each further one
_PASSING = (408, 425, 429, 500, 502, 503, 504)
# httpx's errors of a connection are no OSError.
_BROKEN = ("Timeout", "ReadError", "WriteError", "ConnectError", "ProtocolError")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(slots=True)
class _Opened:
    """A file as its first answer showed it.

    Attributes:
        file: which.
        size: bytes.
        mark: the hub's ETag of the content.
        location: where its bytes are handed out; another host in general.
        served: ETag of what is handed out there, once a part has been.
    """

    file: HubFile
    size: int
    mark: str | None
    location: str
    served: str | None = None


@dataclass(slots=True)
class _Part:
    """Bytes [start, stop) of a file, perhaps still on their way."""

    start: int
    stop: int
    bytes: Future[memoryview] = field(default_factory=Future)


class _Closed(Exception):
    """Nobody waits for these bytes any more."""


class HubParts:
    """Reads parts of a repository's files; several threads may.

    Args:
        files: all that will be read.

    Raises:
        InputError: the repository refuses a file.
        SystemFault: the network failed.
    """

    def __init__(self, files: Sequence[HubFile], progress: Progress = silent) -> None:
        self.fetched = 0
        self._lock = threading.Lock()
        self._parts: OrderedDict[tuple[Path, int], _Part] = OrderedDict()
        self._opened: dict[Path, _Opened] = {}
        self._closed = threading.Event()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="lorafold-hub")
        for number, file in enumerate(files):
            progress("ask the hub for the files", number, len(files))
            self._opened[file.path] = self._open(file)
        progress("ask the hub for the files", len(files), len(files))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(opened.size for opened in self._opened.values())

    def size_of(self, path: Path) -> int:
        """Bytes of a file."""
        return self._opened[path].size

    def read(self, path: Path, offset: int, into: memoryview, ahead: int = 0) -> None:
        """Fill `into` from a file.

        Args:
            path: the file, by `HubFile.path`.
            offset: the first byte.
            into: what is filled.
            ahead: so many bytes behind these will be read soon; they are fetched along.

        Raises:
            InputError: the file has changed since it was first asked for.
            SystemFault: the network failed, or the server hands out no parts.
        """
        stop = min(offset + len(into) + ahead, self.size_of(path))
        done = 0
        while done < len(into):
            at = offset + done
            part = self._part(path, at, stop)
            data = part.bytes.result()
            taken = data[at - part.start : at - part.start + len(into) - done]
            into[done : done + len(taken)] = taken
            done += len(taken)
        if part.stop < stop and (path, part.stop) not in self._parts:  # while these bytes are worked on
            self._ahead.submit(self._part, path, part.stop, stop)

    def close(self) -> None:
        """Forget the parts that are held, and fetch no more: what is on its way ahead is given up."""
        self._closed.set()
        self._ahead.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._parts.clear()

    def _part(self, path: Path, at: int, stop: int) -> _Part:
        """A part that holds the byte `at`; one that must be fetched goes on to `stop` at most."""
        with self._lock:
            for key, part in reversed(self._parts.items()):
                if key[0] == path and part.start <= at < part.stop:
                    self._parts.move_to_end(key)
                    return part
            part = self._parts[path, at] = _Part(at, min(at + LARGEST, stop))
            self._forget()
        try:
            part.bytes.set_result(self._fetch(self._opened[path], part.start, part.stop))
        except BaseException as error:
            with self._lock:
                self._parts.pop((path, at), None)
            part.bytes.set_exception(error)
            raise
        return part

    def _forget(self) -> None:
        """Let the parts go that were not used for longest."""
        held = sum(part.stop - part.start for part in self._parts.values())
        while held > HELD and len(self._parts) > 1:
            _, part = self._parts.popitem(last=False)
            held -= part.stop - part.start

    # The hub.

    def _open(self, file: HubFile) -> _Opened:
        import huggingface_hub

        with hub_faults(file.repository, instead=OTHERWISE):
            url = huggingface_hub.hf_hub_url(file.repository, file.name, revision=file.commit)
            found = self._patiently(lambda: huggingface_hub.get_hf_file_metadata(url))
        if found.size is None:
            raise SystemFault("the hub does not say how large it is", at=file.path, fix=OTHERWISE)
        if found.commit_hash not in (None, file.commit):
            raise _changed(file, f"commit {file.commit}", f"commit {found.commit_hash}")
        return _Opened(file, found.size, found.etag, found.location)

    def _fetch(self, opened: _Opened, start: int, stop: int) -> memoryview:
        """Bytes [start, stop), as one request."""
        file = opened.file
        with hub_faults(file.repository, instead=OTHERWISE):
            answer, content = self._patiently(lambda: self._ask(opened, start, stop))
            if answer.status_code in (401, 403):  # a signed address has run out
                self._refresh(opened)
                answer, content = self._patiently(lambda: self._ask(opened, start, stop))
        if answer.status_code == 416:
            raise _changed(file, f"{opened.size:,} bytes", "a shorter file")
        if answer.status_code == 200:
            raise SystemFault(
                "the server hands out whole files alone, and no parts of them", at=file.path, fix=OTHERWISE
            )
        if answer.status_code != 206:
            raise SystemFault(
                f"the download failed (HTTP {answer.status_code})", at=file.path, fix="try again"
            )
        self._compare(opened, answer, start, stop)
        with self._lock:
            self.fetched += stop - start
        return memoryview(content)

    def _ask(self, opened: _Opened, start: int, stop: int) -> tuple[Any, bytes]:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if urlsplit(opened.location).netloc == urlsplit(_endpoint()).netloc:
            headers |= build_hf_headers()  # the token is the hub's, no other host's
        answer, content = self._get(get_session(), opened.location, headers)
        if answer.status_code == 206 and len(content) != stop - start:
            raise ConnectionError("cut off")
        if answer.status_code in _PASSING:
            raise ConnectionError(f"HTTP {answer.status_code}")
        return answer, content

    def _get(self, session: Any, address: str, headers: dict[str, str]) -> tuple[Any, bytes]:
        """The answer to a request for a part, and its bytes; what else comes may be all of a huge file."""
        if not callable(session.stream):  # huggingface_hub before 1.0 uses requests, which reads when asked
            answer = session.get(address, headers=headers, timeout=30, stream=True)
            return answer, answer.content if answer.status_code == 206 else b""
        content = bytearray()
        with session.stream("GET", address, headers=headers, timeout=30) as answer:
            for piece in answer.iter_bytes() if answer.status_code == 206 else ():
                if self._closed.is_set():
                    raise _Closed
                content += piece
        return answer, bytes(content)

    def _refresh(self, opened: _Opened) -> None:
        """Ask for a new address of the same content."""
        again = self._open(opened.file)
        if (again.mark, again.size) != (opened.mark, opened.size):
            raise _changed(opened.file, f"{opened.mark}", f"{again.mark}")
        opened.location = again.location

    def _compare(self, opened: _Opened, answer: Any, start: int, stop: int) -> None:
        """Hold an answer against the first one."""
        found, file = _RANGE.fullmatch(answer.headers.get("Content-Range", "")), opened.file
        if found is None or (int(found[1]), int(found[2])) != (start, stop - 1):
            raise SystemFault("the server hands out other parts than asked", at=file.path, fix=OTHERWISE)
        if int(found[3]) != opened.size:
            raise _changed(file, f"{opened.size:,} bytes", f"{int(found[3]):,}")
        served = answer.headers.get("ETag")
        with self._lock:
            opened.served = opened.served or served
        commit = answer.headers.get("X-Repo-Commit")
        if served != opened.served:
            raise _changed(file, f"ETag {opened.served}", f"ETag {served}")
        if commit not in (None, file.commit):
            raise _changed(file, f"commit {file.commit}", f"commit {commit}")

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask again if the network fails: it does, in the middle of many gigabytes."""
        for number in range(_TRIES - 1):
            try:
                return ask()
            except Exception as error:
                if not _passes(error) or self._closed.wait(_WAIT * 2**number):
                    raise
        return ask()


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _passes(error: Exception) -> bool:
    """Whether asking again may help: the connection failed, not the request."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _PASSING
    return isinstance(error, OSError) or type(error).__name__.endswith(_BROKEN)


def _changed(file: HubFile, first: str, now: str) -> InputError:
    return InputError(
        f"it changed while it was read: first {first}, now {now}",
        at=file.path,
        fix="give the command again, or name a commit: ORG/NAME@COMMIT:FILE",
    )
