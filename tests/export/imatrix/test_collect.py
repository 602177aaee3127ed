"""Collected importance matrices: against a forward pass by hand, for every architecture, through PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_families import DEEP, FAMILIES, tiny_family
from tiny_models import load_model

from lorafold.errors import InputError
from lorafold.export.arch import map_tensors
from lorafold.export.arch.table import find
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.data import NOT_COLLECTED
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.quant.mixture import is_quantizable
from lorafold.weights import Checkpoint

# One token attends to itself alone: attention is then the identity on v, and a layer is easy to write out.
TOKENS = [7, 3, 250, 9, 3]
Array = NDArray[np.float64]


def load(folder: Path) -> tuple[Any, list[MappedTensor]]:
    config = json.loads((folder / "config.json").read_text())
    tensors = map_tensors(config, Checkpoint.open(folder).tensors)
    return load_model(folder), tensors


def weights(model: Any) -> dict[str, Array]:
    return {name: value.detach().double().numpy() for name, value in model.named_parameters()}


def normed(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * weight)


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


def attention_by_hand(w: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """The inputs of q, k, v and the output by name; the feed-forward input."""
    layer = "model.layers.0"
    x = w["model.embed_tokens.weight"][TOKENS]
    inputs = normed(x, w[f"{layer}.input_layernorm.weight"])
    v = inputs @ w[f"{layer}.self_attn.v_proj.weight"].T
    attended = np.repeat(v.reshape(len(TOKENS), 2, 16), 2, axis=1).reshape(len(TOKENS), 64)
    h = x + attended @ w[f"{layer}.self_attn.o_proj.weight"].T
    seen = {"attn_q": inputs, "attn_k": inputs, "attn_v": inputs, "attn_output": attended}
    return seen, normed(h, w[f"{layer}.post_attention_layernorm.weight"])


def assert_sums(matrix: Imatrix, name: str, inputs: Array) -> None:
    entry = matrix.entries[name]
    assert entry.counts.tolist() == [len(inputs)]
    assert np.allclose(entry.sums, np.square(inputs).sum(0), rtol=1e-4), name


def test_dense_layer_by_hand(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    model, tensors = load(tiny_family("llama", tmp_path / "llama", seed=3, **changes))
    reported: list[float] = []
    matrix = collect(
        model,
        tensors,
        [[token] for token in TOKENS],
        dataset="five words",
        progress=lambda step, done, total, note="": reported.append(done),
    )
    w = weights(model)
    seen, ffn = attention_by_hand(w)
    gate = ffn @ w["model.layers.0.mlp.gate_proj.weight"].T
    up = ffn @ w["model.layers.0.mlp.up_proj.weight"].T
    seen |= {"ffn_gate": ffn, "ffn_up": ffn, "ffn_down": silu(gate) * up}
    assert matrix.entries.keys() == {f"blk.0.{name}.weight" for name in seen}
    for name, inputs in seen.items():
        assert_sums(matrix, f"blk.0.{name}.weight", inputs)
    assert (matrix.datasets, matrix.chunks, matrix.chunk_size) == (("five words",), 5, 1)
    assert reported == [0, 1, 2, 3, 4, 5]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_experts_by_hand(tmp_path: Path) -> None:
    changes = {"num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    model, tensors = load(tiny_family("mixtral", tmp_path / "mixtral", seed=5, **changes))
    matrix = collect(model, tensors, [[token] for token in TOKENS])
    w = weights(model)
    seen, ffn = attention_by_hand(w)
    for name, inputs in seen.items():
        assert_sums(matrix, f"blk.0.{name}.weight", inputs)
    router = next(value for name, value in w.items() if name.endswith("mlp.gate.weight"))
    fused = next(value for name, value in w.items() if name.endswith("gate_up_proj"))
    chosen = np.argsort(-(ffn @ router.T), axis=1)[:, :2]
    for expert in range(4):
        inputs = ffn[(chosen == expert).any(axis=1)]
        gate, up = np.split(inputs @ fused[expert].T, 2, axis=1)
        for name, x in {"gate": inputs, "up": inputs, "down": silu(gate) * up}.items():
            entry = matrix.entries[f"blk.0.ffn_{name}_exps.weight"]
            assert entry.counts[expert] == len(inputs)
            share = entry.sums.reshape(4, -1)[expert]
            assert np.allclose(share, np.square(x).sum(0), rtol=1e-4), (name, expert)


QUICK = ("llama-tied", "qwen3-moe", "phi3", "gpt2")
# Of the newer families those that are measured.
MEASURED = (
    *("falcon-groups", "falcon-h1", "gemma3n", "gpt-neox", "granite-swa", "mellum", "minicpm3", "mpt"),
    "muse-glimmer",
)


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in (*FAMILIES, *MEASURED)
            if family not in (*QUICK, *DEEP)
        ),
    ],
)
def test_every_architecture_is_covered(tmp_path: Path, family: str) -> None:
    """Each matrix of a block has an entry of its size, and each token was counted at it."""
    folder = tiny_family(family, tmp_path / family)
    if find(json.loads((folder / "config.json").read_text())).gguf in NOT_COLLECTED:
        pytest.skip("refused by name: test_data.py::test_an_architecture_that_is_not_measured")
    model, tensors = load(folder)
    matrix = collect(model, tensors, [range(8), range(20, 24)])
    shapes = {
        t.name: t.shape for t in tensors if t.name.startswith("blk.") and is_quantizable(t.name, t.shape)
    }
    assert matrix.entries.keys() == shapes.keys()
    assert matrix.weights(list(shapes.items())).keys() == shapes.keys()
    for name, entry in matrix.entries.items():
        per_token = 2 if "_exps" in name else 1
        assert entry.counts.sum() == 12 * per_token, name


def test_adapter_that_does_nothing_changes_nothing(tmp_path: Path) -> None:
    """Through PEFT's wrappers, with B at zero, the sums are those of the base."""
    from peft import LoraConfig, get_peft_model

    model, tensors = load(tiny_family("qwen2", tmp_path / "qwen2"))
    plain = collect(model, tensors, [range(9)])
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).eval()
    tuned = collect(wrapped, tensors, [range(9)])
    assert tuned.entries.keys() == plain.entries.keys()
    for name, entry in plain.entries.items():
        assert np.array_equal(tuned.entries[name].sums, entry.sums), name


def test_no_text(tmp_path: Path) -> None:
    model, tensors = load(tiny_family("llama", tmp_path / "llama"))
    with pytest.raises(InputError, match="no text to collect"):
        collect(model, tensors, [[], []])


def test_model_of_another_architecture(tmp_path: Path) -> None:
    model, _ = load(tiny_family("gpt2", tmp_path / "gpt2"))
    _, tensors = load(tiny_family("llama", tmp_path / "llama"))
    with pytest.raises(InputError, match=r"0 layers of the model are called layers\.0\."):
        collect(model, tensors, [[1]])
    assert not any(module._forward_pre_hooks for module in model.modules())
