"""Several adapters in one fold, against PEFT's own combination of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peft_models import QKV, all_rows, assert_equal, base_model, load, make_adapter

from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def test_several_adapters_are_summed_up_with_their_weights(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32")
    first = make_adapter(base, tmp_path / "a", "float32", peft.LoraConfig(r=4, target_modules=QKV), seed=1)
    second = make_adapter(
        base,
        tmp_path / "b",
        "float32",
        peft.LoraConfig(r=2, use_rslora=True, target_modules=["v_proj", "o_proj"]),
        2,
    )
    model = peft.PeftModel.from_pretrained(load(base, "float32"), first, adapter_name="a")
    model.load_adapter(second, adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.3, -1.5], "both", combination_type="cat")
    model.set_adapter("both")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapters = [(Adapter.open(first), 0.3), (Adapter.open(second), -1.5)]
    folded = Folded(Checkpoint.open(base), adapters)
    assert_equal(folded, Checkpoint.open(tmp_path / "merged"), allowed=1 << 30, step=1e-6)
    assert "a × 0.3" in folded.touched["model.layers.0.self_attn.v_proj.weight"]


def test_adapters_of_different_kinds_are_summed_up_as_active_together(tmp_path: Path) -> None:
    """LoRA and DoRA both active: PEFT's unmerged model adds what each changes."""
    base = base_model(tmp_path / "base", "llama", "float32")
    lora = make_adapter(base, tmp_path / "a", "float32", peft.LoraConfig(r=4, target_modules=QKV), seed=1)
    dora = make_adapter(
        base,
        tmp_path / "b",
        "float32",
        peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]),
        seed=2,
    )
    model = peft.PeftModel.from_pretrained(load(base, "float32"), lora, adapter_name="a")
    model.load_adapter(dora, adapter_name="b")
    model.base_model.set_adapter(["a", "b"])
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    with torch.no_grad():
        wanted = layer(torch.eye(64)).T.numpy()
    folded = Folded(Checkpoint.open(base), [(Adapter.open(lora), 1.0), (Adapter.open(dora), 1.0)])
    got = all_rows(folded, "model.layers.1.self_attn.q_proj.weight")
    assert np.abs(got - wanted).max() <= 2e-6
