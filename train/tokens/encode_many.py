"""Encodes many examples, in order, with as many processes as are worth their start.

Half of the time is Python and half a template's rendering, so threads gain little. A child process takes
about a second to start: this process begins alone, and starts them if the rest would last longer. They are
started by name and fed through pipes, since a fork would copy threads in the middle of their work, and
multiprocessing's other ways run the user's own script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.machine import cores, memory_available
from lorafold.progress import Progress, silent
from lorafold.records.layouts import Example
from lorafold.train.tokens.encode_one import encode_example

_CHUNK = 64  # examples sent to a process at once
ALONE = 1.0  # seconds that this process works alone before it looks at the rest
WORTH = 4.0  # seconds of remaining work from which processes are started
_SHARE = 1 << 29  # bytes of free memory that a process must find: a large vocabulary takes about half of it


def encode_all(
    examples: Sequence[Example],
    tokenizer: ChatTokenizer,
    progress: Progress = silent,
    processes: int | None = None,
) -> Iterator[Encoded]:
    """Encode examples; the result does not depend on who encoded what.

    Args:
        examples: of `data.load_data`.
        tokenizer: of the base.
        progress: told if it lasts longer than a second.
        processes: so many from the start; None begins alone and takes the free cores if that is faster.

    Yields:
        Ids and mask of each example, in order.

    Raises:
        InputError: the template refuses a conversation; of several the first is named.
    """
    total, done, began = len(examples), 0, time.monotonic()
    count, settled, shown = processes or 1, processes is not None, False
    while count == 1 and done < total:
        part = examples[done : done + _CHUNK]
        yield from (encode_example(example, tokenizer) for example in part)
        done += len(part)
        spent = time.monotonic() - began
        if spent >= ALONE and (done < total or shown):
            left = spent / done * (total - done)
            _report(progress, done, total, left)
            shown = True
            if not settled:
                count, settled = _useful() if left > WORTH else 1, True
    if count > 1:
        first, began = done, time.monotonic()
        for answers in _encode_apart(examples[done:], tokenizer, count):
            yield from answers
            done += len(answers)
            _report(progress, done, total, (time.monotonic() - began) / (done - first) * (total - done))


def _report(progress: Progress, done: int, total: int, left: float) -> None:
    minutes, seconds = divmod(round(left), 60)
    progress("tokenize", done, total, note=f"{minutes}:{seconds:02} left" if done < total else "")


def _useful() -> int:
    """Processes that find a core and memory; the other workers of this machine take their share."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = memory_available() // _SHARE or 1
    return max(1, min(cores(), memory) // here)


class _Encoder:
    """A child process and the two pipes to it."""

    def __init__(self, tokenizer: bytes) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lorafold.train.tokens.encode_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.greeting = tokenizer

    def ask(self, examples: Sequence[Example]) -> list[tuple[list[int], list[bool], int]] | None:
        """The fields of each `Encoded`; None if an example cannot be encoded.

        Raises:
            OSError, EOFError, pickle.UnpicklingError: the process has died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(self.greeting)
        self.greeting = b""
        pickle.dump(examples, self.process.stdin, pickle.HIGHEST_PROTOCOL)
        self.process.stdin.flush()
        answer: list[tuple[list[int], list[bool], int]] | None = pickle.load(self.process.stdout)
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # of what was still to be written
                if pipe is not None:
                    pipe.close()


def _encode_apart(
    examples: Sequence[Example], tokenizer: ChatTokenizer, count: int
) -> Iterator[list[Encoded]]:
    """Encode examples by `count` processes, in chunks; a thread takes the place of one that has died."""
    chunks = [examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK)]
    greeting = pickle.dumps(tokenizer, pickle.HIGHEST_PROTOCOL)
    free: queue.SimpleQueue[_Encoder | None] = queue.SimpleQueue()

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        encoder, answer = free.get(), None
        try:
            if encoder is not None:
                answer = encoder.ask(chunk)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            encoder = None
        try:
            if answer is not None:
                return [Encoded(*one) for one in answer]
            return [encode_example(example, tokenizer) for example in chunk]  # or its error
        finally:
            free.put(encoder)

    with contextlib.ExitStack() as stack:
        for _ in range(min(count, len(chunks))):
            encoder = _Encoder(greeting)
            stack.callback(encoder.stop)
            free.put(encoder)
        pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield from pool.map(encode, chunks)
