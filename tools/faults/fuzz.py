"""Give every parser changed files, by the million, and look for a traceback, a crash, a hang, or much memory.

    python tools/faults/fuzz.py [--only gguf] [--inputs 1000000] [--seconds 60] [--jobs 2] [--keep FOLDER]

The parsers and the files that they read without complaint are tests/support/hostile/. With the package
`atheris` (a tool for development, `pip install atheris`) inputs that reach new code are kept and changed
further; without it the given files are changed in all ways that `mutate` knows. Each parser runs in a child:
one that dies of a signal, works on one input for more than 5 seconds, or takes more than 1 GB beyond what it
began with is found by it. What is found is kept in --keep; tests/support/hostile/corpus has what once broke.
Exits 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support" / part) for part in (".", "material", "faults")]

from hostile.mutate import mutate  # noqa: E402
from hostile.outcome import read_or_refused  # noqa: E402
from in_memory import memory_folder  # noqa: E402
from page import processor_seconds, write_figure, write_part  # noqa: E402
from warm import limit  # noqa: E402

HANG, GROWTH = 5.0, 1 << 30  # seconds, bytes
_ROOM = 1 << 20  # longest input that the parent can see
FIGURE = "fuzz inputs a parser without traceback, crash, hang over 5 s or growth past 1 GB"
_STAGES = ("lorafold", "export", "serve", "train")


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
        self._map[:16] = struct.pack("<QQ", count, len(part))
        self._map[16 : 16 + len(part)] = part

    def read(self) -> tuple[int, bytes]:
        count, size = struct.unpack("<QQ", self._map[:16])
        return count, self._map[16 : 16 + size]


# The child


def _where(error: BaseException) -> str:
    """The innermost line of ours, which tells finds apart."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in _STAGES)]
    ours = [frame for frame in ours if "/tests/" not in frame.filename] or frames[-1:]
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def work(name: str, place: Path, inputs: int, seconds: float, seed: int, guided: bool) -> None:
    """Give a target changed inputs until it had enough; finds go to standard output as JSON lines."""
    started = time.monotonic()
    with _instrumented(guided):
        from hostile.all_targets import TARGETS

        target = TARGETS[name]
        parse, seeds = target.open(place / "files"), list(target.seeds())
        for each in seeds:
            read_or_refused(parse, each)  # imports all that it needs
    limit(GROWTH)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    board, dice, count, known = Board(place / "board"), random.Random(seed), 0, set[str]()

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
        _guided(one, enough, seeds, target.form, seed, place)
        return
    while not enough():
        one(mutate(dice.choice(seeds), target.form, dice, seeds))


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
    form: str,
    seed: int,
    place: Path,
) -> None:
    """libFuzzer's loop, which ends the process."""
    import atheris

    corpus = place / "corpus"
    corpus.mkdir(exist_ok=True)
    for data in seeds:
        (corpus / sha256(data).hexdigest()[:16]).write_bytes(data)

    def give(data: bytes) -> None:
        one(data)
        if enough():
            os._exit(0)

    def change(data: bytes, size: int, number: int) -> bytes:
        dice = random.Random(number)
        if form == "bytes" and dice.random() < 0.5:
            return bytes(atheris.Mutate(data, size))
        return mutate(data, form, dice, seeds)[:size]

    longest = max(4096, 2 * max(map(len, seeds)))
    words = [
        "fuzz",
        "-rss_limit_mb=0",
        "-timeout=100000",
        f"-artifact_prefix={place}/",
        f"-max_len={longest}",
        f"-seed={seed or 1}",
        "-verbosity=0",
        "-print_final_stats=0",
        "-handle_segv=0",
        "-handle_abrt=0",
        "-handle_bus=0",
        "-handle_fpe=0",
        "-handle_ill=0",
        str(corpus),
    ]
    atheris.Setup(words, give, custom_mutator=change, internal_libfuzzer=True)
    atheris.Fuzz()


# The parent


@dataclass(slots=True)
class Figures:
    """What one parser went through.

    Attributes:
        inputs: how many it was given.
        seconds: that this took.
        finds: where it broke → (what it said, the input).
    """

    name: str
    inputs: int = 0
    seconds: float = 0.0
    finds: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def row(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0
        minutes = 1e6 / rate / 60 if rate else 0
        return f"| {self.name} | {self.inputs:,} | {rate:,.0f} | {len(self.finds)} | {minutes:,.0f} |"


def fuzz(name: str, inputs: int, seconds: float, guided: bool) -> Figures:
    """Fuzz one target, in as many children as die of it."""
    figures, began = Figures(name), time.monotonic()
    with memory_folder() as folder:
        seed = 0
        while figures.inputs < inputs and (left := seconds - (time.monotonic() - began)) > 0:
            place = Path(folder) / str(seed)
            (place / "files").mkdir(parents=True)
            before = figures.inputs
            _child(figures, place, inputs - figures.inputs, left, seed, guided)
            if figures.inputs == before:
                raise SystemExit(f"error: the child of {name} did not begin")
            seed += 1
            if seed > 200:
                break
    figures.seconds = time.monotonic() - began
    return figures


def _child(figures: Figures, place: Path, inputs: int, seconds: float, seed: int, guided: bool) -> None:
    board = Board(place / "board")
    words = [
        sys.executable,
        __file__,
        "--child",
        figures.name,
        str(place),
        str(inputs),
        str(seconds),
        str(seed),
    ]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(place)}
    with (place / "said").open("wb") as said, (place / "errors").open("wb") as errors:
        words += ["--guided"] * guided
        child = subprocess.Popen(words, stdout=said, stderr=errors, env=quiet, start_new_session=True)
        seen, since = -1, time.monotonic()
        why = ""
        while child.poll() is None:
            time.sleep(0.05)
            count, _ = board.read()
            if count != seen:
                seen, since = count, time.monotonic()
            elif count and time.monotonic() - since > HANG:
                why = f"hang of over {HANG:g} s"
                child.kill()
                child.wait()
    count, data = board.read()
    figures.inputs += count
    for line in (place / "said").read_text().splitlines():
        if line.startswith('{"where"'):
            found = json.loads(line)
            figures.finds.setdefault(found["where"], (found["said"], bytes.fromhex(found["input"])))
    if not why and child.returncode:
        why = f"ended with {child.returncode}"
    if why and count:
        last = (place / "errors").read_text(errors="replace").strip().splitlines()[-1:]
        figures.finds.setdefault(f"{why} ({''.join(last)[:60]})", (" ".join(last)[:200], data))
    elif why:
        raise SystemExit((place / "errors").read_text(errors="replace"))


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        name, place, inputs, seconds, seed, *rest = sys.argv[2:]
        work(name, Path(place), int(inputs), float(seconds), int(seed), bool(rest))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="parsers whose name holds this")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="for each parser")
    parser.add_argument("--seconds", type=float, default=30, help="that each parser may take")
    parser.add_argument("--jobs", type=int, default=1, help="parsers at once")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that broke something")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    parser.add_argument("--unguided", action="store_true", help="without atheris, also if it is installed")
    options = parser.parse_args()
    from hostile.all_targets import TARGETS

    guided = not options.unguided and _has_atheris()

    def run(name: str) -> Figures:
        figures = fuzz(name, options.inputs, options.seconds, guided)
        print(figures.row(), flush=True)
        for where, (said, data) in figures.finds.items():
            print(f"  FOUND {where}: {said}", flush=True)
            if options.keep:
                kept = options.keep / name / sha256(data).hexdigest()[:12]
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
        return figures

    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(run, [name for name in TARGETS if options.only in name]))
    if options.page:
        _write_page(options.page, found, guided)
    return 1 if any(figures.finds for figures in found) else 0


def _write_page(page: Path, found: list[Figures], guided: bool) -> None:
    head = "| parser | inputs | a second | found | minutes for a million |\n|---|---|---|---|---|"
    inputs, broken = [each.inputs for each in found], sum(len(each.finds) for each in found)
    write_part(page, "fuzz", "\n".join([head, *(each.row() for each in found)]))
    how = f"with{'' if guided else 'out'} atheris"
    spread = f"{min(inputs):,} to {max(inputs):,} a parser"
    measured = f"{spread}, {sum(inputs):,} over {len(found)} ({how}); {broken} finds"
    write_figure(page, FIGURE, measured, "python tools/faults/fuzz.py", processor_seconds())


def _has_atheris() -> bool:
    import importlib.util

    return importlib.util.find_spec("atheris") is not None


if __name__ == "__main__":
    sys.exit(main())
