"""Whole runs on a CUDA GPU: they follow the plain ones, are packed, and go on bitwise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_run import Kill, die_at, same_files, steady

from lorafold.train import TrainConfig, train
from lorafold.train.saved.curve import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 9) + str(i)} for i in range(24)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.1},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "lora_dropout": 0.1},
        {"gradient_checkpointing": True, "method": "qlora"},
        {"method": "qlora"},
        {"method": "dora"},
        {"method": "full"},
        {"method": "prompt"},
        {"modules_to_save": ("lm_head",)},
        {"dtype": "float16"},
        {"use_liger_kernel": False},
        {"cuda_graphs": False},
        {"torch_compile": True},
    ],
    ids=str,
)
def test_a_whole_run_follows_the_plain_one(options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family="Qwen2", hidden_size=128, intermediate_size=256)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plain = {"packing": False, "use_liger_kernel": False, "fused_kernels": False, "torch_compile": False}
    curves = []
    for name, more in (("fast", {"packing_length": 1024}), ("plain", plain)):
        fields: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 20, **options, **more}
        fields |= {"gradient_accumulation_steps": 2, "eval_split": 0.2}
        config = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / name, **fields)
        result = train(config)
        assert not any("capture failed" in note for note in result.notes), result.notes
        curves.append([row["loss"] for row in read_metrics(result.folder / "metrics.jsonl") if "loss" in row])
    fast, slow = torch.tensor(curves)
    assert (fast - slow).abs().mean() < 0.05 and fast[-1] < fast[0]


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_models_that_keep_examples_apart_are_packed(family: str, tmp_path: Path) -> None:
    """No leak is seen where there is none, in 16 bit and by the kernels that a GPU chooses."""
    base = tiny_base(tmp_path / "base", family=family, hidden_size=128, head_dim=64)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = train(TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "out", max_steps=2))
    assert any("packed to" in note for note in result.notes), result.notes


def test_delta_nets_are_packed(tmp_path: Path) -> None:
    """By our own rule or by kernels that are installed; the losses are those of one example a row."""
    shape: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 64}
    shape |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64}
    shape |= {"linear_value_head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 128}
    shape |= {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    base = tiny_base(tmp_path / "base", family="Qwen3Next", **shape)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "packed", max_steps=4)
    packed = train(config)
    assert any("packed to" in note and "begin with each" in note for note in packed.notes), packed.notes
    rows = train(dataclasses.replace(config, packing=False, out=tmp_path / "rows"))
    assert packed.loss == pytest.approx(rows.loss, rel=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "method": "qlora"},
        {"gradient_checkpointing": True, "method": "qlora", "optim": "paged_adamw_32bit"},
        {"cuda_graphs": False},
    ],
    ids=str,
)
def test_a_run_goes_on_bitwise(options: dict[str, Any], tmp_path: Path) -> None:
    """Killed at step 9 of 16 and gone on: the steps that were replayed are launched and captured again."""
    base = tiny_base(tmp_path / "base", family="Qwen2", hidden_size=128, intermediate_size=256)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 16, "save_steps": 4, "lora_dropout": 0.1}
    fields |= {"gradient_accumulation_steps": 2, **options}
    whole = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "whole", **fields)
    parted = dataclasses.replace(whole, out=tmp_path / "parted")
    done = train(whole)
    with pytest.raises(Kill):
        train(parted, die_at(9))
    resumed = train(dataclasses.replace(parted, resume=True))
    assert "resumed at step 8" in resumed.notes
    assert steady(resumed.folder) == steady(done.folder)
    assert same_files(done.folder, resumed.folder, ("adapter_model.safetensors",))
