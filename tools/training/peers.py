"""Unsloth and TRL on the examples of `bench_train.py`, as they recommend themselves.

    python tools/training/peers.py TASK.json RESULT.json

It is a process of its own, since Unsloth changes transformers for all that runs beside it. `peer_way` of
`train_ways.py` writes the task and reads the result. There is no dropout, as Unsloth recommends.
"""

from __future__ import annotations

import json
import sys
import time
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


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Train, and say how fast, with how much memory, and with which losses."""
    model, tokenizer = (unsloth_model if task["peer"] == "unsloth" else trl_model)(task)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []
    losses: list[float] = []

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter())

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

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
    order = task["order"] or list(range(len(lengths)))
    tokens = [sum(lengths[index] for index in order[at : at + each]) for at in range(0, len(order), each)]
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    warm = task["warm"]
    return {
        "speed": sum(tokens[warm : len(times)]) / (times[-1] - times[warm - 1]),
        "peak": torch.cuda.max_memory_allocated() / 2**30,
        "reserved": torch.cuda.max_memory_reserved() / 2**30,
        "seconds": times[-1] - times[0],
        "losses": losses,
        "line": f"{len(lengths)} rows, padding-free {trainer.args.padding_free}",
    }


if __name__ == "__main__":
    outcome = run(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(outcome))
