"""The fold against PEFT's own merge, feature by feature, on tiny random models.

The oracle is `merge_and_unload().save_pretrained()`: PEFT's arithmetic and transformers' way back to the
file's names. With `rounding="peft"` the numbers must be equal to the bit, in every type.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_models import QKV, all_rows, assert_equal, base_model, load, make_adapter, merged_by_peft

from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Feature:
    """One row of the table: how an adapter is made, and how far PEFT's result may be away.

    Args:
        config: arguments of LoraConfig, or a config.
        family: of the base.
        base: changes to the base's config.
        almost: share of numbers that may fall on the other side of a rounding, for features whose sums PEFT
            takes in another order: norms in float32 (ours in float64), singular values by torch's LAPACK.
    """

    config: dict[str, Any]
    family: str = "llama"
    base: dict[str, Any] = field(default_factory=dict)
    almost: float = 0.0


UNTIED = {"tie_word_embeddings": False}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

FEATURES: dict[str, Feature] = {
    "plain": Feature({"r": 4, "lora_alpha": 16, "target_modules": [*QKV, "down_proj"]}),
    "patterns": Feature(
        {
            "r": 8,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 3, "layers.2.mlp.up_proj": 5},
            "alpha_pattern": {"layers.1.*": 5, "q_proj": 40},
        }
    ),
    "rslora": Feature({"r": 7, "lora_alpha": 16, "use_rslora": True, "target_modules": QKV}),
    "layers": Feature(
        {"r": 2, "target_modules": QKV, "layers_to_transform": [1], "exclude_modules": ["k_proj"]}
    ),
    "regex": Feature({"r": 2, "target_modules": r".*\.[02]\.self_attn\.(q|o)_proj"}),
    "dora": Feature({"r": 4, "target_modules": [*QKV, "down_proj"], "use_dora": True}, almost=2e-4),
    "embedding": Feature({"r": 4, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}, base=UNTIED),
    "dora embedding": Feature(
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True}, base=UNTIED, almost=2e-4
    ),
    "lora_bias": Feature({"r": 4, "target_modules": QKV, "lora_bias": True}, family="qwen2", base=UNTIED),
    "bias lora_only": Feature(
        {"r": 4, "target_modules": QKV, "bias": "lora_only"}, family="qwen2", base=UNTIED
    ),
    "bias all": Feature({"r": 4, "target_modules": ["q_proj"], "bias": "all"}, family="qwen2", base=UNTIED),
    "modules_to_save": Feature(
        {"r": 4, "target_modules": QKV, "modules_to_save": ["lm_head", "norm"]}, base=UNTIED
    ),
    "tokens": Feature({"r": 4, "target_modules": QKV, "trainable_token_indices": [200, 3, 7]}, base=UNTIED),
    "tokens of both": Feature(
        {
            "r": 4,
            "target_modules": QKV,
            "trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [9]},
        },
        base=UNTIED,
    ),
    "pissa": Feature({"r": 4, "target_modules": QKV, "init_lora_weights": "pissa"}, almost=5e-3),
    "olora": Feature({"r": 4, "target_modules": QKV, "init_lora_weights": "olora"}, almost=1e-3),
    "orthogonal": Feature({"r": 4, "target_modules": QKV, "init_lora_weights": "orthogonal"}),
    "mica": Feature({"r": 4, "target_modules": QKV, "init_lora_weights": "mica"}),
    "multimodal": Feature({"r": 4, "target_modules": "all-linear"}, family="gemma3"),
    "multimodal by names": Feature({"r": 4, "target_modules": ["q_proj", "o_proj"]}, family="gemma3"),
    "multimodal text": Feature({"r": 4, "target_modules": r".*language_model.*_proj"}, family="gemma3"),
    "conv1d": Feature(
        {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, family="gpt2"
    ),
    "conv1d dora": Feature(
        {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
        family="gpt2",
        almost=2e-4,
    ),
    "conv1d pissa": Feature(
        {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": "pissa"},
        family="gpt2",
        almost=5e-3,
    ),
    "experts": Feature(
        {
            "r": 4,
            "target_modules": ["q_proj"],
            "target_parameters": [*EXPERTS, "mlp.gate.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
        family="mixtral",
    ),
    "one expert parameter": Feature(
        {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}, family="mixtral"
    ),
    "experts in pieces": Feature({"r": 4, "target_parameters": EXPERTS}, family="qwen3_moe"),
    "transposed experts": Feature({"r": 4, "target_parameters": EXPERTS}, family="gpt_oss"),
}


# One type and the features that share no code with another are quick, everything is slow.
QUICK = (
    "plain",
    "patterns",
    "dora",
    "embedding",
    "lora_bias",
    "modules_to_save",
    "conv1d",
    "multimodal",
    "experts",
    "pissa",
)
CASES = [
    pytest.param(name, dtype, marks=() if name in QUICK and dtype == "bfloat16" else pytest.mark.slow)
    for name in FEATURES
    for dtype in ("bfloat16", "float16", "float32")
]


@dataclass(frozen=True)
class Corrected:
    """A merged model with a correction on some of its tensors."""

    source: Checkpoint
    corrections: dict[str, Any]

    @property
    def tensors(self) -> Any:
        return self.source.tensors

    def rows(self, name: str, start: int, stop: int) -> Any:
        rows = self.source.rows(name, start, stop)
        return rows + self.corrections[name][start:stop] if name in self.corrections else rows


def _with_exact_part(base: Path, adapter: Path, merged: Checkpoint, rank: int) -> Any:
    """PEFT's merge of a PiSSA adapter, without the error of torch's singular values.

    In float32 that error is up to 2e-5 of the largest weight, and depends on the processor (numpy works in
    float64). What PEFT took out of the base is read from the layers that it made, in this process; it must be
    the part of the largest singular values, and is replaced by that part as float64 has it.
    """
    model = peft.PeftModel.from_pretrained(load(base, "float32"), adapter)
    weights, corrections = Checkpoint.open(base), {}
    for module, layer in model.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        name = f"{module}.weight"
        before = all_rows(weights, name).astype(np.float64)
        taken = before - layer.base_layer.weight.detach().double().numpy()
        left, sizes, right = np.linalg.svd(before, full_matrices=False)
        exact = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        assert np.abs(taken - exact).max() < 1e-3 * np.abs(exact).max(), name
        corrections[name] = taken - exact
    assert corrections
    return Corrected(merged, corrections)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_fold_equals_peft(name: str, dtype: str, tmp_path: Path) -> None:
    feature = FEATURES[name]
    base = base_model(tmp_path / "base", feature.family, dtype, **feature.base)
    adapter = make_adapter(base, tmp_path / "adapter", dtype, peft.LoraConfig(**feature.config))
    merged = merged_by_peft(base, adapter, tmp_path / "merged", dtype)
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)], "peft")
    assert folded.touched
    if not feature.almost:
        assert_equal(folded, merged)
    elif dtype == "float32":
        total = sum(info.rows * info.cols for info in merged.tensors.values())
        oracle = _with_exact_part(base, adapter, merged, feature.config["r"]) if "pissa" in name else merged
        assert_equal(folded, oracle, allowed=total, step=1e-6)
    else:
        changed = sum(folded.tensors[tensor].rows * folded.tensors[tensor].cols for tensor in folded.touched)
        # Of the numbers next to a rounding boundary some fall on its other side: more in float16, whose steps
        # are an eighth of bfloat16's, and each by one step.
        share = feature.almost * (8 if dtype == "float16" else 1)
        assert_equal(folded, merged, allowed=int(changed * share), step=2.0**-5)


@pytest.mark.parametrize(
    ("family", "modules", "flag"), [("llama", ["q_proj"], True), ("gpt2", ["c_proj"], False)]
)
def test_the_layer_s_class_decides_what_is_transposed(
    family: str, modules: list[str], flag: bool, tmp_path: Path
) -> None:
    """PEFT corrects a wrong `fan_in_fan_out` when it loads. The weights are square, so no shape tells."""
    base = base_model(tmp_path / "base", family, "bfloat16")
    config = peft.LoraConfig(r=4, target_modules=modules, fan_in_fan_out=not flag)
    adapter = make_adapter(base, tmp_path / "adapter", "bfloat16", config)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"fan_in_fan_out": flag}))
    merged = merged_by_peft(base, adapter, tmp_path / "merged", "bfloat16")
    assert_equal(Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)], "peft"), merged)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_one_by_one(family: str, tmp_path: Path) -> None:
    """PEFT converts such an adapter to stacked experts when it loads it; the files' names need no such."""
    from safetensors.torch import save_file

    base = base_model(tmp_path / "base", family, "bfloat16")
    projections = ("w1", "w2", "w3") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, info in Checkpoint.open(base).tensors.items():
        if ".experts." in name or name.endswith(".gate.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes = {"lora_A": (4, info.cols), "lora_B": (info.rows, 4)}
            for part, shape in shapes.items():
                tensors[f"{module}.{part}.weight"] = torch.randn(shape, generator=generator) * 0.1
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    targets = [*projections, "gate"]
    peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM").save_pretrained(
        tmp_path / "adapter"
    )
    merged = merged_by_peft(base, tmp_path / "adapter", tmp_path / "merged", "bfloat16")
    folded = Folded(Checkpoint.open(base), [(Adapter.open(tmp_path / "adapter"), 1.0)], "peft")
    assert len(folded.touched) == 2 * (4 * 3 + 1)
    assert_equal(folded, merged)


def test_exact_rows_is_the_same_fold_in_float64(tmp_path: Path) -> None:
    for name in ("dora", "conv1d dora", "tokens", "experts in pieces", "bias all"):
        feature = FEATURES[name]
        base = base_model(tmp_path / name / "base", feature.family, "bfloat16", **feature.base)
        config = peft.LoraConfig(**feature.config)
        adapter = make_adapter(base, tmp_path / name / "adapter", "bfloat16", config)
        folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 0.7)])
        for tensor in folded.touched:
            rows = np.random.default_rng(1).permutation(folded.tensors[tensor].rows)[:9]
            exact, fast = folded.exact_rows(tensor, rows), all_rows(folded, tensor)[rows]
            assert exact.dtype == np.float64
            assert np.abs(exact - fast).max() <= 1e-6 * np.abs(exact).max(), (name, tensor)


@pytest.mark.parametrize("name", ["dora", "conv1d dora", "experts in pieces"])
def test_rows_depend_on_no_blocking_and_no_thread(name: str, tmp_path: Path) -> None:
    feature = FEATURES[name]
    base = base_model(tmp_path / "base", feature.family, "bfloat16", **feature.base)
    adapter = make_adapter(base, tmp_path / "adapter", "bfloat16", peft.LoraConfig(**feature.config))
    whole = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)])
    expected = {tensor: all_rows(whole, tensor) for tensor in whole.tensors}
    for step, threads in ((1, 7), (5, 2), (64, 1)):
        fresh = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)])
        blocks = [
            (tensor, start, min(start + step, info.rows))
            for tensor, info in fresh.tensors.items()
            for start in range(0, info.rows, step)
        ]
        with ThreadPoolExecutor(threads) as pool:
            pieces = pool.map(fresh.rows, *zip(*blocks, strict=True))
            for block, rows in zip(blocks, pieces, strict=True):
                assert np.array_equal(rows, expected[block[0]][block[1] : block[2]]), block


def test_low_rank_gives_the_products_and_nothing_else(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32")
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapter = make_adapter(base, tmp_path / "a", "float32", config)
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 0.5)])
    (product,) = folded.low_rank("model.layers.2.self_attn.q_proj.weight") or ()
    assert product.scale == 12 / 4 * 0.5
    delta = product.scale * product.left(0, 64) @ product.right()
    name = "model.layers.2.self_attn.q_proj.weight"
    assert np.abs(all_rows(folded, name) - all_rows(folded.base, name) - delta).max() < 1e-6
    assert folded.low_rank("model.norm.weight") == []
    assert folded.low_rank("lm_head.weight") is None


def test_without_adapters_a_fold_is_its_base(tmp_path: Path) -> None:
    base = Checkpoint.open(base_model(tmp_path / "base", "qwen2", "bfloat16"))
    folded = Folded(base)
    assert folded.tensors == base.tensors and not folded.touched
    name = next(iter(base.tensors))
    assert np.array_equal(all_rows(folded, name), all_rows(base, name))


def test_files_without_the_prefix_of_the_model(tmp_path: Path) -> None:
    """The files of GPT-2 on the hub begin with "h.0", the modules of the model with "transformer.h.0"."""
    from safetensors.torch import load_file, save_file

    base = base_model(tmp_path / "base", "gpt2", "float32")
    config = peft.LoraConfig(**FEATURES["conv1d"].config)
    adapter = Adapter.open(make_adapter(base, tmp_path / "adapter", "float32", config))
    usual = Folded(Checkpoint.open(base), [(adapter, 1.0)])
    wanted = {name: (usual.touched[name], all_rows(usual, name)) for name in usual.touched}
    tensors = load_file(base / "model.safetensors")
    renamed = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    assert renamed.keys().isdisjoint(tensors)
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    folded = Folded(Checkpoint.open(base), [(adapter, 1.0)])
    assert len(folded.touched) == len(wanted)
    for name, (words, rows) in wanted.items():
        assert folded.touched[name.removeprefix("transformer.")] == words
        assert np.array_equal(all_rows(folded, name.removeprefix("transformer.")), rows)
