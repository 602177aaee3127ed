"""The events of a streamed answer, however a server puts JSON into lines.

Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), JSON lines, and a whole
JSON body from a server that does not stream, all in one reader: what a line is shows in the line itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorafold.errors import SystemFault
from lorafold.serve.engines.servers.fields import fault, parsed

DONE = "done"  # the name of the event that stands for `[DONE]`
_LONGEST = 20_000_000  # bytes of one event
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        name: as the server named it, "" for most; `DONE` for the mark at the end.
        value: its JSON value.
    """

    name: str
    value: Any

    @property
    def fault(self) -> str | None:
        """What it says if it is an error."""
        found = fault(self.value)
        if found is None and self.name == "error":
            return fault({"error": self.value or "no reason given"})
        return found


def read_events(lines: Iterator[bytes], url: str) -> Iterator[ServerEvent]:
    """The events in the lines of an answer.

    An event counts as soon as its JSON is complete: some servers put no blank line behind it.

    Args:
        lines: with blank ones, without their ends.
        url: of the server, for messages.

    Raises:
        SystemFault: something that is not JSON stands in JSON's place.
    """
    name, waiting = "", b""
    plain = True  # no field of server-sent events was seen yet: every line is JSON, or part of it
    for number, raw in enumerate(lines):
        line = raw.removeprefix(_BOM) if number == 0 else raw
        field, colon, value = line.partition(b":")
        if field == b"data" and colon:
            plain, value = False, value.strip()
            if value == b"[DONE]":
                yield ServerEvent(DONE, None)
                continue
            waiting += value + b"\n"
        elif field == b"event" and colon:
            plain, name = False, value.strip().decode("utf-8", errors="replace")
            continue
        elif field == b"error" and colon:  # llama-server's, up to 2024
            plain, name, waiting = False, "error", value.strip()
        elif not line.strip():
            if not plain:
                yield from _event(name, waiting, url, complete=True)
                name, waiting = "", b""
            continue
        elif line.lstrip().startswith(b"{") and not waiting:
            waiting = line + b"\n"  # also behind events: a proxy that failed
        elif plain and field not in (b"", b"id", b"retry"):
            waiting += line + b"\n"
        else:
            continue  # a comment, or a field that says nothing about the answer
        for event in _event(name, waiting, url, complete=False):
            yield event
            waiting = b""
    yield from _event(name, waiting, url, complete=True)


def _event(name: str, raw: bytes, url: str, *, complete: bool) -> Iterator[ServerEvent]:
    """The event, if its JSON is whole."""
    raw = raw.strip()
    complete = complete or len(raw) > _LONGEST
    if not raw or not (complete or raw.endswith((b"}", b"]"))):
        return  # a body over many lines is not parsed at each of them
    try:
        value = parsed(raw)
    except ValueError as error:
        if not complete:
            return  # the rest may follow
        raise SystemFault(
            f"the server sent something that is not JSON: {raw[:60]!r}",
            at=url,
            fix="check that this is the address of a model server, and look at its log",
        ) from error
    yield ServerEvent(name, value)
