"""What a configuration promises against what the file holds, in both directions, with PEFT's own adapters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_folders
import numpy as np
import pytest
from adapter_folders import PREFIX, Q, adapter_folder, base_folder, fold, lora, zeros

from lorafold.adapters.fields import HARMLESS, NOT_FOLDABLE_OPTIONS, USED
from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded

Tensors = dict[str, Any]


def both(part: str, value: Any) -> Tensors:
    return {f"{PREFIX}{Q.format(layer)}.{part}": value for layer in (0, 1)}


FACTORS = {"lora_A.weight": (2, 6), "lora_B.weight": (8, 2)}
TOKENS = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": zeros(1, 6)}
HEAD = {f"{PREFIX}lm_head.modules_to_save.weight": zeros(10, 6)}

# Name: more tensors, the option that promises them.
PAIRS: dict[str, tuple[Tensors, dict[str, Any]]] = {
    "use_dora": (both("lora_magnitude_vector", np.ones(8, np.float32)), {"use_dora": True}),
    "kasa_config": (both("lora_diag", np.ones(2, np.float32)), {"kasa_config": {"beta": 1e-4}}),
    "lora_E": (
        both("lora_E", np.ones((2, 1), np.float32)),
        {"peft_type": "ADALORA", "init_r": 2, "target_r": 2},
    ),
    "modules_to_save": (HEAD, {"modules_to_save": ["lm_head"]}),
    "trainable_token_indices": (TOKENS, {"trainable_token_indices": [3]}),
}


def added(folder: Path, more: Tensors, config: dict[str, Any]) -> Folded:
    return fold(folder, lora(Q.format(0)) | lora(Q.format(1)) | more, **config)


def refused(action: Callable[[], Any], problem: str) -> None:
    assert "another base" not in adapter_folders.refused(action, problem).problem


@pytest.mark.parametrize("name", PAIRS)
def test_a_part_needs_its_option_and_an_option_its_part(name: str, tmp_path: Path) -> None:
    more, config = PAIRS[name]
    assert added(tmp_path, more, config).touched
    option = "peft_type ADALORA" if name == "lora_E" else name
    refused(lambda: added(tmp_path, more, {}), f"does not set {option}")
    refused(lambda: added(tmp_path, {}, config), f"(which|though) (its )?{option} (in|name)")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["v_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [0]},
        {"target_modules": r".*\.0\.self_attn\.q_proj"},
    ],
)
def test_a_module_that_is_not_targeted(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT makes no place for it, and takes no notice of its tensors."""
    refused(lambda: added(tmp_path, {}, options), "does not target model.layers.[01].self_attn.q_proj")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d\.self_attn\.(q|v)_proj"},
        {"target_modules": [Q.format(0), Q.format(1)], "layers_to_transform": [0, 1]},
    ],
)
def test_a_module_that_is_targeted(options: dict[str, Any], tmp_path: Path) -> None:
    assert len(added(tmp_path, {}, options).touched) == 2


def test_a_pattern_may_name_the_wrappers(tmp_path: Path) -> None:
    tensors = lora(f"_orig_mod.{Q.format(0)}")
    pattern = r"_orig_mod\.model\.layers\.0\.self_attn\.q_proj"
    adapter = Adapter.open(adapter_folder(tmp_path / "adapter", tensors, target_modules=pattern))
    assert len(Folded(base_folder(tmp_path / "base"), [(adapter, 1.0)]).touched) == 1


def test_a_part_that_one_layer_alone_lacks(tmp_path: Path) -> None:
    more, config = PAIRS["use_dora"]
    first, *_ = more
    refused(
        lambda: added(tmp_path, {first: more[first]}, config),
        r"layers.1.self_attn.q_proj has no lora_magnitude_vector, which use_dora in .* promises",
    )


def test_lora_bias_needs_its_option(tmp_path: Path) -> None:
    bias = both("lora_B.bias", zeros(8))
    refused(lambda: added(tmp_path, bias, {}), "does not set lora_bias")
    refused(lambda: added(tmp_path, {}, {"lora_bias": True}), "has no lora_bias, which lora_bias in")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_and_not_saved(bias: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = base_folder(tmp_path / "base").folder
    tensors = load_file(base / "model.safetensors")
    tensors |= {f"{Q.format(layer)}.bias": zeros(8) for layer in (0, 1)}
    save_file(tensors, base / "model.safetensors")
    from lorafold.weights import Checkpoint

    def folded(more: Tensors) -> Folded:
        tensors = lora(Q.format(0)) | lora(Q.format(1)) | more
        folder = adapter_folder(tmp_path / "adapter", tensors, bias=bias)
        return Folded(Checkpoint.open(base), [(Adapter.open(folder), 1.0)])

    refused(lambda: folded({}), rf"it holds no bias of model.layers.0.self_attn.q_proj, though bias '{bias}'")
    assert f"{Q.format(1)}.bias" in folded(both("base_layer.bias", zeros(8))).touched


@pytest.mark.parametrize("part", ["lora_magnitude_vector", "lora_A.weight"])
def test_an_empty_tensor_was_not_gathered(part: str, tmp_path: Path) -> None:
    more = both("lora_magnitude_vector", np.ones(8, np.float32)) | both(part, zeros(0))
    refused(lambda: added(tmp_path, more, {"use_dora": True}), "holds nothing .*two dimensions")


def test_an_unknown_field_is_told_if_it_says_anything(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", use_something={"new": 1}, use_nothing=None, off=False, none=[])
    (note,) = Adapter.open(folder).config.notes
    assert "use_something is not known here" in note and "'new'" in note


@pytest.mark.parametrize(
    ("key", "what"), [("v_head.summary.weight", "value head"), ("score.weight", "classifier")]
)
def test_a_head_of_another_task_is_named(key: str, what: str, tmp_path: Path) -> None:
    refused(lambda: added(tmp_path, {f"{PREFIX}{key}": zeros(1, 6)}, {}), f"is the .*{what}.*has no place")


@pytest.mark.slow  # importing PEFT takes seconds
def test_every_field_of_peft_is_used_or_harmless_or_refused() -> None:
    peft = pytest.importorskip("peft")
    known = USED | HARMLESS | set(NOT_FOLDABLE_OPTIONS)
    configs = (
        peft.LoraConfig,
        peft.AdaLoraConfig,
        peft.IA3Config,
        peft.TrainableTokensConfig,
        peft.LNTuningConfig,
    )
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    assert fields == known


@pytest.mark.slow
def test_what_peft_makes_of_a_missing_flag(tmp_path: Path) -> None:
    """Why magnitudes without the flag are refused: PEFT drops them without a word, for another model."""
    peft = pytest.importorskip("peft")
    import torch
    from peft_models import base_model, load, make_adapter

    base = base_model(tmp_path / "base", "llama", "float32")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    adapter = make_adapter(base, tmp_path / "a", "float32", config)
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    ids = torch.arange(10, 40)[None]
    answers = []
    for flag in (True, False):
        path.write_text(json.dumps(settings | {"use_dora": flag}))
        with torch.no_grad():
            answers.append(peft.PeftModel.from_pretrained(load(base, "float32"), adapter)(ids).logits)
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    from lorafold.weights import Checkpoint

    refused(
        lambda: Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)]),
        "lora_magnitude_vector' is in the file, but adapter_config.json does not set use_dora",
    )


def test_experts_that_are_targeted_by_a_bare_name(tmp_path: Path) -> None:
    """PEFT writes `gate_up_proj` for experts that all-linear found, and so names no module of theirs."""
    from lorafold.adapters.folder import Adapter
    from lorafold.export.fold.promises import check_parts

    module = "model.layers.0.mlp.experts"
    tensors = {
        f"base_model.model.{module}.base_layer.lora_A.weight": np.ones((4, 6), np.float32),
        f"base_model.model.{module}.base_layer.lora_B.weight": np.ones((8, 4), np.float32),
    }
    options = {"target_modules": ["q_proj"], "target_parameters": ["down_proj", "gate_up_proj"]}
    check_parts(Adapter.open(adapter_folder(tmp_path / "a", tensors, peft_version="0.21.2", **options)))


def test_a_module_to_save_that_one_layer_alone_lacks(tmp_path: Path) -> None:
    """PEFT saves every module whose name ends so; `norm` is `input_layernorm` too."""
    from safetensors.numpy import load_file, save_file

    from lorafold.weights import Checkpoint

    base = base_folder(tmp_path / "base").folder
    norms = {f"model.layers.{layer}.input_layernorm.weight": zeros(6) for layer in (0, 1)}
    save_file(load_file(base / "model.safetensors") | norms, base / "model.safetensors")

    def folded(tensors: Tensors) -> Folded:
        folder = adapter_folder(
            tmp_path / "adapter",
            lora(Q.format(0))
            | lora(Q.format(1))
            | {f"{PREFIX}{key}": value for key, value in tensors.items()},
            modules_to_save=["norm"],
        )
        return Folded(Checkpoint.open(base), [(Adapter.open(folder), 1.0)])

    first, *_ = norms
    assert len(folded(norms).touched) == 4
    refused(
        lambda: folded({first: norms[first]}),
        "it holds nothing for model.layers.1.input_layernorm.weight, which its modules_to_save names",
    )
    spelled = {key.replace(".weight", ".modules_to_save.weight"): value for key, value in norms.items()}
    assert len(folded(spelled).touched) == 4


def test_a_whole_module_is_saved_without_its_buffers(tmp_path: Path) -> None:
    """Files of older transformers hold `inv_freq`, which no state of a module has any more."""
    from safetensors.numpy import load_file, save_file

    from lorafold.weights import Checkpoint

    base = base_folder(tmp_path / "base").folder
    tensors = load_file(base / "model.safetensors")
    angles = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": zeros(3) for layer in (0, 1)}
    save_file(tensors | angles, base / "model.safetensors")
    mlp = f"{PREFIX}model.layers.{{}}.mlp.up_proj"
    adapted = {f"{mlp.format(i)}.{part}": zeros(*shape) for i in (0, 1) for part, shape in FACTORS.items()}
    saved = {f"{PREFIX}{Q.format(layer)}.weight": zeros(8, 6) for layer in (0, 1)}
    options = {"target_modules": ["up_proj"], "modules_to_save": ["self_attn"]}
    folder = adapter_folder(tmp_path / "adapter", adapted | saved, **options)
    assert len(Folded(Checkpoint.open(base), [(Adapter.open(folder), 1.0)]).touched) == 4


def test_trained_tokens_of_each_layer_that_is_named(tmp_path: Path) -> None:
    head = {f"{PREFIX}lm_head.token_adapter.trainable_tokens_delta": zeros(1, 6)}
    indices = {"trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]}}
    assert added(tmp_path, TOKENS | head, indices).touched
    refused(
        lambda: added(tmp_path, TOKENS, indices),
        "it holds nothing for lm_head, which its trainable_token_ind",
    )
    refused(
        lambda: added(tmp_path, head, indices),
        "it holds nothing for embed_tokens, which its trainable_token",
    )
