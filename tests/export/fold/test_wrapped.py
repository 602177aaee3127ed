"""An adapter made on a wrapper, or on the text class alone, changes the same tensors of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onto_cases import drawn, merged, write_adapter, write_base

from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

# As the files of wrappers begin: transformers 5, older ones, SmolVLM and Idefics, models without a head.
PREFIXES = ("model.language_model.", "language_model.model.", "model.text_model.", "language_model.")
PARTS = ("layers.0.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.q_proj")


@pytest.mark.parametrize("inside", PREFIXES)
@pytest.mark.parametrize("made_on", ["the wrapper", "the text class"])
def test_it_finds_the_text_part(tmp_path: Path, inside: str, made_on: str) -> None:
    base = drawn({f"{inside}{part}.weight": (8, 8) for part in PARTS})
    tower = drawn({"model.vision_model.layers.0.self_attn.q_proj.weight": (8, 8)}, seed=2)
    write_base(tmp_path / "base", base | tower, "F32")
    prefix = inside if made_on == "the wrapper" else "model."
    named = {name.replace(inside, prefix, 1): values for name, values in base.items()}
    modules = [name.removesuffix(".weight") for name in named]
    adapter = write_adapter(tmp_path / "adapter", named, modules)
    fold = Folded(Checkpoint.open(tmp_path / "base"), [(Adapter.open(adapter), 1.0)])
    assert set(fold.touched) == set(base)
    wanted = merged(named, adapter)
    for name in base:
        rows = fold.rows(name, 0, 8)
        assert np.abs(rows - wanted[name.replace(inside, prefix, 1)]).max() <= 1e-6
