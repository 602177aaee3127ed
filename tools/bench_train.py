"""Training on a GPU, side by side with the tutorials' way, in one run: tokens per second, memory, losses.

    python tools/bench_train.py --data huanhuan.json --tokenizer qwen2/ [--ways tutorial,ours] [--steps 20]
    torchrun --nproc-per-node 2 tools/bench_train.py … --ways ours-large

The tutorials' way is transformers' Trainer with peft: padded batches of 10, gradient checkpointing, SDPA.
Ours is the loop of `lorafold train` with what it chooses by itself; the ways between switch on one piece
after the other. All see the same examples in the same steps from the same adapter. The model is random, of a
published shape. Tokens are counted without padding.

The limit of a card is its bf16 rate over 4 floating-point operations a weight and token (forward, and
backward through frozen weights).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from train_ways import (
    FAMILIES,
    PROJECTIONS,
    SHAPES,
    WAYS,
    Run,
    Task,
    build_model,
    our_way,
    peer_way,
    tutorial_way,
)

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.models import Base, resolve_base
from lorafold.train import TrainConfig
from lorafold.train.data.load import load_data
from lorafold.train.tokens.tokenize import tokenize
from lorafold.train.workers import Workers, join

RATE = 790e12  # FLOP/s in bf16 that a large matrix product reaches on an H100 or H200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Qwen2 tokenizer's folder")
    parser.add_argument("--template", help="name of a chat template, where the tokenizer brings none")
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2")
    parser.add_argument("--ways", default="tutorial,tutorial-kept,packed,varlen,liger,ours,ours-large")
    parser.add_argument("--steps", type=int, default=20, help="measured steps, after the warm-up")
    parser.add_argument("--warm", type=int, default=4, help="steps before, in which kernels are compiled")
    parser.add_argument("--accumulation", type=int, default=4, help="batches of 10 in a step")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print what the GPU's time goes into")
    parser.add_argument("--card", type=float, help="GiB: what is left of the GPU, as on a smaller one")
    parser.add_argument(
        "--limit", type=float, default=0.0, help="seconds after a way's first step; then the figure so far"
    )
    parser.add_argument("--model", type=Path, help="where the random model is kept for a later run")
    parser.add_argument("--out", type=Path, help="folder for bench_train.json and the loss curves")
    options = parser.parse_args()
    with (
        join() as workers,
        tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch,
        contextlib.ExitStack() as until_end,
    ):
        folder = options.model or Path(scratch) / "model"
        if workers.first and not folder.exists():
            build_model(folder, options.shape, options.tokenizer, options.family)
        workers.wait()
        if options.card:
            torch.zeros(1, device="cuda")  # this process's context is there when the rest is measured
            torch.cuda.empty_cache()
            until_end.enter_context(smaller_card(options.card))
        base = resolve_base(str(folder), offline=True)
        config = TrainConfig(
            base=str(folder),
            data=(options.data,),
            out=Path(scratch) / "out",
            lora_alpha=32,
            lora_dropout=options.dropout,
            target_modules=PROJECTIONS,
            max_length=384,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            per_device_train_batch_size=10,
            gradient_accumulation_steps=options.accumulation,
            group_by_length=False,
            max_steps=options.warm + options.steps,
            save_steps=0,
            fsdp=options.fsdp,
        )
        tokens = tokenize(
            load_data(config.data).examples,
            ChatTokenizer.from_folder(folder, options.template),
            config.max_length,
        )
        if workers.first:
            print_machine(tokens.summary(), f"{options.family} {options.shape}", workers)
        runs = []
        for way in options.ways.split(","):
            label, fields = WAYS[way]
            run = Run(way, label)
            chosen = dataclasses.replace(config, **fields)
            try:
                others = {"tutorial": tutorial_way, "unsloth": peer_way, "trl": peer_way}
                measure = others.get(way.partition("-")[0], our_way)
                measure(
                    Task(
                        chosen, base, tokens.sequences, workers, options.warm, options.profile, options.limit
                    ),
                    run,
                )
            except (torch.OutOfMemoryError, RuntimeError, ImportError) as error:
                run.fault = (str(error).strip().splitlines() or [repr(error)])[0][:200]
            runs.append(run)
            gc.collect()
            torch.cuda.empty_cache()
            if workers.first:
                print(
                    f"{run.way}: {run.speed:,.0f} tok/s, {run.peak:.1f} GiB ({run.measured}). "
                    f"{run.line}{run.fault}",
                    flush=True,
                )
        if workers.first:
            print_table(runs, weights(base), workers.count)
            if options.out:
                write(options.out, runs)


@contextlib.contextmanager
def smaller_card(gib: float) -> Iterator[None]:
    """Let another process hold all but so many GiB of the GPU, half of one for this process's own context."""
    code = """
import sys, torch
free = torch.cuda.mem_get_info()[0]
held = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(gib - 0.5)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        if other.stdout.readline() != "held\n":
            raise SystemExit(f"no {gib} GiB are free on this GPU")
        yield
        other.stdin.close()


def weights(base: Base) -> int:
    """Weights of the matrix products of a token: all but the embedding, which is only looked up."""
    from lorafold.weights import Checkpoint

    tensors = Checkpoint.open(base.folder).tensors
    total = sum(int(torch.Size(info.shape).numel()) for info in tensors.values())
    untied = "lm_head.weight" in tensors
    return total - (torch.Size(tensors["model.embed_tokens.weight"].shape).numel() if untied else 0)


def print_machine(summary: str, shape: str, workers: Workers) -> None:
    import peft
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{workers.count} × {name}; torch {torch.__version__}, transformers {transformers.__version__}, ",
        end="",
    )
    print(f"peft {peft.__version__}; shape {shape}; {summary}", flush=True)


def print_table(runs: list[Run], matrices: int, count: int) -> None:
    limit = count * RATE / (4 * matrices)
    first = runs[0].speed or 1.0
    print(f"\n| way | tok/s | ratio | GiB in tensors | GiB held | share of {limit:,.0f} |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        if run.fault:
            print(f"| {run.label} | {run.fault} | | | | |")
            continue
        share = run.speed / limit
        memory = f"{run.peak:.1f} | {run.reserved:.1f}"
        print(f"| {run.label} | {run.speed:,.0f} | {run.speed / first:.1f} | {memory} | {share:.0%} |")
    curves = [run for run in runs if len(run.losses) == len(runs[0].losses)]
    for run in curves[1:]:
        apart = [abs(one - other) for one, other in zip(run.losses, runs[0].losses, strict=True)]
        print(
            f"losses of {run.way} against {runs[0].way}: mean {sum(apart) / len(apart):.4f} apart, ", end=""
        )
        print(f"most {max(apart):.4f}; last {run.losses[-1]:.4f} and {runs[0].losses[-1]:.4f}")


def write(out: Path, runs: list[Run]) -> None:
    """The figures as JSON, and the loss curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    (out / "bench_train.json").write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
    figure, axes = plt.subplots(figsize=(7, 4))
    for number, run in enumerate(runs):
        if run.losses:
            width = 1.5 + 2.5 * (len(runs) - 1 - number)  # curves that agree lie upon each other
            axes.plot(range(1, len(run.losses) + 1), run.losses, label=run.label, linewidth=width)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "loss_curves.png", dpi=110)


if __name__ == "__main__":
    main()
