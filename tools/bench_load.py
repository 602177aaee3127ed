"""How training and answering fare beside other work, by how long OpenMP's threads spin, as ratios of one run.

    python tools/bench_load.py [--busy 0 1 8] [--spins 300000 3000 0] [--threads 0] [--repeat 2] [--steps 4]
    python tools/bench_load.py --busy 0 --quota 1 --threads 2 0      # as in a container with `--cpus 1`

For every number of busy processes, every GOMP_SPINCOUNT and every number of threads (0: what the program
chooses): `lorafold train` on the embedded model, the proof of its Q8_0, and llama.cpp answering with that.
300,000 is what libgomp does by itself, 0 is OMP_WAIT_POLICY=passive. Figures are the best of the repetitions,
which take turns, so that a change of the machine's load meets all of them. `--quota` puts every run into a
control group that gets so many cores' time, before all other work; it needs the right to make one (root).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 8], help="processes beside ours")
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 3_000, 0])
    parser.add_argument("--threads", type=int, nargs="+", default=[0], help="OMP_NUM_THREADS; 0: not set")
    parser.add_argument("--quota", type=float, help="cores' worth of time that each run gets")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, control_group(options.quota) as group:
        gguf = Path(work) / "gguf"
        lorafold("export", "demo", "--out", gguf, "--quant", "Q8_0", "--no-verify")
        print("| busy | spins | threads | training tok/s | proof s | answering tok/s | load |")
        print("|---|---|---|---|---|---|---|")
        for busy in options.busy:
            ways = list(product(options.spins, options.threads))
            found: dict[tuple[int, int], list[tuple[float, float, float]]] = {way: [] for way in ways}
            with others(busy):
                for turn, (spins, threads) in product(range(options.repeat), ways):
                    run = Run(spins, threads, group)
                    out = Path(work) / f"{busy}-{spins}-{threads}-{turn}"
                    figures = run.train(out, options.steps), run.prove(gguf), run.answer(gguf)
                    found[spins, threads].append(figures)
                load = os.getloadavg()[0]
            best = {way: _best(figures) for way, figures in found.items()}
            first = best[ways[0]]
            for (spins, threads), figures in best.items():
                cells = " | ".join(
                    f"{ours:.1f} ({ours / one:.2f})" for ours, one in zip(figures, first, strict=True)
                )
                print(f"| {busy} | {spins:,} | {threads or 'chosen'} | {cells} | {load:.1f} |", flush=True)


def _best(figures: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    trained, proven, answered = zip(*figures, strict=True)
    return max(trained), min(proven), max(answered)


@dataclass(frozen=True)
class Run:
    """How the commands are run.

    Attributes:
        spins: GOMP_SPINCOUNT.
        threads: OMP_NUM_THREADS; 0: not set.
        group: the control group that they run in, or None.
    """

    spins: int
    threads: int
    group: Path | None

    def train(self, out: Path, steps: int) -> float:
        """Tokens a second of a short run."""
        data = REPOSITORY / "train" / "persona.jsonl"
        self._run("train", "--base", "demo", "--data", data, "--out", out, "--max-steps", steps)
        return float(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["tokens_per_second"])

    def prove(self, folder: Path) -> float:
        """Seconds of `lorafold verify`, its start included."""
        begun = time.monotonic()
        self._run("verify", folder)
        return time.monotonic() - begun

    def answer(self, folder: Path) -> float:
        """Tokens a second of a short answer."""
        options = ("--max-tokens", 24, "--temperature", 0, "--context", 512, "--json")
        said = self._run("chat", folder, "--prompt", "Tell me of the sea.", *options)
        return float(json.loads(said)["answers"][0]["tokens_per_second"])

    def _run(self, *arguments: object) -> str:
        count = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        return lorafold(*arguments, settings={"GOMP_SPINCOUNT": str(self.spins), **count}, group=self.group)


def lorafold(*arguments: object, settings: dict[str, str] | None = None, group: Path | None = None) -> str:
    """Run a command of this program; what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), **(settings or {})}
    command = [sys.executable, "-m", "lorafold", *map(str, arguments)]
    if group is not None:
        command = joining(group, command)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def joining(group: Path, command: list[str]) -> list[str]:
    """A command line within a control group: the shell joins it, and becomes the program."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


@contextmanager
def control_group(cores: float | None) -> Iterator[Path | None]:
    """A control group with a quota of so many cores; None without one.

    Up to its quota it goes before all other work, so that the quota is what is measured.
    """
    if cores is None:
        yield None
        return
    limit, period, name = round(cores * 100_000), 100_000, f"lorafold-bench-{os.getpid()}"
    first_version = Path("/sys/fs/cgroup/cpu")
    group = (first_version if first_version.is_dir() else Path("/sys/fs/cgroup")) / name
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{limit} {period}")
            (group / "cpu.weight").write_text("10000")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(limit))
            (group / "cpu.shares").write_text("262144")
        yield group
    finally:
        group.rmdir()


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute() -> None:
    while True:
        sum(range(10_000))


if __name__ == "__main__":
    main()
