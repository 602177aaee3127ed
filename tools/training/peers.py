"""Unsloth and TRL on the examples of `bench_train.py`, as they recommend themselves.

    python tools/training/peers.py TASK.json RESULT.json

It is a process of its own, since Unsloth changes transformers for all that runs beside it. `peer_way` of
`train_ways.py` writes the task and reads the result. There is no dropout, as Unsloth recommends.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def unsloth_model(task: dict[str, Any]) -> tuple[Any, Any]:
    """The model with its adapter, and the tokenizer, by Unsloth."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=task["base"],
        max_seq_length=task["length"],
        load_in_4bit=task["in_4bit"],
        load_in_16bit=not task["in_4bit"],
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=task["r"],
        lora_alpha=task["alpha"],
        lora_dropout=0,
        target_modules=task["modules"],
        use_gradient_checkpointing="unsloth" if task["checkpointing"] else False,
        random_state=task["seed"],
    )
    return model, tokenizer


def trl_model(task: dict[str, Any]) -> tuple[Any, Any]:
    """The same by transformers and peft; packed examples are kept apart by flash-attn alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        task["base"],
        dtype=torch.bfloat16,
        device_map={"": "cuda"},
        attn_implementation="flash_attention_2",
    )
    adapter = LoraConfig(
        r=task["r"], lora_alpha=task["alpha"], target_modules=task["modules"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapter), AutoTokenizer.from_pretrained(task["base"])


@dataclass
class Course:
    """What is known of a training so far, written down after each step: one cut short has a figure."""

    result: Path
    warm: int
    tokens: list[int] = field(default_factory=list)  # of each step
    line: str = ""
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def write(self) -> None:
        """The figures of the steps after the warm-up; of all but the first until there are any."""
        import torch

        done = len(self.times)
        first = self.warm if self.warm < done else 1
        if done <= first:
            return
        seconds = self.times[-1] - self.times[first - 1]
        figures = {
            "speed": sum(self.tokens[first:done]) / seconds,
            "peak": torch.cuda.max_memory_allocated() / 2**30,
            "reserved": torch.cuda.max_memory_reserved() / 2**30,
            "seconds": seconds,
            "measured": f"{done - first} steps, {first} before them",
            "losses": self.losses,
            "line": self.line,
        }
        unfinished = self.result.with_suffix(".part")
        unfinished.write_text(json.dumps(figures))
        unfinished.replace(self.result)


def run(task: dict[str, Any], course: Course) -> None:
    """Train, and write down how fast, with how much memory, and with which losses."""
    model, tokenizer = (unsloth_model if task["peer"] == "unsloth" else trl_model)(task)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            torch.cuda.synchronize()
            course.times.append(time.perf_counter())
            course.write()
            taken = course.times[-1] - course.times[0]
            control.should_training_stop |= bool(task["limit"]) and taken > task["limit"]

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                course.losses.append(float(logs["loss"]))
                course.write()

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *arguments: Any) -> Any:
            return task["order"] or range(len(self.train_dataset))

    packed = task["order"] is None
    columns = {"input_ids": task["ids"], "completion_mask": task["masks"]}
    config = SFTConfig(
        output_dir=task["scratch"],
        max_length=task["length"],
        packing=packed,
        completion_only_loss=True,
        per_device_train_batch_size=1 if packed else task["batch"],
        gradient_accumulation_steps=1 if packed else task["accumulation"],
        max_steps=task["steps"],
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim=task["optim"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=True,
        seed=task["seed"],
        disable_tqdm=True,
        dataset_num_proc=1,
    )
    trainer = InOrder(
        model=model,
        processing_class=tokenizer,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        callbacks=[Steps()],
    )
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    each = 1 if packed else task["batch"] * task["accumulation"]
    order = task["order"] or list(range(len(lengths))) * task["steps"]
    course.tokens = [
        sum(lengths[index] for index in order[at : at + each]) for at in range(0, len(order), each)
    ]
    course.line = f"{len(lengths)} rows, padding-free {trainer.args.padding_free}"
    torch.cuda.reset_peak_memory_stats()
    trainer.train()


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    run(asked, Course(Path(sys.argv[2]), asked["warm"]))
