"""The ways of training that `bench_train.py` measures: the tutorials', ours, those between, and the peers'.

All ways see the same examples in the same steps from the same adapter.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lorafold.chat.tokenizer import Encoded
from lorafold.models import Base
from lorafold.train import TrainConfig
from lorafold.train.build import Lessons, build
from lorafold.train.fast.speed import restored_modules
from lorafold.train.loop import Hooks, peak_memory, run_steps
from lorafold.train.saved.checkpoints import RunState
from lorafold.train.signals import StopRequest
from lorafold.train.tokens.batches import StepPlan
from lorafold.train.tokens.collate import IGNORED, make_batch
from lorafold.train.workers import Workers

# hidden size, layers, heads, key-value heads, feed-forward size, tied head, vocabulary
SHAPES = {
    "tiny": (256, 2, 4, 2, 512, True, 151_936),
    "6-layers": (1536, 6, 12, 2, 8960, True, 151_936),  # of 1.5B
    "0.5B": (896, 24, 14, 2, 4864, True, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, True, 151_936),
    "7B": (4096, 30, 32, 32, 11008, False, 102_400),  # DeepSeek-LLM-7B's, in Qwen2's layout
}
# Architectures of these shapes: transformers' config classes, and what is not as it is by default.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {}),
    # Three of four layers keep a state.
    "qwen3.5": ("Qwen3_5TextConfig", {"linear_num_key_heads": 16, "linear_num_value_heads": 16}),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAIN: dict[str, Any] = {"use_liger_kernel": False, "fused_kernels": False, "gradient_checkpointing": False}
LARGE: dict[str, Any] = {"gradient_accumulation_steps": 25}  # 250 examples, about 16,000 tokens a step
# The 4-bit tutorial's settings.
QLORA: dict[str, Any] = {
    "method": "qlora",
    "gradient_checkpointing": True,
    "optim": "paged_adamw_32bit",
    "per_device_train_batch_size": 4,
}

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
    "ours-16k": ("ours, 250 examples a step, packs of 16,384", LARGE | {"packing_length": 16_384}),
    "ours-rows": ("ours, the same steps, one example a row", {"packing": False}),
    "ours-compiled": ("compiled by torch, 250 examples a step", LARGE | {"torch_compile": True}),
    "no-graphs": ("ours without CUDA graphs, 250 examples a step", LARGE | {"cuda_graphs": False}),
    "no-liger": ("ours without Liger, 250 examples a step", LARGE | {"use_liger_kernel": False}),
    "qlora": ("4 bit (NF4), checkpointing, paged AdamW, 16 examples a step", QLORA),
    "qlora-auto": ("the same, fused AdamW", QLORA | {"optim": "auto"}),
    "qlora-launched": ("the same without CUDA graphs", QLORA | {"cuda_graphs": False}),
    "qlora-plain": (
        "the plain way: one padded batch of 16, no kernels of ours",
        QLORA
        | {"packing": False, "use_liger_kernel": False, "fused_kernels": False}
        | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1},
    ),
    "qlora-large": (
        "4 bit, 250 examples a step, the rest by choice",
        QLORA | {"gradient_checkpointing": None, "optim": "auto", "gradient_accumulation_steps": 62},
    ),
    "unsloth": ("Unsloth, the same steps", {"gradient_checkpointing": False}),
    "unsloth-large": (
        "Unsloth, one batch of 250 examples a step",
        {"gradient_checkpointing": False, "per_device_train_batch_size": 250}
        | {"gradient_accumulation_steps": 1},
    ),
    "unsloth-packed": (
        "Unsloth, packed to 16,384",
        {"gradient_checkpointing": False, "packing_length": 16_384},
    ),
    "unsloth-qlora": ("Unsloth: 4 bit, checkpointing, 16 examples a step", QLORA),
    "unsloth-qlora-large": (
        "Unsloth: 4 bit, checkpointing, one batch of 250 examples a step",
        QLORA | {"optim": "auto", "per_device_train_batch_size": 250, "gradient_accumulation_steps": 1},
    ),
    "unsloth-qlora-packed": (
        "Unsloth: 4 bit, no checkpointing, packed to 16,384",
        QLORA | {"optim": "auto", "gradient_checkpointing": False, "packing_length": 16_384},
    ),
    "trl-packed": ("TRL, packed to 16,384", {"gradient_checkpointing": False, "packing_length": 16_384}),
    "16bit": (
        "16 bit, the same settings",
        {"gradient_checkpointing": True, "optim": "paged_adamw_32bit", "per_device_train_batch_size": 4},
    ),
}


@dataclass(frozen=True, slots=True)
class Task:
    """What a way is to do.

    Attributes:
        config: of the run, with the fields that make the way.
        base: the model.
        sequences: the examples.
        workers: the place of this process.
        warm: steps before those that are measured.
        profile: print what the GPU's time goes into.
        limit: seconds after the first step when it is cut short, with the figure so far; 0: none.
    """

    config: TrainConfig
    base: Base
    sequences: tuple[Encoded, ...]
    workers: Workers
    warm: int
    profile: bool
    limit: float = 0.0


@dataclass(slots=True)
class Run:
    """What one way came to."""

    way: str
    label: str
    speed: float = 0.0  # tokens per second, padding not counted
    peak: float = 0.0  # GiB in tensors
    reserved: float = 0.0  # GiB that torch held of the GPU, CUDA graphs and fragments included
    seconds: float = 0.0  # of the measured steps
    measured: str = ""  # how many steps, and how many before them
    line: str = ""
    losses: list[float] = field(default_factory=list)
    fault: str = ""


def build_model(folder: Path, shape: str, tokenizer: Path, family: str = "qwen2") -> None:
    """A random model of a shape, made on the GPU, with a real tokenizer."""
    import transformers

    kind, more = FAMILIES[family]
    hidden, layers, heads, pairs, inner, tied, vocabulary = SHAPES[shape]
    config = getattr(transformers, kind)(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        **more,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


class Clock:
    """Times of steps, and the peak of memory since the warm-up.

    Args:
        limit: seconds from the end of the first step after which no other is to begin; 0: no limit.
    """

    def __init__(self, limit: float = 0.0) -> None:
        self.times: list[float] = []
        self.limit = limit or float("inf")

    def step(self) -> bool:
        """Note the end of a step; whether the limit has passed."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return self.times[-1] - self.times[0] > self.limit

    def into(self, run: Run, tokens: list[int], warm: int) -> None:
        """The speed of the steps after the warm-up; of all but the first if the limit cut it short."""
        done = len(self.times)
        first = warm if warm < done else 1
        if done <= first:
            run.fault = f"{done} steps until the limit"
            return
        run.seconds = self.times[-1] - self.times[first - 1]
        run.speed = sum(tokens[first:done]) / run.seconds
        run.measured = f"{done - first} of {len(tokens) - warm} steps, {first} before them"
        run.peak = peak_memory() / 2**30
        if torch.cuda.is_available():
            run.reserved = torch.cuda.max_memory_reserved() / 2**30


def our_way(task: Task, run: Run) -> None:
    """`lorafold train`'s own loop, with the choices it makes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock, stop = Clock(task.limit), StopRequest()
    with restored_modules(), tempfile.TemporaryDirectory() as scratch:
        built = build(
            task.config,
            task.base,
            Lessons(task.sequences),
            Path(scratch) / "metrics.jsonl",
            task.workers,
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # what the choice itself took is not part of the steps
        built.trainer.on_metrics = lambda record: run.losses.append(record["loss"])
        run.line = "; ".join([built.speed.line(), *built.notes])

        def step(*arguments: Any, **more: Any) -> None:
            if clock.step():
                stop.signal = signal.SIGTERM

        def go() -> None:
            run_steps(built.trainer, RunState(), stop, Hooks(progress=step))

        profiled(go) if task.profile else go()
        plan = built.trainer.plan
    clock.into(run, step_tokens(plan, task.sequences), task.warm)


def tutorial_way(task: Task, run: Run) -> None:
    """transformers' Trainer and peft, as the tutorials call them, on the same examples in the same order."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    config, sequences = task.config, task.sequences
    plan = StepPlan(config, sequences, (), 0)
    order = [index for step in range(plan.total_steps) for group in plan.indices(step) for index in group]
    clock = Clock(task.limit)

    class Steps(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop |= clock.step()

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
    model = AutoModelForCausalLM.from_pretrained(
        task.base.folder, dtype=torch.bfloat16, device_map={"": "cuda"}
    )
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
        profiled(trainer.train) if task.profile else trainer.train()
    clock.into(run, step_tokens(plan, sequences), task.warm)


def peer_way(task: Task, run: Run) -> None:
    """Unsloth or TRL, in a process of its own; named as absent if it is not installed."""
    config, peer = task.config, run.way.partition("-")[0]
    try:
        run.label += f" ({peer} {version(peer)})"
    except PackageNotFoundError:
        run.fault = f"{peer} is not installed"
        return
    plan = StepPlan(config, task.sequences, (), 0)
    order = [index for step in range(plan.total_steps) for group in plan.indices(step) for index in group]
    with tempfile.TemporaryDirectory() as scratch:
        asked, result = Path(scratch) / "task.json", Path(scratch) / "result.json"
        fields = {
            "peer": peer,
            "base": str(task.base.folder),
            "scratch": scratch,
            "in_4bit": config.method == "qlora",
            "checkpointing": bool(config.gradient_checkpointing),
            "length": config.packing_length or config.max_length,
            "order": None if config.packing_length else order,
            "batch": config.per_device_train_batch_size,
            "accumulation": config.gradient_accumulation_steps,
            "steps": config.max_steps,
            "warm": task.warm,
            "limit": task.limit,
            "learning_rate": config.learning_rate,
            "optim": "adamw_torch_fused" if config.optim == "auto" else config.optim,
            "seed": config.seed,
            "r": config.r,
            "alpha": config.lora_alpha,
            "modules": list(PROJECTIONS),
            "ids": [sequence.ids for sequence in task.sequences],
            "masks": [[int(on) for on in sequence.mask] for sequence in task.sequences],
        }
        asked.write_text(json.dumps(fields))
        program = Path(__file__).parent / "training" / "peers.py"
        command = [sys.executable, str(program), str(asked), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode:
            run.fault = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
            print(done.stderr[-4000:], file=sys.stderr)
            return
        for name, value in json.loads(result.read_text()).items():
            setattr(run, name, value)


def step_tokens(plan: StepPlan, sequences: tuple[Encoded, ...]) -> list[int]:
    """Tokens of each step, over all workers."""
    return [
        sum(len(sequences[index].ids) for group in plan.indices(step) for index in group)
        for step in range(plan.total_steps)
    ]


def profiled(go: Callable[[], Any]) -> None:
    """Run under torch's profiler and print the kernels that take the most time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as found:
        go()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=60))
