"""How fast rows are quantized: lorafold's kernels beside ggml's, one thread, alternating in one run.

    python tools/bench_kernels.py [--rows 128] [--cols 4096] [--rounds 9] [--types Q4_K Q6_K] [--first-use]

For each type it prints million weights per second of ggml (through ctypes) and of
`lorafold.export.quant.quantize`, their ratio, and whether the bytes were equal. The time is the thread's CPU
time, so that other work on the machine disturbs little; each figure is the best of the rounds. `--first-use`
also measures, in new processes, what the first block of a type waits for: Python's imports, compilation
(empty cache) or loading (filled cache), and the check against ggml.
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
from typing import Any

import numpy as np

from lorafold.export.quant import ggml
from lorafold.export.quant import quantize as kernels
from lorafold.export.quant.ggml import Type
from lorafold.machine import processor

# Types without a kernel are there to be compared with: they go to ggml either way.
TYPES = "F16 BF16 Q8_0 Q6_K Q5_K Q4_K Q3_K Q2_K IQ4_XS IQ4_NL Q5_0 Q4_0"
NEVER_WEIGHTED = (Type.F32, Type.F16, Type.BF16, Type.Q8_0)

FIRST_USE = """
import time; start = time.perf_counter()
import numpy as np
from lorafold.export.quant import quantize as kernels
from lorafold.export.quant.ggml import Type
kernels.prepare([Type[{name!r}]], weighted={weighted})
print(time.perf_counter() - start)
"""


def million_per_second(function: Callable[..., Any], block: Any, *arguments: Any) -> float:
    start = time.thread_time()
    function(block, *arguments)
    return float(block.size / (time.thread_time() - start) / 1e6)


def first_use(name: str, weighted: bool) -> tuple[float, float]:
    """Seconds until a kernel is ready in a new process: compiled, then loaded from the cache."""
    command = [sys.executable, "-c", FIRST_USE.format(name=name, weighted=weighted)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        cold, cached = (
            float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
            for _ in range(2)
        )
    return cold, cached


def vectors() -> str:
    """The widest vectors of this processor, as far as the system says."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"


def measure(type: Type, block: Any, weights: Any, rounds: int, with_first_use: bool) -> str:
    """One row of the table."""
    few = block[: max(1, len(block) // 8)]  # ggml is slower: fewer rows take as long
    kernels.prepare([type], weights is not None)
    same = np.array_equal(kernels.quantize(few, type, weights), ggml.quantize(few, type, weights))
    theirs = ours = 0.0
    for _ in range(rounds):
        theirs = max(theirs, million_per_second(ggml.quantize, few, type, weights))
        ours = max(ours, million_per_second(kernels.quantize, block, type, weights))
    backends = {(state.type, state.weighted): state.backend for state in kernels.kernel_report()}
    backend = backends.get((type, weights is not None), "ggml")
    cells = [type.name, "no" if weights is None else "yes", f"{theirs:.1f}", f"{ours:.1f}"]
    cells += [f"{ours / theirs:.2f}", backend, "equal" if same else "DIFFERENT"]
    if with_first_use:
        both = first_use(type.name, weights is not None) if backend == "numba" else ()
        cells += [f"{seconds:.2f}" for seconds in both] or ["", ""]
    return "| " + " | ".join(cells) + " |"


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
    importance = (random.random(options.cols) ** 4).astype(np.float32)

    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("llama-cpp-python", "numba"))
    print(f"{processor()} ({vectors()}), Python {platform.python_version()}, {packages}")
    print(f"block of {options.rows} x {options.cols}, best of {options.rounds}, one thread, CPU time\n")
    heads = ["type", "weights", "ggml M/s", "lorafold M/s", "ratio", "backend", "bytes"]
    heads += ["cold s", "cached s"] * options.first_use
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in options.types:
        type = Type[name]
        if not ggml.requires_imatrix(type):
            print(measure(type, block, None, options.rounds, options.first_use), flush=True)
        if type not in NEVER_WEIGHTED:
            print(measure(type, block, importance, options.rounds, options.first_use), flush=True)
    finite = max(million_per_second(kernels._check_values, block, Type.Q4_K, None, 0) for _ in range(99))
    print(f"\nchecking a block for NaN and infinity: {finite:.0f} M/s")


if __name__ == "__main__":
    main()
