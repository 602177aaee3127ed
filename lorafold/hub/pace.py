"""A hub that sends next to nothing is given up: the clients' own limits count from one byte to the next."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

from lorafold.errors import SystemFault

WATCHED = 60.0
SLOWEST = 512
"""Bytes a second that a server must send on average of so many seconds."""


def keep_pace() -> None:
    """Let the answers that huggingface_hub's client reads be watched.

    What Xet downloads is not seen: that library has a client of its own. Neither are the clients of
    huggingface_hub before 1.0, which have no hooks.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    hooks = getattr(session, "event_hooks", None)
    if isinstance(hooks, dict) and "response" in hooks and _watch not in hooks["response"]:
        session.event_hooks = hooks | {"response": [*hooks["response"], _watch]}


def _watch(answer: Any) -> None:
    """Put our stream around the one that the body of an answer is read from."""
    client = importlib.import_module(type(answer).__module__.partition(".")[0])  # httpx, or its successor

    class Watched(client.SyncByteStream):  # type: ignore[name-defined, misc]
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __iter__(self) -> Iterator[bytes]:
            return at_a_pace(self.inner, str(answer.request.url.host))

        def close(self) -> None:
            self.inner.close()

    answer.stream = Watched(answer.stream)


def at_a_pace(pieces: Iterator[bytes], server: str) -> Iterator[bytes]:
    """The same pieces, as long as they come fast enough.

    Args:
        pieces: of a body, as they come.
        server: for messages.

    Raises:
        SystemFault: they come too slowly.
    """
    began, came = time.monotonic(), 0
    for piece in pieces:
        came += len(piece)
        passed = time.monotonic() - began
        if passed > WATCHED:
            if came < SLOWEST * passed:
                raise SystemFault(
                    f"the server sends too slowly ({came:,} bytes in {passed:.0f} s)",
                    at=server,
                    fix="try again later, or use a mirror (HF_ENDPOINT)",
                )
            began, came = time.monotonic(), 0
        yield piece
