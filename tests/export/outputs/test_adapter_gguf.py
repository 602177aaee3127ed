"""Adapter files: llama.cpp with base and adapter answers as transformers with PEFT does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from oracles import convert_lora_to_gguf, llama_logits
from tiny_families import DEEP, FAMILIES, tiny_family
from tiny_gguf import write_tiny_gguf
from tiny_models import load_model

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError, NumericError
from lorafold.export.arch import find, map_tensors, skipped_tensors
from lorafold.export.fold.folded import Folded
from lorafold.export.outputs.adapter_gguf import AdapterPlan, plan_adapter_gguf
from lorafold.weights import Checkpoint

IDS = [int(number) for number in np.random.default_rng(11).integers(3, 300, size=20)]


@dataclass
class Case:
    """A base, adapters that PEFT made for it, and what PEFT computes with all of them."""

    base: Path
    adapters: list[Path]
    logits: NDArray[np.float32]

    def plan(self, weights: Sequence[float] = (), **arguments: Any) -> AdapterPlan:
        config = json.loads((self.base / "config.json").read_text())
        source = Checkpoint.open(self.base)
        pairs = [
            (Adapter.open(path), weight)
            for path, weight in zip(self.adapters, weights or [1.0] * len(self.adapters), strict=True)
        ]
        tensors = map_tensors(config, source.tensors)
        folded = Folded(source, pairs)
        skipped = skipped_tensors(config, source.tensors)
        return plan_adapter_gguf(
            folded, tensors, find(config).gguf, "tuned", at=self.adapters[0], left_out=skipped, **arguments
        )

    def written(self, out: Path, **arguments: Any) -> Path:
        plan = self.plan(**arguments)
        plan.write(out)
        assert out.stat().st_size == plan.size
        return out


def make(
    folder: Path,
    family: str,
    *configs: dict[str, Any],
    seed: int = 0,
    save_embeddings: bool = False,
    **changes: Any,
) -> Case:
    """Adapters with random A and B for a tiny model, and the logits with all of them active."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny_family(family, folder / "base", seed=seed, **changes)
    network = load_model(base)
    names = [f"a{number}" for number in range(len(configs))]
    peft = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **configs[0]), adapter_name=names[0])
    for name, fields in list(zip(names, configs, strict=True))[1:]:
        peft.add_adapter(name, LoraConfig(task_type="CAUSAL_LM", **fields))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                value += torch.randn(value.shape, generator=generator) * 0.1
    peft.save_pretrained(folder / "adapters", selected_adapters=names, save_embedding_layers=save_embeddings)
    if len(names) > 1:
        peft.base_model.set_adapter(names)
    with torch.inference_mode():
        logits = peft.eval()(torch.tensor([IDS])).logits[0].numpy()
    return Case(base, [folder / "adapters" / name for name in names], logits)


def differences(case: Case, adapter: Path, folder: Path) -> tuple[float, float]:
    """Largest difference of llama.cpp's logits from PEFT's, with the adapter and without."""
    base = write_tiny_gguf(case.base, folder / "base.gguf")
    with_it = np.abs(llama_logits(base, IDS, adapter) - case.logits).max()
    return float(with_it), float(np.abs(llama_logits(base, IDS) - case.logits).max())


LINEAR = {"target_modules": "all-linear", "r": 4, "lora_alpha": 6}
SCALED: dict[str, dict[str, Any]] = {
    "plain": LINEAR,
    "rank-stabilised": LINEAR | {"use_rslora": True},
    "patterns": LINEAR
    | {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7},
        "alpha_pattern": {"v_proj": 17, "layers.0.self_attn.o_proj": 1},
    },
    "negative alpha": LINEAR | {"lora_alpha": -5},
    "alpha of zero": LINEAR | {"lora_alpha": 0},
}


@pytest.mark.parametrize(
    "name",
    ["patterns", *(pytest.param(name, marks=pytest.mark.slow) for name in SCALED if name != "patterns")],
)
def test_llama_cpp_answers_as_peft_does(tmp_path: Path, name: str) -> None:
    case = make(tmp_path, "llama", SCALED[name])
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 1e-3
    assert without > 0.05 or name == "alpha of zero"


# Of the newer families those whose rows are moved, fused or multiplied in a way of their own.
SERVED = ("falcon-groups", "gpt-neox", "glm4-vision", "granite-swa", "muse-glimmer")

# What llama.cpp never asks an adapter for, and what it does ask for in the same architecture.
NOT_ASKED = {
    "gemma4": (["per_layer_model_projection"], ["q_proj", "o_proj", "gate_proj", "per_layer_input_gate"]),
    "gemma3n": (["per_layer_model_projection"], ["q_proj", "v_proj", "down_proj", "linear_left"]),
    "glm4-flash": (["kv_a_proj_with_mqa"], ["o_proj"]),
    "deepseek-v2": (["q_proj"], ["o_proj"]),
    "deepseek-v3": (["q_b_proj", "o_proj"], ["o_proj"]),
    "minicpm3": (["kv_b_proj"], ["o_proj", "gate_proj"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", NOT_ASKED)
def test_weights_that_llama_cpp_never_asks_an_adapter_for(tmp_path: Path, family: str) -> None:
    refused, served = NOT_ASKED[family]
    case = make(tmp_path / "refused", family, {"target_modules": refused, "r": 4})
    with pytest.raises(InputError, match=r"never asks an adapter for .*; fix: "):
        case.written(tmp_path / "adapter.gguf")
    case = make(tmp_path / "served", family, {"target_modules": served, "r": 4})
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 2e-3 * np.abs(case.logits).max() and without > 10 * with_it


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        *(family for family in FAMILIES if family not in ("llama", *DEEP, *NOT_ASKED)),
        *SERVED,
    ],
)
def test_every_architecture(tmp_path: Path, family: str) -> None:
    case = make(tmp_path, family, LINEAR | {"use_rslora": True})  # of a multimodal model, images too
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 1e-3 * np.abs(case.logits).max() and without > 10 * with_it


EXPERTS = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]}
EXPERTS |= {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "experts": ("qwen3-moe", EXPERTS, {}),
    "experts of mixtral": ("mixtral", EXPERTS, {}),
    "embedding": ("llama", LINEAR | {"target_modules": ["embed_tokens", "q_proj"]}, {}),
    "output head": ("llama", LINEAR | {"target_modules": ["lm_head", "k_proj"], "r": 5}, {}),
    "pissa": ("llama", LINEAR | {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, {}),
}


@pytest.mark.parametrize(
    "name", [name if name == "experts" else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)
def test_other_weights(tmp_path: Path, name: str) -> None:
    family, fields, changes = OTHERS[name]
    case = make(tmp_path, family, fields, **changes)
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 1e-3 and without > 0.01


STACKS = {
    "gpt-oss": "mlp.experts",  # stored transposed, gate and up row by row in turn
    "llama4": "feed_forward.experts",  # stored transposed
    "qwen3-vl-moe": "mlp.experts",  # stored transposed, and not so in the loaded model
    "gemma4-moe": "experts",  # each expert's result is multiplied by a number, before an adapter's is added
    "jamba": "feed_forward.experts",
    "glm4-flash": "mlp.experts",
}


@pytest.mark.parametrize(
    "family",
    [family if family == "gpt-oss" else pytest.param(family, marks=pytest.mark.slow) for family in STACKS],
)
def test_stacked_experts(tmp_path: Path, family: str) -> None:
    parameters = [f"{STACKS[family]}.{name}" for name in ("gate_up_proj", "down_proj")]
    fields = {"r": 3, "lora_alpha": 5, "target_modules": ["o_proj"], "target_parameters": parameters}
    case = make(tmp_path, family, fields)
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 1e-3 * np.abs(case.logits).max() and without > 10 * with_it


def test_copies_of_the_bases_embeddings_are_no_change(tmp_path: Path) -> None:
    """PEFT saves whole embeddings beside adapted ones; changed copies are refused like other replacements."""
    from safetensors.numpy import load_file, save_file

    fields = LINEAR | {"target_modules": ["embed_tokens", "lm_head"]}
    case = make(tmp_path, "llama", fields, save_embeddings=True)
    path = case.adapters[0] / "adapter_model.safetensors"
    tensors = load_file(path)
    copies = [name for name in tensors if "lora" not in name]
    assert len(copies) == 2
    with_it, without = differences(case, case.written(tmp_path / "adapter.gguf"), tmp_path)
    assert with_it < 1e-3 and without > 0.01
    tensors[copies[0]][5, 7] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"is changed by more than a low-rank product \(replaced"):
        case.plan()


def test_two_adapters_become_one(tmp_path: Path) -> None:
    """Ranks add up; the file answers as both adapters together, and as the folded model, weights included."""
    second = {"target_modules": ["q_proj", "up_proj"], "r": 3, "lora_alpha": 9, "use_rslora": True}
    case = make(tmp_path, "llama", LINEAR, second)
    with_it, without = differences(case, case.written(tmp_path / "both.gguf"), tmp_path)
    assert with_it < 1e-3 and without > 0.01

    weights = (0.5, -1.25)
    adapter = case.written(tmp_path / "weighted.gguf", weights=weights)
    pairs = [(Adapter.open(path), weight) for path, weight in zip(case.adapters, weights, strict=True)]
    folded = Folded(Checkpoint.open(case.base), pairs)
    one_file = llama_logits(write_tiny_gguf(case.base, tmp_path / "folded.gguf", folded), IDS)
    assert np.abs(llama_logits(tmp_path / "base.gguf", IDS, adapter) - one_file).max() < 1e-3
    assert np.abs(one_file - case.logits).max() > 0.01
    ranks = {t.name: int(t.shape[0]) for t in gguf.GGUFReader(adapter).tensors if t.name.endswith("lora_b")}
    assert ranks["blk.0.attn_q.weight.lora_b"] == 7 and ranks["blk.0.attn_k.weight.lora_b"] == 4


@pytest.mark.slow
def test_plain_adapter_is_the_converters(tmp_path: Path) -> None:
    """Where llama.cpp's converter is right (one alpha, alpha / rank), names, alpha and bytes are its own."""
    case = make(tmp_path, "llama", LINEAR)
    ours = gguf.GGUFReader(case.written(tmp_path / "ours.gguf"))
    out = convert_lora_to_gguf(case.adapters[0], case.base, tmp_path / "theirs.gguf", "--outtype", "f32")
    theirs = gguf.GGUFReader(out)
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key
        assert ours.fields[key].types == theirs.fields[key].types
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == expected.keys()
    for tensor in ours.tensors:
        assert list(tensor.shape) == list(expected[tensor.name].shape), tensor.name
        assert tensor.data.tobytes() == expected[tensor.name].data.tobytes(), tensor.name


def test_scale_goes_into_alpha_and_leaves_the_factors_alone(tmp_path: Path) -> None:
    """alpha / sqrt(4) = 3 is llama.cpp's alpha / 4 with an alpha of 12; a module of its own scale differs."""
    fields = LINEAR | {"use_rslora": True, "alpha_pattern": {"layers.0.self_attn.v_proj": 18}}
    case = make(tmp_path, "qwen2", fields)
    reader = gguf.GGUFReader(case.written(tmp_path / "adapter.gguf"))
    assert reader.fields["adapter.lora.alpha"].contents() == 12.0
    source = Adapter.open(case.adapters[0]).source
    values = {tensor.name: tensor.data for tensor in reader.tensors}
    for layer, factor in ((0, 3.0), (1, 1.0)):
        stored = source.rows(f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_B.weight", 0, 32)
        assert np.array_equal(values[f"blk.{layer}.attn_v.weight.lora_b"], stored * np.float32(factor))


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16])
def test_half_precision(tmp_path: Path, kind: Type) -> None:
    case = make(tmp_path, "qwen2", LINEAR)
    reader = gguf.GGUFReader(case.written(tmp_path / "adapter.gguf", type=kind))
    assert {tensor.tensor_type for tensor in reader.tensors} == {kind}
    exact = gguf.GGUFReader(case.written(tmp_path / "exact.gguf"))
    for half, whole in zip(reader.tensors, exact.tensors, strict=True):
        rounded = gguf.quants.dequantize(half.data, kind)
        assert half.name == whole.name
        assert np.allclose(rounded, whole.data, rtol=2**-8, atol=1e-6)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("llama", LINEAR | {"use_dora": True}, r"is changed by more than a low-rank product \(.*DoRA"),
    "lora_bias": ("llama-biased", LINEAR | {"lora_bias": True}, r"proj\.bias is changed by more.*bias"),
    "modules_to_save": (
        "llama",
        LINEAR | {"modules_to_save": ["lm_head"]},
        r"lm_head\.weight is changed by more",
    ),
    "norms": ("llama", LINEAR | {"modules_to_save": ["norm"]}, r"norm\.weight is changed by more"),
    "trained tokens": (
        "llama",
        LINEAR | {"trainable_token_indices": [3, 5]},
        r"embed_tokens\.weight is changed by more.*trained tokens",
    ),
    "tied embedding": (
        "qwen2",
        LINEAR | {"target_modules": ["embed_tokens"]},
        r"embed_tokens\.weight is both embedding and output head",
    ),
    "head of a tied model": (
        "qwen2",
        LINEAR | {"target_modules": ["lm_head"]},
        r"lm_head\.weight is changed, and the base has no such tensor|both embedding and output head",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_cannot_carry_is_refused(tmp_path: Path, name: str) -> None:
    family, fields, problem = REFUSED[name]
    case = make(tmp_path, family, fields)
    with pytest.raises(InputError, match=problem) as error:
        case.plan()
    assert "--format gguf" in str(error.value) and str(case.adapters[0]) in str(error.value)


def test_head_that_is_normalised_is_refused(tmp_path: Path) -> None:
    """Index divides the rows of its head by their norms: the change is not low-rank after that."""
    case = make(tmp_path, "llama", LINEAR | {"target_modules": ["lm_head"]})
    source = Checkpoint.open(case.base)
    config = json.loads((case.base / "config.json").read_text())
    tensors = [
        replace(tensor, op="l2_normalize") if tensor.name == "output.weight" else tensor
        for tensor in map_tensors(config, source.tensors)
    ]
    folded = Folded(source, [(Adapter.open(case.adapters[0]), 1.0)])
    with pytest.raises(InputError, match=r"lm_head\.weight is converted by l2_normalize"):
        plan_adapter_gguf(folded, tensors, "llama", "tuned")


def test_no_adapter(tmp_path: Path) -> None:
    base = tiny_family("llama", tmp_path / "base")
    source = Checkpoint.open(base)
    config = json.loads((base / "config.json").read_text())
    with pytest.raises(InputError, match="changes nothing"):
        plan_adapter_gguf(Folded(source), map_tensors(config, source.tensors), "llama", "tuned")


def test_value_too_large_for_f16(tmp_path: Path) -> None:
    case = make(tmp_path, "llama", LINEAR | {"alpha_pattern": {"layers.0.self_attn.v_proj": 6e7}})
    plan = case.plan(type=Type.F16)
    with pytest.raises(NumericError, match=r"cannot be written as F16.*--dtype f32") as error:
        plan.write(tmp_path / "adapter.gguf")
    assert error.value.at == "blk.0.attn_v.weight.lora_b"
    assert not (tmp_path / "adapter.gguf").exists()
