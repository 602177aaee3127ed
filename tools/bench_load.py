"""How training and answering fare beside other work, by how long OpenMP's threads spin, as ratios of one run.

    python tools/bench_load.py [--busy 0 1 8] [--spins 300000 3000 0] [--repeat 2] [--steps 4]

For every number of busy processes and every GOMP_SPINCOUNT: `lorafold train` on the embedded model, and
llama.cpp answering with its Q8_0, both with the threads that they choose themselves. 300,000 is what libgomp
does by itself, 0 is OMP_WAIT_POLICY=passive. Tokens a second are the best of the repetitions, which take
turns, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 8], help="processes beside ours")
    parser.add_argument("--spins", type=int, nargs="+", default=[300_000, 3_000, 0])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        gguf = Path(work) / "gguf"
        lorafold("export", "demo", "--out", gguf, "--quant", "Q8_0", "--no-verify")
        (model,) = gguf.glob("*.gguf")
        print("| busy | spins | training tok/s | of the first | answering tok/s | of the first | load |")
        print("|---|---|---|---|---|---|---|")
        for busy in options.busy:
            found: dict[int, tuple[float, float]] = dict.fromkeys(options.spins, (0.0, 0.0))
            with others(busy):
                for turn in range(options.repeat):
                    for spins in options.spins:
                        trained = train(Path(work) / f"{busy}-{spins}-{turn}", spins, options.steps)
                        answered = answer(model, spins)
                        best = found[spins]
                        found[spins] = (max(best[0], trained), max(best[1], answered))
                load = os.getloadavg()[0]
            first = found[options.spins[0]]
            for spins, (trained, answered) in found.items():
                ratios = f"{trained / first[0]:.2f} | {answered:.1f} | {answered / first[1]:.2f}"
                print(f"| {busy} | {spins:,} | {trained:.1f} | {ratios} | {load:.1f} |", flush=True)


def train(out: Path, spins: int, steps: int) -> float:
    """Tokens a second of a short run."""
    data = REPOSITORY / "train" / "persona.jsonl"
    lorafold("train", "--base", "demo", "--data", data, "--out", out, "--max-steps", steps, spins=spins)
    return float(json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["tokens_per_second"])


def answer(model: Path, spins: int) -> float:
    """Tokens a second of a short answer."""
    options = ("--max-tokens", 24, "--temperature", 0, "--context", 512, "--json")
    said = lorafold("chat", model, "--prompt", "Tell me of the sea.", *options, spins=spins)
    return float(json.loads(said)["answers"][0]["tokens_per_second"])


def lorafold(*arguments: object, spins: int = 3000) -> str:
    """Run a command of this program; what it prints."""
    environment = os.environ | {"GOMP_SPINCOUNT": str(spins), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "lorafold", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


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
