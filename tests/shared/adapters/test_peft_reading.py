"""What today's PEFT misreads without an error is known from the folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_models import base_model, load, logits, make_adapter

from lorafold.adapters.folder import Adapter
from lorafold.adapters.peft_reading import MLX, WRAPPED, why_misread

peft = pytest.importorskip("peft")

LLAMA = {"model_type": "llama"}
KEPT = {
    "lora": peft.LoraConfig(
        r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["mlp", "lm_head"], use_dora=True
    ),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=3, total_step=10, tinit=1, tfinal=2),
    "tokens": peft.TrainableTokensConfig(token_indices=[3, 4], target_modules=["embed_tokens"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln": peft.LNTuningConfig(target_modules=["norm"]),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_what_peft_wrote_it_reads(name: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32")
    adapter = make_adapter(base, tmp_path / "a", "float32", KEPT[name])
    assert why_misread(adapter, LLAMA) is None


def test_an_embedding_that_peft_saves_twice(tmp_path: Path) -> None:
    """Of a resized vocabulary PEFT writes `modules_to_save` beside the plain name, and reads the latter."""
    base = base_model(tmp_path / "base", "llama", "float32")
    model = load(base, "float32")
    model.resize_token_embeddings(328, mean_resizing=False)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "a")
    opened = Adapter.open(tmp_path / "a")
    assert [entry for entry in opened.saved if entry.copy and "modules_to_save" in entry.key]
    assert why_misread(tmp_path / "a", LLAMA) is None


@pytest.mark.parametrize(
    "spelled", ["_orig_mod.{}", "base_model.model.{}", "default", "no weight", "modules_to_save"]
)
def test_names_that_peft_passes_over(spelled: str, tmp_path: Path) -> None:
    """PEFT takes nothing, or not all, of each of these adapters, and raises nothing."""
    from safetensors.numpy import load_file, save_file

    def changed(key: str) -> str:
        if spelled == "default":
            return key.replace(".weight", ".default.weight") if "lora_" in key else key
        if spelled == "no weight":
            return key.removesuffix(".weight") if "lora_" in key else key
        if spelled == "modules_to_save":
            return key.replace("lm_head.", "lm_head.modules_to_save.default.")
        return spelled.format(key)

    base = base_model(tmp_path / "base", "llama", "float32")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapter = make_adapter(base, tmp_path / "a", "float32", config)
    assert why_misread(adapter, LLAMA) is None
    right = logits(peft.PeftModel.from_pretrained(load(base, "float32"), adapter, adapter_name="0"))
    weights = adapter / "adapter_model.safetensors"
    save_file({changed(key): tensor for key, tensor in load_file(weights).items()}, weights)
    try:
        read = logits(peft.PeftModel.from_pretrained(load(base, "float32"), adapter, adapter_name="0"))
    except KeyError:  # PEFT misses a module to save
        pass
    else:
        assert np.abs(read - right).max() > 1e-3
    assert why_misread(adapter, LLAMA) == WRAPPED


def stacked(folder: Path, version: str | None, columns: int) -> Path:
    """Factors of 4 experts of rank 2, with the width 16 on one side."""
    from safetensors.numpy import save_file

    folder.mkdir()
    name = "base_model.model.model.layers.0.mlp.experts.lora_{}.weight"
    shapes = {"A": (8, 16), "B": (columns, 8)}
    save_file(
        {name.format(part): np.ones(shape, np.float32) for part, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "target_parameters": ["mlp.experts.down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_version": version}))
    return folder


EXPERTS = [
    # version, model type, columns, misread
    ("0.18.1", "qwen3_moe", 16, "PEFT 0.18.1 stored the factors of experts the other way round"),
    ("0.18.1", "qwen3_moe", 24, "PEFT 0.18.1 stored the factors of experts the other way round"),
    ("0.18.1", "gpt_oss", 16, None),
    ("0.19.0", "qwen3_moe", 16, "PEFT 0.19.0 stored the factors of experts the other way round"),
    ("0.19.0", "gpt_oss", 16, "PEFT 0.19.0 stored the factors of experts the other way round"),
    ("0.19.1", "qwen3_moe", 16, None),
    ("0.21.2", "gpt_oss", 16, None),
    (None, "qwen3_moe", 16, "does not say which PEFT stored the factors of its square experts"),
    (None, "qwen3_moe", 24, None),
]


@pytest.mark.parametrize(("version", "model_type", "columns", "misread"), EXPERTS)
def test_experts_by_the_version_that_stored_them(
    version: str | None, model_type: str, columns: int, misread: str | None, tmp_path: Path
) -> None:
    """The rule itself is held against three versions of PEFT in tests/export/fold/test_experts.py."""
    found = why_misread(stacked(tmp_path / "a", version, columns), {"model_type": model_type})
    assert found is None if misread is None else misread in (found or "")


def test_an_mlx_adapter(tmp_path: Path) -> None:
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert why_misread(tmp_path, LLAMA) == MLX
