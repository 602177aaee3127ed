"""`lorafold export --onto` beside what any such program must do: copy the file, fold and quantize the rest.

    python tools/bench_onto.py [--shape 0.5B] [--type BF16] [--quant Q4_K_M] [--threads 2] [--repeat 3]

The floor is what any program must do that makes the same file: copy the base's GGUF (with the checksum that
an export notes, and onto the disk), and for each tensor that the adapter changes read the base's rows, add
the adapter's product and quantize them into the type of the output, on as many threads. With `--quant` there
is nothing to copy but norms: then the floor quantizes all tensors. The adapter has rank 8 on all linear
layers. Times are those of the work, imports and compiled kernels not counted; the median of the runs counts.
What an earlier run wrote is deleted before the clock starts, the floor's copy and the export's folder alike:
to free a gigabyte takes time of its own. The last row is the whole command, from Python's start.
Wall times on a busy machine are mostly waiting, so the processor's time (of all threads) is given too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from random_model import REPOSITORY, SHAPES, build_model

if TYPE_CHECKING:
    from lorafold.export import ExportConfig

sys.path.insert(0, str(REPOSITORY))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--type", default="BF16", help="of the GGUF that is folded onto")
    parser.add_argument("--quant", help="of the output; its types if not given")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep models here for a later run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        work = options.work or Path(scratch)
        base, adapter = build_model(work / options.shape, options.shape)
        run(base, adapter, work, options)


def run(base: Path, adapter: Path, work: Path, options: argparse.Namespace) -> None:
    from lorafold.export import ExportConfig, export

    onto = work / f"base-{options.type}" / f"base-{options.type}.gguf"
    if not onto.is_file():
        export(
            ExportConfig(
                str(base), out=onto.parent, quant=(options.type,), name="base", verify=False, modelfile=False
            )
        )
    quant = (options.quant,) if options.quant else ()
    config = ExportConfig(
        str(adapter),
        base=str(base),
        onto=str(onto),
        out=work / "out",
        quant=quant,
        threads=options.threads,
        modelfile=False,
        verify=False,
        force=True,
    )
    export(config)  # compiles the kernels, and brings both files into memory
    floors, ours, commands, steps = [], [], [], {}
    for _ in range(options.repeat):
        floors.append(floor(config))
        shutil.rmtree(config.out)
        with Clock() as clock:
            steps = dict(export(config).seconds)
        ours.append((clock.wall, clock.processor))
        shutil.rmtree(config.out)
        commands.append(command(config))
    shutil.rmtree(config.out)
    kept = options.quant or "its types"
    print(f"Qwen2 {options.shape}, {options.type} to {kept}, {options.threads} threads\n")
    print("| | wall s | processor s |\n|---|---|---|")
    copied, folded = (median(each) for each in zip(*floors, strict=True))
    whole = median(ours)
    for name, (wall, processor) in {
        "copy the file, checksum, sync": copied,
        "fold and quantize what changes": folded,
        "lorafold export --onto": whole,
        "the same as a command, with Python's start": median(commands),
    }.items():
        print(f"| {name} | {wall:.2f} | {processor:.2f} |")
    wall, processor = (whole[i] / (copied[i] + folded[i]) for i in (0, 1))
    taken = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in steps.items())
    print(f"\nratio: wall {wall:.2f}, processor {processor:.2f}; the last run: {taken}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # before the search is made once more
    print(index_size(config))
    print(f"peak memory {peak:,.0f} MB")


def index_size(config: ExportConfig) -> str:
    """What the search holds in memory, for each row that the adapter changes."""
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.onto import plan_onto_output

    search = plan_onto_output(open_inputs(config), config).source.found.search
    lines = search.lines.total
    held = search.largest_index + sum(found.lines.nbytes for found in search.maps.values())
    return (
        f"index: {search.largest_index:,} bytes for the largest layer; with the map of all {lines:,} rows "
        f"{held:,}, {held / lines:.1f} bytes a row"
    )


def median(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of the wall times and of the processor's."""
    wall, processor = (statistics.median(each) for each in zip(*times, strict=True))
    return wall, processor


def command(config: ExportConfig) -> tuple[float, float]:
    """Seconds of the export in a process of its own."""
    words = [sys.executable, "-m", "lorafold", "export", config.source]
    for flag in ("base", "onto", "out", "threads"):
        words += [f"--{flag}", str(getattr(config, flag))]
    words += [word for name in config.quant for word in ("--quant", name)]
    with Clock() as clock:
        subprocess.run(
            [*words, "--no-modelfile", "--no-verify"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return clock.wall, clock.processor


class Clock:
    """Wall and processor seconds of a block, those of processes that it waited for counted in."""

    def __enter__(self) -> Clock:
        self._began = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        now = self._now()
        self.wall, self.processor = now[0] - self._began[0], now[1] - self._began[1]

    @staticmethod
    def _now() -> tuple[float, float]:
        spent = os.times()
        return time.monotonic(), time.process_time() + spent.children_user + spent.children_system


def floor(config: ExportConfig) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds for the copy, and for what must be folded and quantized."""
    from lorafold.export.gguf.writer import MAX_BLOCK_WEIGHTS, block_rows
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.onto import plan_onto_output
    from lorafold.export.quant import quantize as kernels
    from lorafold.export.workers import work_off
    from lorafold.progress import silent

    assert config.onto is not None
    output = plan_onto_output(open_inputs(config), config)
    target = config.out.parent / "copy.gguf"
    with Clock() as copying:
        shutil.copyfile(config.onto, target)
        digest = hashlib.sha256()
        with target.open("rb+") as file:
            while part := file.read(1 << 22):
                digest.update(part)
            os.fsync(file.fileno())
    target.unlink()
    source = output.source
    typed = [
        each
        for file in output.plan.files
        for each in file.tensors
        if each.tensor.name in source.touched or each.type != source.model.tensors[each.tensor.name].type
    ]
    blocks = [
        (each, start, stop) for each in typed for start, stop in block_rows(each.tensor, MAX_BLOCK_WEIGHTS)
    ]

    def carry_out(block: tuple[object, int, int]) -> int:
        each, start, stop = block
        rows = source.rows(each.tensor.name, start, stop)  # type: ignore[attr-defined]
        return int(kernels.quantize(rows, each.type).nbytes)  # type: ignore[attr-defined]

    with Clock() as folding:
        work_off(blocks, carry_out, threads=config.workers, total=1, progress=silent)
    return (copying.wall, copying.processor), (folding.wall, folding.processor)


if __name__ == "__main__":
    main()
