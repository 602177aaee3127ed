"""Adapters of mlx-lm: their factors by hand, and the whole fold against what mlx-lm itself fuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import refused
from mlx_lm_oracle import made_by_mlx_lm
from safetensors.numpy import load_file, save_file

from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.sources.adapter_base import base_of
from lorafold.weights import Checkpoint

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
EXPERT = "model.layers.0.mlp.experts.{}.{}"
RANDOM = np.random.default_rng(0)


def drawn(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def base_folder(folder: Path) -> Checkpoint:
    """Two linear layers and three experts."""
    folder.mkdir()
    tensors = {f"{Q}.weight": drawn(8, 6), f"{V}.weight": drawn(4, 6)}
    for expert in range(3):
        for leaf, shape in (("gate_proj", (5, 6)), ("up_proj", (5, 6)), ("down_proj", (6, 5))):
            tensors[EXPERT.format(expert, leaf) + ".weight"] = drawn(*shape)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen3_moe"}')
    return Checkpoint.open(folder)


def config(folder: Path, **changes: Any) -> None:
    """What mlx-lm writes, with its name for the number of layers since 0.19."""
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "fine_tune_type": "lora",
        "model": "mlx-community/Some-Model",
        "num_layers": 16,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    settings = {name: value for name, value in (settings | changes).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def adapter_of(folder: Path, tensors: dict[str, Any], **changes: Any) -> Adapter:
    config(folder, **changes)
    save_file(tensors, folder / "adapters.safetensors")
    return Adapter.open(folder)


def test_a_layer_by_hand(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    a, b = drawn(6, 2), drawn(2, 8)
    adapter = adapter_of(tmp_path / "a", {f"{Q}.lora_a": a, f"{Q}.lora_b": b})
    folded = Folded(base, [(adapter, 1.0)])
    wanted = base.rows(f"{Q}.weight", 0, 8) + 20.0 * (a @ b).T
    assert np.allclose(folded.rows(f"{Q}.weight", 0, 8), wanted, atol=1e-4)
    assert np.allclose(folded.exact_rows(f"{Q}.weight", [3, 1]), wanted[[3, 1]], atol=1e-4)
    assert set(folded.touched) == {f"{Q}.weight"}


def test_the_base_is_the_one_that_mlx_lm_names(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "a", {f"{Q}.lora_a": drawn(6, 2), f"{Q}.lora_b": drawn(2, 8)})
    assert adapter.config.base_model_name_or_path == "mlx-community/Some-Model"
    named = base_of(adapter.folder)
    assert named.spec == "mlx-community/Some-Model" and named.at.endswith("adapter_config.json: model")


def test_the_words_are_those_of_mlx_lm(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    tensors = {f"{Q}.lora_a": drawn(6, 2), f"{Q}.lora_b": drawn(2, 8)}
    adapter = adapter_of(tmp_path / "a", tensors | {f"{Q}.m": drawn(8)})
    refused(
        lambda: Folded(base, [(adapter, 1.0)]), "does not set fine_tune_type dora, so that mlx-lm ignores"
    )
    adapter = adapter_of(tmp_path / "b", tensors, fine_tune_type="dora")
    refused(
        lambda: Folded(base, [(adapter, 1.0)]), "which fine_tune_type dora in adapter_config.json promises"
    )


def test_a_full_fine_tune_replaces_tensors(tmp_path: Path) -> None:
    base, new = base_folder(tmp_path / "base"), drawn(8, 6)
    adapter = adapter_of(tmp_path / "a", {f"{Q}.weight": new}, fine_tune_type="full", lora_parameters=None)
    folded = Folded(base, [(adapter, 1.0)])
    assert np.array_equal(folded.rows(f"{Q}.weight", 0, 8), new)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fine_tune_type": "soft"}, "got 'soft', expected lora, dora or full"),
        ({"lora_parameters": None}, "lora_parameters is missing from mlx-lm's configuration"),
        ({"lora_parameters": {"rank": 2}}, "lora_parameters has no scale"),
        ({"lora_parameters": {"scale": 2.0}}, "lora_parameters has no rank"),
        ({"lora_parameters": {"rank": 4, "scale": 20.0}}, "A has rank 2 .* the configuration says 4"),
        (
            {
                "fine_tune_type": None,
                "num_layers": None,
                "lora_layers": 16,
                "lora_parameters": {"rank": 2, "scale": 10.0, "alpha": 16},
            },
            "scale is 10 by itself, or 80 if its alpha counts",
        ),
    ],
)
def test_configurations_that_do_not_tell(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    tensors = {f"{Q}.lora_a": drawn(6, 2), f"{Q}.lora_b": drawn(2, 8)}
    base = base_folder(tmp_path / "base")
    refused(lambda: Folded(base, [(adapter_of(tmp_path / "a", tensors, **changes), 1.0)]), problem)


def test_an_alpha_that_changes_nothing_or_is_ignored(tmp_path: Path) -> None:
    """Equal to the rank it never counted; beside a newer field, a recipe's alpha was not read."""
    tensors = {f"{Q}.lora_a": drawn(6, 2), f"{Q}.lora_b": drawn(2, 8)}
    equal = {"rank": 2, "scale": 10.0, "alpha": 2}
    old = adapter_of(tmp_path / "a", tensors, fine_tune_type=None, num_layers=None, lora_parameters=equal)
    new = adapter_of(tmp_path / "b", tensors, lora_parameters=equal | {"alpha": 16})
    assert old.config.scale(Q) == new.config.scale(Q) == 10.0


def test_weights_that_cannot_be_folded(tmp_path: Path) -> None:
    config(tmp_path / "a")
    refused(lambda: Adapter.open(tmp_path / "a"), "an mlx-lm adapter without adapters.safetensors")
    (tmp_path / "a" / "0000200_adapters.safetensors").write_bytes(b"")
    error = refused(lambda: Adapter.open(tmp_path / "a"), "an mlx-lm adapter without")
    assert error.fix == "copy 0000200_adapters.safetensors to adapters.safetensors"
    (tmp_path / "a" / "adapters.npz").write_bytes(b"")
    refused(lambda: Adapter.open(tmp_path / "a"), "only with the older adapters.npz")
    embedding = {"model.embed_tokens.lora_a": drawn(10, 2), "model.embed_tokens.lora_b": drawn(2, 6)}
    refused(lambda: adapter_of(tmp_path / "b", embedding), "tied embedding on both sides")
    one = {f"{Q}.lora_a": drawn(6), f"{Q}.lora_b": drawn(2, 8)}
    refused(lambda: adapter_of(tmp_path / "c", one), "expected two dimensions")
    experts = {
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a": drawn(5, 6),
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b": drawn(3, 5, 2),
    }
    refused(lambda: adapter_of(tmp_path / "d", experts), "has 5 rows, expected 2 for each of 3 experts")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fold_equals_what_mlx_lm_fuses(kind: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder, fused = made_by_mlx_lm(base.folder, tmp_path / "made", kind, 2, 3.5)
    config(folder, fine_tune_type=kind, lora_parameters={"rank": 2, "scale": 3.5, "dropout": 0.0})
    folded = Folded(base, [(Adapter.open(folder), 1.0)])
    wanted = load_file(fused / "model.safetensors")
    assert set(folded.touched) == {
        name for name, tensor in wanted.items() if not np.array_equal(tensor, base.rows(name, 0, len(tensor)))
    }
    assert len(folded.touched) == (2 if kind == "dora" else 11)
    for name, tensor in wanted.items():
        assert np.abs(folded.rows(name, 0, len(tensor)) - tensor).max() <= 1e-5, name
