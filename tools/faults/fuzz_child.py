"""The process of one parser, which `fuzz.py` watches: it gives changed inputs until it dies or had enough.

    fuzz_child.py PARSER FOLDER CORPUS INPUTS SECONDS SEED [--guided]

Standard output has JSON lines: `{"modules": […]}` once, `{"where", "said", "input"}` for each find.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support" / part) for part in (".", "material", "faults")]

from fuzzed import watched  # noqa: E402
from hostile.outcome import read_or_refused  # noqa: E402
from hostile.targets import Target  # noqa: E402
from warm import limit  # noqa: E402

GROWTH = 1 << 30  # bytes beyond what it began with
STAGES = ("lorafold", "export", "serve", "train")
_ROOM = 1 << 20  # longest input that the parent can see
_LONGEST = 1 << 16  # of a corpus
_MOST = 3000  # files of a corpus
_SHORTEST = 16  # bytes: what is shorter is chosen no more often than that


class Board:
    """What parent and child both see: how many inputs were given, and the one that is being read.

    | u64 inputs | u64 length | bytes |
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16 + _ROOM))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def show(self, count: int, data: bytes) -> None:
        part = data[:_ROOM]
        self._map[: 16 + len(part)] = struct.pack("<QQ", count, len(part)) + part

    def read(self) -> tuple[int, bytes]:
        count, size = struct.unpack("<QQ", self._map[:16])
        return count, self._map[16 : 16 + size]


def work(name: str, place: Path, corpus: Path, inputs: int, seconds: float, seed: int, guided: bool) -> None:
    """Give a parser changed inputs until it had enough."""
    started = time.monotonic()
    with _instrumented(guided):
        from hostile.all_targets import TARGETS
        from hostile.planted import PLANTED

        target = {**TARGETS, **PLANTED}[name]
        parse, seeds = target.open(place), list(target.seeds())
        with watched(STAGES) as modules:
            for each in (*seeds, *_once_broke(name)):
                read_or_refused(parse, each)  # imports all that it needs
        print(json.dumps({"modules": modules()}), flush=True)
    gc.collect()
    gc.freeze()  # what is loaded now stays, and need not be looked at again and again
    limit(GROWTH)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    board, count, known = Board(place.parent / "board"), 0, set[str]()

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        board.show(count, data)
        try:
            read_or_refused(parse, data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if (where := _where(error)) not in known:
                known.add(where)
                said = {"where": where, "said": str(error)[:200], "input": data[:_ROOM].hex()}
                print(json.dumps(said), flush=True)

    def enough() -> bool:
        return count >= inputs or time.monotonic() - started > seconds

    if guided:
        _guided(one, enough, seeds, target, seed, corpus)
        return
    dice = random.Random(seed)
    kept = [*seeds, *(path.read_bytes() for path in sorted(corpus.glob("*"))[:_MOST])]
    weighed = [(base, _short_first(base)) for base in (seeds, kept)]
    while not enough():
        base, weights = weighed[dice.random() >= 0.3]
        one(target.changed(dice.choices(base, cum_weights=weights)[0], dice, base))


def _short_first(base: list[bytes]) -> list[float]:
    """Cumulated weights of inputs: one that is half as long, and so read sooner, is chosen twice as often."""
    return [*accumulate(1 / (_SHORTEST + len(data)) for data in base)]


def _once_broke(name: str) -> list[bytes]:
    folder = ROOT / "tests/support/hostile/corpus" / name
    return [path.read_bytes() for path in sorted(folder.glob("*"))]


def _where(error: BaseException) -> str:
    """The innermost line of ours, which tells finds apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in STAGES)]
    ours = [frame for frame in ours if "/tests/" not in frame.filename] or frames[-1:]
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


@contextlib.contextmanager
def _instrumented(guided: bool) -> Iterator[None]:
    if not guided:
        yield
        return
    import atheris

    with atheris.instrument_imports(include=["lorafold"], enable_loader_override=False):
        yield


def _guided(
    one: Callable[[bytes], None],
    enough: Callable[[], bool],
    seeds: list[bytes],
    target: Target,
    seed: int,
    corpus: Path,
) -> None:
    """libFuzzer's loop, which ends the process. What reaches new code stays in the corpus."""
    import atheris

    for data in seeds:
        (corpus / sha256(data).hexdigest()[:16]).write_bytes(data)
    kept = sorted(corpus.glob("*"), key=lambda path: path.stat().st_size)
    for path in kept[_MOST:]:
        path.unlink()
    known = [data for path in kept[:_MOST] if len(data := path.read_bytes()) <= _LONGEST]

    def give(data: bytes) -> None:
        one(data)
        if enough():
            os._exit(0)

    def change(data: bytes, size: int, number: int) -> bytes:
        dice = random.Random(number)
        if target.form == "bytes" and dice.random() < 0.3:
            return bytes(atheris.Mutate(data, size))
        return target.changed(data, dice, known)[:size]

    longest = min(_LONGEST, max(4096, 2 * max(map(len, seeds))))
    words = [
        "fuzz",
        "-rss_limit_mb=0",
        "-timeout=100000",
        f"-artifact_prefix={corpus.parent}/",
        f"-max_len={longest}",
        f"-seed={seed or 1}",
        "-verbosity=0",
        "-print_final_stats=0",
        *(f"-handle_{signal}=0" for signal in ("segv", "abrt", "bus", "fpe", "ill")),
        str(corpus),
    ]
    atheris.Setup(words, give, custom_mutator=change, internal_libfuzzer=True)
    atheris.Fuzz()


if __name__ == "__main__":
    name, place, corpus, inputs, seconds, seed, *rest = sys.argv[1:]
    work(name, Path(place), Path(corpus), int(inputs), float(seconds), int(seed), bool(rest))
