"""Adapters on the families with rows of their own: the GGUF's rows, folded, are those of PEFT's merge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_families import tiny_family

from lorafold.adapters.folder import Adapter
from lorafold.export.arch import map_tensors
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.rows import read_block
from lorafold.weights import Checkpoint

# Family -> parameters of experts, beside all linear layers.
ADAPTED = {
    "qwen35": [],
    "qwen3-next": ["experts.gate_up_proj", "experts.down_proj"],
    "gemma4": [],
    "gpt-oss": ["experts.gate_up_proj", "experts.down_proj"],
    "deepseek-v3": ["experts.gate_up_proj", "experts.down_proj"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ADAPTED)
def test_rows_of_the_fold_are_those_of_the_merge(family: str, tmp_path: Path) -> None:
    """What transformers does not load (the block that predicts a further token) keeps its rows."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = tiny_family(family, tmp_path / "base")
    experts = {"target_parameters": ADAPTED[family]} if ADAPTED[family] else {}
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **experts)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged, plain = Checkpoint.open(tmp_path / "merged"), Checkpoint.open(base)
    folded = Folded(plain, [(Adapter.open(tmp_path / "adapter"), 1.0)])
    config = json.loads((base / "config.json").read_text())
    wanted = {tensor.name: tensor for tensor in map_tensors(config, merged.tensors)}
    changed = 0
    for tensor in map_tensors(config, folded.tensors):
        got, before = (read_block(source, tensor, 0, tensor.rows) for source in (folded, plain))
        if tensor.name not in wanted:
            assert tensor.name.startswith("blk.4.") and np.array_equal(got, before)
            continue
        other = wanted[tensor.name]
        assert np.abs(got - read_block(merged, other, 0, other.rows)).max() <= 1e-6, tensor.name
        changed += not np.array_equal(got, before)
    assert changed > 10
