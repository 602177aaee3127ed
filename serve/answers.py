"""Several models answer at once: one thread each, their events in one stream."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lorafold.chat.sandbox import Message
from lorafold.serve.config import Sampling
from lorafold.serve.protocol import Cancel, Engine, Event, Finished

TICK = 0.05  # seconds after which the caller gets to redraw although nothing happened


@dataclass(frozen=True, slots=True)
class Request:
    """What one engine is asked."""

    engine: Engine
    messages: Sequence[Message]
    sampling: Sampling


def seeded(sampling: Sampling, attempt: int = 0) -> Sampling:
    """The sampling of one answer: a seed drawn if none was given, another one for each further attempt."""
    seed = secrets.randbelow(2**31) if sampling.seed is None else (sampling.seed + attempt) % (2**32 - 2)
    return replace(sampling, seed=seed)


def answer_all(
    requests: Mapping[int, Request], cancel: Cancel
) -> Iterator[tuple[int, Event | Exception] | None]:
    """Run all requests at once.

    Args:
        requests: model index -> request.
        cancel: ends all streams; what was said until then stands.

    Yields:
        (model index, event) as it happens, an exception in place of an event if a model failed; None at
        least every `TICK` seconds. The iterator ends when every model has finished or failed.
    """
    events: queue.SimpleQueue[tuple[int, Event | Exception]] = queue.SimpleQueue()

    def run(index: int, request: Request) -> None:
        try:
            ended = False
            for event in request.engine.stream(request.messages, request.sampling, cancel):
                ended = isinstance(event, Finished)
                events.put((index, event))
            assert ended, "a stream must end with Finished"
        except Exception as error:  # one model's failure, whatever it is, must not end the others' answers
            events.put((index, error))

    threads = [
        threading.Thread(target=run, args=item, daemon=True, name=f"answer-{item[0]}")
        for item in requests.items()
    ]
    for thread in threads:
        thread.start()
    running = set(requests)
    try:
        while running:
            try:
                index, event = events.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if isinstance(event, (Finished, Exception)):
                running.discard(index)
            yield index, event
    finally:
        if running:  # the caller left early
            cancel.set()
        for thread in threads:
            thread.join()
