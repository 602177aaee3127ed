"""Adapters of experts' stacked weights, and of models where PEFT refuses a layer: trained, saved, folded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_base import tiny_base

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export
from lorafold.train import TrainConfig, train

EXPERTS = {
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "head_dim": 16}


def config(tmp_path: Path, base: Path, **fields: Any) -> TrainConfig:
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(6)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"out": tmp_path / "out", "max_steps": 2, "learning_rate": 1e-2} | fields
    return TrainConfig(base=str(base), data=(str(tmp_path / "d.jsonl"),), **options)


def merged_by_peft(base: Path, adapter: Path, out: Path) -> dict[str, np.ndarray]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    return load_file(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_trained_and_folded_as_peft_merges_them(family: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family=family, **EXPERTS[family])
    result = train(config(tmp_path, base, target_parameters=("experts",)))
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    # peft itself counts the router among all linear layers where transformers 4 had it as one.
    router = ["gate.weight"] if family == "Qwen3Moe" else []
    assert sorted(settings["target_parameters"]) == ["down_proj", *router, "gate_up_proj"]
    trained = load_file(result.folder / "adapter_model.safetensors")
    moved = [
        name for name, value in trained.items() if "experts" in name and "lora_B" in name and value.any()
    ]
    assert len(moved) == 4, sorted(trained)  # two weights in each of two layers
    wanted = merged_by_peft(base, result.folder, tmp_path / "merged")
    export(
        ExportConfig(
            str(result.folder), base=str(base), out=tmp_path / "folder", format="folder", verify=False
        )
    )
    found = load_file(tmp_path / "folder" / "model.safetensors")
    own = load_file(base / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert any("experts" in name and not np.array_equal(own[name], found[name]) for name in found)


@pytest.mark.slow
def test_all_linear_where_peft_refuses_a_layer(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family="FalconH1", **MAMBA)
    result = train(config(tmp_path, base))
    names = {name.split(".")[-3] for name in load_file(result.folder / "adapter_model.safetensors")}
    assert {"in_proj", "q_proj", "down_proj"} <= names and "out_proj" not in names
    assert any("all-linear without out_proj" in note for note in result.notes)
    assert any("one example a row" in note or "padded" in note for note in result.notes)


@pytest.mark.slow
def test_names_that_no_layer_has_are_said(tmp_path: Path) -> None:
    """Lists from a tutorial for Llama, on a model that calls its layers otherwise, or stacks its experts."""
    seven = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    base = tiny_base(tmp_path / "lfm2", family="Lfm2", layer_types=["conv", "full_attention"])
    notes = train(config(tmp_path, base, target_modules=seven)).notes
    assert "no layer is called down_proj, gate_proj, o_proj, up_proj: they get no adapter" in notes
    base = tiny_base(tmp_path / "moe", family="Qwen3Moe", **EXPERTS["Qwen3Moe"])
    notes = train(config(tmp_path, base, target_modules=seven, out=tmp_path / "other")).notes
    assert not any("no layer is called" in note for note in notes)


def test_a_base_without_experts(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    with pytest.raises(UsageError, match="LlamaForCausalLM has no stacked weights of experts") as caught:
        train(config(tmp_path, base, target_parameters=("experts",)))
    assert caught.value.at == "--target-parameters" and caught.value.fix


@pytest.mark.parametrize(
    ("fields", "at"), [({"lora_dropout": 0.1}, "--lora-dropout"), ({"method": "dora"}, "--method")], ids=str
)
def test_what_peft_does_not_do_for_parameters(fields: dict[str, Any], at: str, tmp_path: Path) -> None:
    plain = config(tmp_path, tmp_path, target_parameters=("experts",))
    with pytest.raises(UsageError, match="for --target-parameters") as caught:
        dataclasses.replace(plain, **fields).check()
    assert caught.value.at == at
