"""Collected importance matrices: by hand, against llama.cpp's own products for every family, through PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import llama_imatrix
from own_gguf import our_gguf
from tiny_families import DEEP, FAMILIES, FURTHER, NEWER, tiny_family
from tiny_models import load_model

from lorafold.errors import InputError
from lorafold.export import ExportConfig
from lorafold.export.arch import map_tensors
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.collect import collect, collect_by_layer, collected_names
from lorafold.export.imatrix.data import folded_model, layered_model
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.inputs import open_inputs
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


QUICK = ("llama-tied", "qwen3-moe", "gpt2")
IDS = [int(number) for number in np.random.default_rng(7).integers(3, 300, size=24)]
# How much is allowed where llama.cpp computes a little otherwise than transformers: Gemma 3n as its row's
# caveats say, Gemma 4 by its GELU, which goes through a table in float16 and is amplified by the attention.
APART = {"gemma3n": 3e-3, "gemma4": 3e-3}
# Multipliers that transformers applies to what enters a matrix are in the matrix itself in the GGUF. One
# factor for a whole tensor weighs its columns as before.
UP_TO_A_FACTOR = ("falcon-h1",)
UNLIKE = ("phi-moe",)  # llama.cpp normalises in another way, as a caveat says


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in (*FAMILIES, *NEWER, *FURTHER, "mixtral-fused")
            if family not in (*QUICK, *DEEP, *UNLIKE)
        ),
    ],
)
def test_equals_what_llama_cpp_multiplies_with(tmp_path: Path, family: str) -> None:
    """The sums and counts of llama.cpp's own graph, for every weight of the blocks that is quantized."""
    folder = tiny_family(family, tmp_path / family)
    theirs = llama_imatrix(our_gguf(folder, tmp_path / "model.gguf"), IDS)
    model, tensors = load(folder)
    entries = collect(model, tensors, [IDS]).entries
    quantized = {tensor.name for tensor in tensors if is_quantizable(tensor.name, tensor.shape)}
    assert entries.keys() == theirs.keys() & quantized
    assert entries.keys() == collected_names(tensors, json.loads((folder / "config.json").read_text()))
    for name, entry in entries.items():
        sums, counts = theirs[name]
        assert entry.counts.tolist() == counts.tolist(), name
        ours = entry.sums.astype(np.float64)
        if family in UP_TO_A_FACTOR:
            ours *= sums.sum() / ours.sum()
        assert np.abs(ours - sums.ravel()).max() < APART.get(family, 1e-3) * sums.max(), name


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in ("deepseek-v3", "gemma3n", "jamba", "qwen3-next", "gpt-oss", "gpt-neox")
        ),
    ],
)
def test_by_layer_the_sums_are_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    folder = tiny_family(family, tmp_path / family)
    inputs = open_inputs(ExportConfig(str(folder), out=tmp_path / "out"))
    tensors = map_tensors(inputs.config, inputs.source.tensors)
    texts = [IDS, IDS[:9], IDS[3:12], IDS[5:7]]  # two of one length, which go through together
    whole = collect(folded_model(inputs), tensors, texts)
    found = collect_by_layer(layered_model(inputs), inputs.source, tensors, texts)
    assert found.entries.keys() == whole.entries.keys()
    assert (found.chunks, found.chunk_size) == (whole.chunks, whole.chunk_size)
    for name, entry in whole.entries.items():
        assert found.entries[name].counts.tolist() == entry.counts.tolist(), name
        assert np.abs(found.entries[name].sums - entry.sums).max() <= 1e-4 * entry.sums.max(), name


def test_experts_that_an_adapter_changes(tmp_path: Path) -> None:
    """Base and adapter as the fold makes them: what llama.cpp computes with the model that PEFT merges."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny_family("qwen3-moe", tmp_path / "base")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parameters)
    tuned = get_peft_model(load_model(base), config)
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn_like(weight)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    shutil.copyfile(base / "tokenizer.json", tmp_path / "merged" / "tokenizer.json")
    theirs = llama_imatrix(our_gguf(tmp_path / "merged", tmp_path / "merged.gguf"), IDS)
    plain = llama_imatrix(our_gguf(base, tmp_path / "base.gguf"), IDS)
    inputs = open_inputs(ExportConfig(str(tmp_path / "adapter"), base=str(base), out=tmp_path / "out"))
    tensors = map_tensors(inputs.config, inputs.source.tensors)
    entries = collect(folded_model(inputs), tensors, [IDS]).entries
    for name, entry in entries.items():
        sums, counts = theirs[name]
        assert entry.counts.tolist() == counts.tolist(), name
        assert np.abs(entry.sums - sums.ravel()).max() < 1e-4 * sums.max(), name
    changed = "blk.1.ffn_down_exps.weight"
    assert np.abs(plain[changed][0] - theirs[changed][0]).max() > 0.01 * plain[changed][0].max()


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
    with pytest.raises(InputError, match=r"the model has no place for model\.layers\.0\."):
        collect(model, tensors, [[1]])
    assert not any(module._forward_pre_hooks for module in model.modules())
