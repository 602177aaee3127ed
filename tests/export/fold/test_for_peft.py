"""Adapters that today's PEFT would misread without an error, rewritten for it: the proof's reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_models import all_rows, base_model, load, make_adapter, merged_by_peft
from tiny_base import tiny_tokenizer

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export import ExportConfig
from lorafold.export.fold.folded import Folded
from lorafold.export.fold.for_peft import differs_for_peft, write_for_peft
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.reference.whole import load_base, with_adapter
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def rewritten(base: Path, adapter: Path, folder: Path) -> tuple[Folded, str | None]:
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)])
    folder.mkdir()
    write_for_peft(folded.plans[0], folder)
    return folded, differs_for_peft(folded.plans[0])


FEATURES = {
    "dora": {"r": 4, "target_modules": ["q_proj"], "use_dora": True},
    "saved and tokens": {
        "r": 4,
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
        "trainable_token_indices": [3, 7],
    },
}


@pytest.mark.parametrize("name", ["dora", pytest.param("saved and tokens", marks=pytest.mark.slow)])
def test_wrappers_hide_an_adapter_from_peft(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = base_model(tmp_path / "base", "llama", "float32", tie_word_embeddings=False)
    adapter = make_adapter(base, tmp_path / "a", "float32", peft.LoraConfig(**FEATURES[name]))
    right = merged_by_peft(base, adapter, tmp_path / "right", "float32")
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)])
    assert differs_for_peft(folded.plans[0]) is None
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({f"_orig_mod.{key}": tensor for key, tensor in tensors.items()}, weights)
    _, reason = rewritten(base, adapter, tmp_path / "b")
    assert reason == "its tensors carry the names of wrappers"
    assert load_file(tmp_path / "b" / "adapter_model.safetensors").keys() == tensors.keys()
    merged = merged_by_peft(base, tmp_path / "b", tmp_path / "merged", "float32")
    for tensor in right.tensors:
        assert np.array_equal(all_rows(merged, tensor), all_rows(right, tensor)), tensor


METHODS = {
    "adalora": peft.AdaLoraConfig(
        init_r=4, target_r=3, total_step=10, tinit=1, tfinal=2, target_modules=["q_proj"]
    ),
    "tokens": peft.TrainableTokensConfig(token_indices=[3, 4], target_modules=["embed_tokens"]),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_whose_tensors_are_parameters_are_as_peft_wrote_them(name: str, tmp_path: Path) -> None:
    """Under LoRA's names PEFT would take nothing of them, and the reference would be the base alone."""
    base = base_model(tmp_path / "base", "llama", "float32")
    adapter = make_adapter(base, tmp_path / "a", "float32", METHODS[name])
    _, reason = rewritten(base, adapter, tmp_path / "b")
    assert reason is None
    file = "adapter_model.safetensors"
    assert (tmp_path / "b" / file).stat().st_size > 0
    keys = Checkpoint.of_files(adapter, [adapter / file]).tensors.keys()
    assert Checkpoint.of_files(adapter, [tmp_path / "b" / file]).tensors.keys() == keys


@pytest.mark.slow
def test_an_mlx_adapter_in_peft(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    base = base_model(tmp_path / "base", "llama", "float32")
    random, tensors = np.random.default_rng(0), {}
    for layer in (1, 2):
        module = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_a"] = random.standard_normal((64, 4)).astype(np.float32)
        tensors[f"{module}.lora_b"] = random.standard_normal((4, 64)).astype(np.float32)
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.5, "dropout": 0.0}}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    folded, reason = rewritten(base, tmp_path / "a", tmp_path / "b")
    assert reason == "it is an mlx-lm adapter"
    merged = peft.PeftModel.from_pretrained(load(base, "float32"), tmp_path / "b").merge_and_unload()
    state = merged.state_dict()
    assert len(folded.touched) == 2
    for tensor in folded.touched:
        assert np.abs(all_rows(folded, tensor) - state[tensor].numpy()).max() <= 1e-5, tensor


def _logits(base: Path, adapter: Path) -> Any:
    """What the proof compares an export with."""
    tokenizer = base / "tokenizer.json"
    if not tokenizer.exists():
        tiny_tokenizer(base)
    config = ExportConfig(str(adapter), out=adapter.parent / "out", base=str(base), offline=True)
    inputs = open_inputs(config)
    with torch.no_grad():
        model = with_adapter(load_base(inputs), inputs)
        return model(torch.arange(10, 40)[None]).logits


@pytest.mark.slow
def test_the_reference_is_the_adapter_and_not_the_base_alone(tmp_path: Path) -> None:
    """A wrapper's name hides an adapter from PEFT: the reference would be the plain base."""
    from safetensors.numpy import load_file, save_file

    base = base_model(tmp_path / "base", "llama", "float32")
    adapter = make_adapter(base, tmp_path / "a", "float32", peft.LoraConfig(r=4, target_modules=["q_proj"]))
    right = _logits(base, adapter)
    weights = adapter / "adapter_model.safetensors"
    save_file({f"module.{key}": tensor for key, tensor in load_file(weights).items()}, weights)
    assert torch.equal(_logits(base, adapter), right)


@pytest.mark.slow
def test_a_product_that_peft_leaves_out_is_no_reference(tmp_path: Path) -> None:
    """PEFT 0.21 renames Laguna's shared experts once too often, and loads zeros in their place."""
    import transformers
    from peft_models import draw
    from tiny_models import SIZES, write_model

    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 2,
    }
    experts |= {
        "shared_expert_intermediate_size": 32,
        "head_dim": 16,
        "pad_token_id": 0,
        "num_hidden_layers": 2,
    }
    base = write_model(transformers.LagunaConfig(**(SIZES | experts)), tmp_path / "base", "float32", 0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    draw(peft.get_peft_model(load(base, "float32"), config)).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match=r"PEFT leaves 1 of the adapter's products out"):
        _logits(base, tmp_path / "a")
