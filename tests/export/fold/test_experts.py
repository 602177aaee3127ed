"""Stacked experts: every way in which a PEFT stored their factors, against the own merge of that PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_peft import TODAY, written_by_peft
from safetensors.numpy import save_file

from lorafold.adapters.folder import Adapter
from lorafold.adapters.peft_reading import IS_TRANSPOSED
from lorafold.errors import InputError
from lorafold.export.fold.folded import Folded
from lorafold.export.fold.for_peft import differs_for_peft, write_for_peft
from lorafold.weights import Checkpoint

EXPERTS, RANK, SIZE = 3, 2, 4
DOWN = "model.layers.0.mlp.experts.down_proj"
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"
PREFIX = "base_model.model."


def square_base(folder: Path, model_type: str) -> Checkpoint:
    """Zeros, so that what is folded in is all there is."""
    folder.mkdir()
    shapes = {DOWN: (EXPERTS, SIZE, SIZE), GATE_UP: (EXPERTS, 2 * SIZE, SIZE)}
    if model_type == "gpt_oss":
        shapes[GATE_UP] = (EXPERTS, SIZE, 2 * SIZE)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return Checkpoint.open(folder)


def factors(inputs: int, outputs: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    a = random.standard_normal((EXPERTS * RANK, inputs)).astype(np.float32)
    return a, random.standard_normal((outputs, RANK * EXPERTS)).astype(np.float32)


def adapter_of(folder: Path, tensors: dict[str, Any], version: str | None, *targets: str) -> Adapter:
    folder.mkdir()
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_parameters": [f"mlp.experts.{target}" for target in targets],
    }
    settings |= {} if version is None else {"peft_version": version}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(
        {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return Adapter.open(folder)


def products(a: Any, b: Any, swapped: bool) -> Any:
    """What PEFT adds, from its two formulas: `o r e, e r i -> e o i` and `-> e i o`."""
    by_expert = np.einsum("ore,eri->eoi", b.reshape(len(b), RANK, EXPERTS), a.reshape(EXPERTS, RANK, -1))
    return by_expert if swapped else by_expert.transpose(0, 2, 1)


# Version, model type, whether PEFT swapped (None: nobody can know).
VERSIONS = [
    ("0.17.1", "mixtral", False),
    ("0.18.0", "gpt_oss", False),
    ("0.18.1", "mixtral", False),
    ("0.18.1", "gpt_oss", False),
    ("0.19.0", "mixtral", False),
    ("0.19.0", "gpt_oss", True),
    ("0.19.1", "mixtral", True),
    ("0.19.1", "gpt_oss", False),
    ("0.19.1", "llama4_text", True),
    ("0.21.2", "mixtral", True),
    ("0.22.0.dev0@1f2e3d", "mixtral", True),
    ("0.18.0.dev0@1f2e3d", "mixtral", False),
    ("0.18.1.dev0@1f2e3d", "mixtral", None),
    ("0.18.2.dev0@UNKNOWN", "mixtral", None),
    ("0.19.0.dev0", "mixtral", None),
    ("0.19.1.dev0@1f2e3d", "mixtral", None),
    (None, "mixtral", None),
    ("unknown", "mixtral", None),
]


@pytest.mark.parametrize(("version", "model_type", "swapped"), VERSIONS)
def test_the_version_decides_if_a_parameter_is_square(
    version: str | None, model_type: str, swapped: bool | None, tmp_path: Path
) -> None:
    a, b = factors(SIZE, SIZE, 0)
    tensors = {f"{DOWN.rpartition('.')[0]}.lora_{x}.weight": factor for x, factor in (("A", a), ("B", b))}
    adapter = adapter_of(tmp_path / "a", tensors, version, "down_proj")
    base = square_base(tmp_path / "base", model_type)
    if swapped is None:
        with pytest.raises(InputError, match=r"down_proj is square \(4 x 4\)") as caught:
            Folded(base, [(adapter, 1.0)])
        assert "another base" not in str(caught.value) and 'set "peft_version"' in str(caught.value)
        assert version is None or version in str(caught.value)
        return
    folded = Folded(base, [(adapter, 1.0)])
    expected = products(a, b, swapped).reshape(-1, SIZE)
    assert np.allclose(folded.rows(DOWN, 0, EXPERTS * SIZE), expected, atol=1e-6)
    assert np.allclose(folded.exact_rows(DOWN, range(EXPERTS * SIZE)), expected, atol=1e-6)


@pytest.mark.parametrize("swapped", [True, False])
def test_another_parameter_tells_what_a_square_one_does_not(swapped: bool, tmp_path: Path) -> None:
    """gpt-oss: its down_proj is square, its gate_up_proj is not, and PEFT has one rule for both."""
    module = DOWN.rpartition(".")[0]
    wide = factors(*((2 * SIZE, SIZE) if swapped else (SIZE, 2 * SIZE)), 1)
    square = factors(SIZE, SIZE, 2)
    tensors = {f"{module}.base_layer.lora_{x}.weight": factor for x, factor in zip("AB", wide, strict=True)}
    tensors |= {f"{module}.lora_{x}.weight": factor for x, factor in zip("AB", square, strict=True)}
    adapter = adapter_of(tmp_path / "a", tensors, None, "gate_up_proj", "down_proj")
    folded = Folded(square_base(tmp_path / "base", "gpt_oss"), [(adapter, 1.0)])
    for name, pair in ((GATE_UP, wide), (DOWN, square)):
        rows = folded.rows(name, 0, folded.tensors[name].rows)
        assert np.allclose(rows, products(*pair, swapped).reshape(rows.shape), atol=1e-6), name


ONE_BY_ONE = {"qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj")}
ONE_BY_ONE["mixtral"] = ("block_sparse_moe", "w1", "w3", "w2")


def one_by_one(model_type: str, seed: int = 3) -> dict[str, tuple[Any, Any]]:
    """A and B of every expert's modules, by name, as transformers 4 had them: widths 4 and 6."""
    block, gate, up, down = ONE_BY_ONE[model_type]
    random, made = np.random.default_rng(seed), {}
    for expert in range(EXPERTS):
        for leaf, inputs, outputs in ((gate, SIZE, 6), (up, SIZE, 6), (down, 6, SIZE)):
            a, b = random.standard_normal((RANK, inputs)), random.standard_normal((outputs, RANK))
            name = f"model.layers.0.{block}.experts.{expert}.{leaf}"
            made[name] = a.astype(np.float32), b.astype(np.float32)
    return made


def adapter_one_by_one(folder: Path, made: dict[str, tuple[Any, Any]], **options: Any) -> Adapter:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["w1"], **options}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {f"{PREFIX}{name}.lora_A.weight": a for name, (a, _) in made.items()}
    tensors |= {f"{PREFIX}{name}.lora_B.weight": b for name, (_, b) in made.items()}
    if options.get("use_dora"):
        tensors |= {
            f"{PREFIX}{name}.lora_magnitude_vector": np.ones(len(b), np.float32)
            for name, (_, b) in made.items()
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    return Adapter.open(folder)


def fused_base(folder: Path, model_type: str, gate_up: tuple[int, ...] = (EXPERTS, 12, SIZE)) -> Checkpoint:
    folder.mkdir()
    random = np.random.default_rng(0)
    shapes = {GATE_UP: gate_up, DOWN: (EXPERTS, SIZE, 6)}
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("model_type", ONE_BY_ONE)
def test_experts_named_one_by_one_on_a_base_that_stacks_them(
    model_type: str, use_dora: bool, tmp_path: Path
) -> None:
    made = one_by_one(model_type)
    base = fused_base(tmp_path / "base", model_type)
    adapter = adapter_one_by_one(tmp_path / "a", made, use_dora=use_dora)
    folded = Folded(base, [(adapter, 1.0)])
    deltas = {name: b @ a for name, (a, b) in made.items()}
    block, gate, up, down = ONE_BY_ONE[model_type]
    for tensor, leaves in ((GATE_UP, (gate, up)), (DOWN, (down,))):
        experts = [f"model.layers.0.{block}.experts.{expert}" for expert in range(EXPERTS)]
        delta = np.concatenate([deltas[f"{expert}.{leaf}"] for expert in experts for leaf in leaves])
        wanted = base.rows(tensor, 0, len(delta)) + delta
        if use_dora:
            wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        assert np.allclose(folded.rows(tensor, 0, len(wanted)), wanted, atol=1e-5)
        rows = [7, 1, len(wanted) - 1]
        assert np.allclose(folded.exact_rows(tensor, rows), wanted[rows], atol=1e-5)
        assert np.allclose(folded.rows(tensor, 5, 9), wanted[5:9], atol=1e-5)  # a block across two modules


def test_experts_by_the_other_set_of_names(tmp_path: Path) -> None:
    """mlx-lm calls Mixtral's w1 gate_proj, whatever the file does."""
    made = one_by_one("mixtral")
    files = {f"{name}.weight": np.zeros((len(b), a.shape[1]), np.float32) for name, (a, b) in made.items()}
    (tmp_path / "base").mkdir()
    save_file(files, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    others = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    called = {f"{name.rpartition('.')[0]}.{others[name[-2:]]}": pair for name, pair in made.items()}
    adapter = adapter_one_by_one(tmp_path / "a", called)
    folded = Folded(Checkpoint.open(tmp_path / "base"), [(adapter, 1.0)])
    for name, (a, b) in made.items():
        assert np.allclose(folded.rows(f"{name}.weight", 0, len(b)), b @ a, atol=1e-6)


def test_experts_one_by_one_are_not_put_into_a_transposed_stack(tmp_path: Path) -> None:
    """gpt-oss interleaves gate and up in columns: rows of the stack are nobody's module."""
    base = fused_base(tmp_path / "base", "gpt_oss")
    with pytest.raises(InputError, match="belong to nothing in the base"):
        Folded(base, [(adapter_one_by_one(tmp_path / "a", one_by_one("qwen3_moe")), 1.0)])


def test_experts_that_fit_neither_way_are_of_another_base(tmp_path: Path) -> None:
    a, b = factors(SIZE + 1, SIZE, 0)
    tensors = {f"{DOWN.rpartition('.')[0]}.lora_{x}.weight": factor for x, factor in (("A", a), ("B", b))}
    adapter = adapter_of(tmp_path / "a", tensors, "0.21.2", "down_proj")
    with pytest.raises(InputError, match="made for another base"):
        Folded(square_base(tmp_path / "base", "mixtral"), [(adapter, 1.0)])


def test_which_experts_are_transposed_is_what_transformers_says() -> None:
    """The decorator `use_experts_implementation(is_transposed=True)` sets what PEFT asks for."""
    transformers = pytest.importorskip("transformers")
    models = Path(transformers.__file__).parent / "models"
    found = {
        path.parent.name
        for path in models.glob("*/modeling_*.py")
        if "is_transposed=True" in path.read_text(encoding="utf-8")
    }
    assert found == {name.removesuffix("_text") for name in IS_TRANSPOSED}


# How a family's experts are made square: one size for both of their dimensions.
SIZES = {"down_proj": 64, "gate_up_proj": 32, "": 48}
CASES = [
    pytest.param(version, family, square, id=f"{version}-{family}-{square or 'none'}")
    for version in ("0.18.0", "0.18.1", "0.19.0", "0.19.1", TODAY)
    for family in ("mixtral", "gpt_oss", "llama4")
    for square in ("down_proj", "")
    if family != "llama4" or version in (TODAY, "0.18.1")
]


# Versions that stored a family's square experts otherwise than today's.
TURNED = {"mixtral": ("0.18.0", "0.18.1", "0.19.0"), "gpt_oss": ("0.19.0",)}


def _config(family: str, size: int) -> Any:
    import transformers
    from tiny_models import SIZES as COMMON

    two = {"num_hidden_layers": 2, "intermediate_size": size, "bos_token_id": None, "eos_token_id": None}
    if family == "mixtral":
        return transformers.MixtralConfig(**(COMMON | two | {"num_local_experts": 4}))
    if family == "gpt_oss":
        return transformers.GptOssConfig(**(COMMON | two | {"num_local_experts": 4, "head_dim": 16}))
    experts = {"num_local_experts": 4, "intermediate_size_mlp": 96, "head_dim": 16}
    return transformers.Llama4TextConfig(
        **(COMMON | two | experts | {"architectures": ["Llama4ForCausalLM"]})
    )


@pytest.mark.slow
@pytest.mark.parametrize(("version", "family", "square"), CASES)
def test_a_fold_equals_the_merge_of_the_peft_that_wrote_the_adapter(
    version: str, family: str, square: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from tiny_models import write_model

    base = write_model(_config(family, SIZES[square]), tmp_path / "base", "float32", 0)
    module = "feed_forward.experts" if family == "llama4" else "mlp.experts"
    leaves = [square] if square else ["gate_up_proj", "down_proj"]
    adapter, merged = written_by_peft(
        version,
        base,
        tmp_path / "old",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj"],
        target_parameters=[f"{module}.{leaf}" for leaf in leaves],
    )
    folded, oracle = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)]), Checkpoint.open(merged)
    assert set(folded.tensors) == set(oracle.tensors)
    assert any("expert" in name for name in folded.touched)
    for name, info in oracle.tensors.items():
        wanted = oracle.rows(name, 0, info.rows)
        assert np.abs(folded.rows(name, 0, info.rows) - wanted).max() <= 1e-5, name
        if name in folded.touched:
            rows = np.arange(0, info.rows, 7)
            assert np.abs(folded.exact_rows(name, rows) - wanted[rows]).max() <= 1e-5, name
    if square and family != "llama4":
        _check_for_peft(folded, base, oracle, tmp_path, turned=version in TURNED[family])


def _check_for_peft(folded: Folded, base: Path, oracle: Checkpoint, tmp_path: Path, *, turned: bool) -> None:
    """Today's PEFT misreads the old file, and computes the old merge from the rewritten one."""
    from peft_models import merged_by_peft

    (plan,) = folded.plans
    assert bool(differs_for_peft(plan)) == turned
    (tmp_path / "today").mkdir()
    write_for_peft(plan, tmp_path / "today")
    for folder, is_right in ((tmp_path / "today", True), (plan.adapter.folder, not turned)):
        merged = merged_by_peft(base, folder, tmp_path / f"merged by today's {is_right}", "float32")
        worst = max(
            np.abs(merged.rows(name, 0, info.rows) - oracle.rows(name, 0, info.rows)).max()
            for name, info in oracle.tensors.items()
        )
        assert (worst <= 1e-5) == is_right
