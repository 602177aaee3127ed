"""How fast rows are quantized: lorafold's kernels beside ggml's, one thread, alternating in one run.

    python tools/bench_kernels.py [--rows 128] [--cols 4096] [--rounds 9] [--types Q4_K Q6_K] [--first-use]

For each type it prints million weights per second of ggml (through ctypes) and of `lorafold.export.kernels`, their
ratio, and whether the bytes were equal. The time is the thread's CPU time, so that other work on the machine disturbs
little; each figure is the best of the rounds. `--first-use` also measures, in new processes, what the first block of
a type waits for: import of numba, compilation (empty cache) or loading (filled cache), and the check against ggml.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lorafold.export import ggml, kernels
from lorafold.export.ggml import Type

# Types without a kernel are there to be compared with: they go to ggml either way.
TYPES = "F16 BF16 Q8_0 Q6_K Q5_K Q4_K Q3_K Q2_K Q5_0 Q4_0 IQ4_XS IQ4_NL"

FIRST_USE = """
import time; start = time.perf_counter()
import numpy as np
from lorafold.export import kernels
from lorafold.export.ggml import Type
kernels.prepare([Type[{name!r}]], weighted={weighted})
print(time.perf_counter() - start)
"""


def million_per_second(work: Callable[[], object], weights: int) -> float:
    start = time.thread_time()
    work()
    return weights / (time.thread_time() - start) / 1e6


def first_use(name: str, weighted: bool) -> tuple[float, float]:
    """Seconds until a kernel is ready in a new process: compiled, then loaded from the cache."""
    code = FIRST_USE.format(name=name, weighted=weighted)
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        cold, cached = (
            float(
                subprocess.run(
                    [sys.executable, "-c", code], env=environment, capture_output=True, check=True
                ).stdout
            )
            for _ in range(2)
        )
    return cold, cached


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return f"{name} ({'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else 'no AVX2'})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--types", nargs="+", default=TYPES.split())
    parser.add_argument("--first-use", action="store_true")
    options = parser.parse_args()

    random = np.random.default_rng(0)
    block = (random.standard_normal((options.rows, options.cols)) * 0.02).astype(np.float32)
    few = block[: max(1, options.rows // 8)]  # ggml is slower: fewer rows take as long
    importance = (random.random(options.cols) ** 4).astype(np.float32)

    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("llama-cpp-python", "numba"))
    print(f"{processor()}, Python {platform.python_version()}, {packages}")
    print(f"block of {options.rows} x {options.cols}, best of {options.rounds}, one thread, CPU time\n")
    print(
        "| type | weights | ggml M/s | lorafold M/s | ratio | backend | bytes |"
        + " cold s | cached s |" * options.first_use
    )
    print("|---|---|---:|---:|---:|---|---|" + "---:|---:|" * options.first_use)
    for name in options.types:
        type = Type[name]
        for weights in (None, importance):
            if weights is None and ggml.requires_imatrix(type):
                continue
            if weights is not None and type in (Type.F16, Type.BF16, Type.Q8_0):
                continue
            kernels.prepare([type], weights is not None)
            same = np.array_equal(kernels.quantize(few, type, weights), ggml.quantize(few, type, weights))
            theirs = ours = 0.0
            for _ in range(options.rounds):
                theirs = max(theirs, million_per_second(lambda: ggml.quantize(few, type, weights), few.size))
                ours = max(
                    ours, million_per_second(lambda: kernels.quantize(block, type, weights), block.size)
                )
            states = {(s.type, s.weighted): s.backend for s in kernels.kernel_report()}
            backend = states.get((type, weights is not None), "ggml")
            row = f"| {name} | {'yes' if weights is not None else 'no'} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} "
            row += f"| {backend} | {'equal' if same else 'DIFFERENT'} |"
            if options.first_use and backend == "numba":
                row += " {:.2f} | {:.2f} |".format(*first_use(name, weights is not None))
            print(row, flush=True)
    finite = max(
        million_per_second(lambda: kernels._check_values(block, Type.Q4_K, None, 0), block.size)
        for _ in range(99)
    )
    print(f"\nchecking a block for NaN and infinity: {finite:.0f} M/s")


if __name__ == "__main__":
    main()
