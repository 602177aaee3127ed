"""Training on a GPU, side by side with the tutorials' way, in one run: tokens per second, memory, losses.

    python tools/bench_train.py --data huanhuan.json --tokenizer qwen2/ [--ways tutorial,ours] [--steps 20]
    torchrun --nproc-per-node 2 tools/bench_train.py … --ways ours-large

The tutorials' way is transformers' Trainer with peft: padded batches of 10, gradient checkpointing, SDPA.
Ours is the loop of `lorafold train` with what it chooses by itself; the ways between switch on one piece
after the other. All see the same examples in the same steps from the same adapter. The model is random, of a
published Qwen2 shape. Tokens are counted without padding.

The limit of a card is its bf16 rate over 4 floating-point operations a weight and token (forward, and
backward through frozen weights).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorafold.chat import ChatTokenizer, Encoded
from lorafold.models import Base, resolve_base
from lorafold.train import TrainConfig
from lorafold.train.batches import StepPlan
from lorafold.train.build import build
from lorafold.train.checkpoints import RunState
from lorafold.train.collate import IGNORED, make_batch
from lorafold.train.data import load_data
from lorafold.train.loop import peak_memory, run_steps
from lorafold.train.signals import StopRequest
from lorafold.train.speed import restored_modules
from lorafold.train.tokenize import tokenize
from lorafold.train.workers import Workers, join

# hidden size, layers, heads, key-value heads, feed-forward size, tied head, vocabulary
SHAPES = {
    "tiny": (256, 2, 4, 2, 512, True, 151_936),
    "0.5B": (896, 24, 14, 2, 4864, True, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, True, 151_936),
    "7B": (4096, 30, 32, 32, 11008, False, 102_400),  # DeepSeek-LLM-7B's, in Qwen2's layout
}
RATE = 790e12  # FLOP/s in bf16 that a large matrix product reaches on an H100 or H200
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAIN: dict[str, Any] = {"use_liger_kernel": False, "fused_kernels": False, "gradient_checkpointing": False}
LARGE: dict[str, Any] = {"gradient_accumulation_steps": 25}  # 250 examples, about 16,000 tokens a step

# name -> (what it is, fields of the config; None: transformers' Trainer)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "tutorial": ("tutorials' way: padded, checkpointing", {"gradient_checkpointing": True}),
    "tutorial-kept": ("the same without checkpointing", {"gradient_checkpointing": False}),
    "packed": (
        "packed to 8,192, SDPA",
        PLAIN | LARGE | {"attn_implementation": "sdpa", "packing_length": 8192},
    ),
    "flex": (
        "packed to 8,192, flex attention",
        PLAIN | LARGE | {"attn_implementation": "flex_attention", "packing_length": 8192},
    ),
    "varlen": ("packed to 8,192, varlen attention", PLAIN | LARGE | {"packing_length": 8192}),
    "liger": ("the same, Liger kernels", LARGE | {"fused_kernels": False, "packing_length": 8192}),
    "ours": ("ours, the same steps", {}),
    "ours-large": ("ours, 250 examples a step", LARGE),
    "ours-8k": ("ours, 250 examples a step, packs of 8,192", LARGE | {"packing_length": 8192}),
    "ours-compiled": ("compiled by torch, 250 examples a step", LARGE | {"torch_compile": True}),
    "no-graphs": ("ours without CUDA graphs, 250 examples a step", LARGE | {"cuda_graphs": False}),
    "no-liger": ("ours without Liger, 250 examples a step", LARGE | {"use_liger_kernel": False}),
    "qlora": (
        "4 bit (NF4), checkpointing, paged AdamW, 16 examples a step",
        {
            "method": "qlora",
            "gradient_checkpointing": True,
            "optim": "paged_adamw_32bit",
            "per_device_train_batch_size": 4,
        },
    ),
    "16bit": (
        "16 bit, the same settings",
        {"gradient_checkpointing": True, "optim": "paged_adamw_32bit", "per_device_train_batch_size": 4},
    ),
}


@dataclass(slots=True)
class Run:
    """What one way came to."""

    way: str
    label: str
    speed: float = 0.0  # tokens per second, padding not counted
    peak: float = 0.0  # GiB in tensors
    reserved: float = 0.0  # GiB that torch held of the GPU, CUDA graphs and fragments included
    seconds: float = 0.0  # from the first step to the last, warm-up included
    line: str = ""
    losses: list[float] = field(default_factory=list)
    fault: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Qwen2 tokenizer's folder")
    parser.add_argument("--template", help="name of a chat template, where the tokenizer brings none")
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--ways", default="tutorial,tutorial-kept,packed,varlen,liger,ours,ours-large")
    parser.add_argument("--steps", type=int, default=20, help="measured steps, after the warm-up")
    parser.add_argument("--warm", type=int, default=4, help="steps before, in which kernels are compiled")
    parser.add_argument("--accumulation", type=int, default=4, help="batches of 10 in a step")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--profile", action="store_true", help="print what the GPU's time goes into")
    parser.add_argument("--model", type=Path, help="where the random model is kept for a later run")
    parser.add_argument("--out", type=Path, help="folder for bench_train.json and the loss curves")
    options = parser.parse_args()
    with join() as workers, tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        folder = options.model or Path(scratch) / "model"
        if workers.first and not folder.exists():
            build_model(folder, options.shape, options.tokenizer)
        workers.wait()
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
            print_machine(tokens.summary(), options.shape, workers)
        runs = []
        for way in options.ways.split(","):
            label, fields = WAYS[way]
            run = Run(way, label)
            chosen = dataclasses.replace(config, **fields)
            try:
                measure = tutorial_way if way.startswith("tutorial") else our_way
                measure(chosen, base, tokens.sequences, run, workers, options)
            except (torch.OutOfMemoryError, RuntimeError, ImportError) as error:
                run.fault = (str(error).strip().splitlines() or [repr(error)])[0][:200]
            runs.append(run)
            gc.collect()
            torch.cuda.empty_cache()
            if workers.first:
                print(
                    f"{run.way}: {run.speed:,.0f} tok/s, {run.peak:.1f} GiB. {run.line}{run.fault}",
                    flush=True,
                )
        if workers.first:
            print_table(runs, weights(base), workers.count)
            if options.out:
                write(options.out, runs)


def build_model(folder: Path, shape: str, tokenizer: Path) -> None:
    """A random model of a shape, made on the GPU, with a real tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    hidden, layers, heads, pairs, inner, tied, vocabulary = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def weights(base: Base) -> int:
    """Weights of the matrix products of a token: all but the embedding, which is only looked up."""
    from lorafold.weights import Checkpoint

    tensors = Checkpoint.open(base.folder).tensors
    total = sum(int(torch.Size(info.shape).numel()) for info in tensors.values())
    untied = "lm_head.weight" in tensors
    return total - (torch.Size(tensors["model.embed_tokens.weight"].shape).numel() if untied else 0)


class Clock:
    """Times of steps, and the peak of memory since the warm-up."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def into(self, run: Run, tokens: list[int], warm: int) -> None:
        taken = self.times[-1] - self.times[warm - 1]
        run.speed = sum(tokens[warm:]) / taken
        run.seconds = taken
        run.peak = peak_memory() / 2**30
        if torch.cuda.is_available():
            run.reserved = torch.cuda.max_memory_reserved() / 2**30


def our_way(
    config: TrainConfig,
    base: Base,
    sequences: tuple[Encoded, ...],
    run: Run,
    workers: Workers,
    options: argparse.Namespace,
) -> None:
    """`lorafold train`'s own loop, with the choices it makes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    with restored_modules(), tempfile.TemporaryDirectory() as scratch:
        built = build(
            config,
            base,
            sequences,
            (),
            pad_id=0,
            rows=0,
            metrics=Path(scratch) / "metrics.jsonl",
            workers=workers,
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # what the choice itself took is not part of the steps
        built.trainer.on_metrics = lambda record: run.losses.append(record["loss"])
        run.line = "; ".join([built.speed.line(), *built.notes])

        def go() -> None:
            run_steps(
                built.trainer,
                RunState(),
                StopRequest(),
                save=lambda: None,
                save_best=lambda: None,
                progress=lambda *arguments, **more: clock.step(),
            )

        profiled(go) if options.profile else go()
        plan = built.trainer.plan
    clock.into(run, step_tokens(plan, sequences), options.warm)


def step_tokens(plan: StepPlan, sequences: tuple[Encoded, ...]) -> list[int]:
    """Tokens of each step, over all workers."""
    return [
        sum(len(sequences[index].ids) for group in plan.indices(step) for index in group)
        for step in range(plan.total_steps)
    ]


def tutorial_way(
    config: TrainConfig,
    base: Base,
    sequences: tuple[Encoded, ...],
    run: Run,
    workers: Workers,
    options: argparse.Namespace,
) -> None:
    """transformers' Trainer and peft, as the tutorials call them, on the same examples in the same order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    plan = StepPlan(config, sequences, (), 0)
    order = [index for step in range(plan.total_steps) for group in plan.indices(step) for index in group]
    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            clock.step()

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                run.losses.append(float(logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return order

    def collate(rows: list[Encoded]) -> dict[str, torch.Tensor]:
        batch = make_batch(rows, 0)
        labels = torch.full_like(batch.targets, IGNORED)
        labels[:, 1:] = batch.targets[:, :-1]  # transformers shifts them itself
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}

    torch.manual_seed(config.seed)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16, device_map={"": "cuda"})
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    adapter = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(PROJECTIONS),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, adapter)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            gradient_checkpointing=bool(config.gradient_checkpointing),
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant",
            max_steps=config.max_steps,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=config.seed,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = InOrder(
            model, arguments, data_collator=collate, train_dataset=list(sequences), callbacks=[Steps()]
        )
        profiled(trainer.train) if options.profile else trainer.train()
    clock.into(run, step_tokens(plan, sequences), options.warm)


def profiled(go: Callable[[], Any]) -> None:
    """Run under torch's profiler and print the kernels that take the most time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        go()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=60))


def print_machine(summary: str, shape: str, workers: Workers) -> None:
    import peft
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{workers.count} × {name}; torch {torch.__version__}, transformers {transformers.__version__}, ",
        end="",
    )
    print(f"peft {peft.__version__}; Qwen2 shape {shape}; {summary}", flush=True)


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
