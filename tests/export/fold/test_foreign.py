"""Tensors that belong to nothing in the base, and whose cause is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import adapter_folders
import numpy as np
import pytest
from adapter_folders import PREFIX, Q, adapter_folder, base_folder, fold, lora, zeros

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError, LorafoldError
from lorafold.export.fold.folded import Folded
from lorafold.export.fold.for_peft import UNTARGETED, differs_for_peft

BOTH = lora(Q.format(0)) | lora(Q.format(1))


def refused(action: Callable[[], Any], problem: str) -> LorafoldError:
    """A refusal that knows the program, so that it does not guess at another base."""
    error = adapter_folders.refused(action, problem)
    assert error.fix
    assert "belong to nothing" not in error.problem and "another base" not in error.problem
    return error


# A key as its program writes it, what is said of it, and a part of the cure.
FOREIGN = {
    "model.layers.0.self_attn.q_proj.lora_a": ("an mlx-lm factor", "adapters.safetensors"),
    "layers.0.attn.q_proj.lora_a.weight": ("torchtune's own name", "checkpointer"),
    "layers.0.attn.q_proj.lora.lora_a.weight": ("torchtune's own name", "checkpointer"),
    "lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight": ("adapter for image models", "language"),
    "transformer.blocks.0.attn.to_q.lora.up.weight": ("adapter for image models", "language"),
    "model.decoder.layers.0.self_attention.adapter.linear_in.weight": ("Megatron or NeMo", "PEFT's format"),
    f"{PREFIX}{Q.format(0)}.base_layer.weight.absmax": ("that bitsandbytes packed", "save_pretrained"),
    f"{PREFIX}{Q.format(0)}.base_layer.weight.nested_quant_map": (
        "that bitsandbytes packed",
        "save_pretrained",
    ),
    f"{PREFIX}{Q.format(0)}.base_layer.weight.quant_state.bitsandbytes__nf4": (
        "that bitsandbytes packed",
        "save_pretrained",
    ),
    f"{PREFIX}{Q.format(0)}.base_layer.SCB": ("that bitsandbytes packed", "save_pretrained"),
    f"{PREFIX}{Q.format(0)}.base_layer.qweight": ("part of a packed base", "save_pretrained"),
    "optimizer.state.0.exp_avg": ("state of an optimizer", "save_pretrained"),
    "state.3.exp_avg_sq": ("state of an optimizer", "save_pretrained"),
    "lr_scheduler.last_epoch": ("state of an optimizer or scheduler", "save_pretrained"),
    "_fsdp_wrapped_module._flat_param": ("a flat parameter of FSDP", "FULL_STATE_DICT"),
    "model.layers.0._flat_param_0": ("a flat parameter of FSDP", "FULL_STATE_DICT"),
    f"{PREFIX}{Q.format(0)}.hada_w1_a": ("of another method", "saved with these weights"),
    f"{PREFIX}{Q.format(0)}.vera_lambda_b": ("of another method", "saved with these weights"),
    "prompt_embeddings": ("a trained prompt", "saved with these weights"),
    "v_head.summary.weight": ("the value head", "without it"),
    f"{PREFIX}score.weight": ("the head of a classifier or reward model", "without it"),
    f"{PREFIX}qa_outputs.weight": ("marks answers in a text", "without it"),
    f"{PREFIX}model.visual.blocks.0.attn.qkv.lora_A.weight": ("for images or sound", "multimodal base"),
}


@pytest.mark.parametrize("key", FOREIGN)
def test_what_is_known_is_called_by_its_name(key: str, tmp_path: Path) -> None:
    what, fix = FOREIGN[key]
    more = {key: zeros(2, 6)}
    if key.endswith("lora_A.weight"):
        more[key.replace("lora_A", "lora_B")] = zeros(8, 2)
    options = {"target_modules": ["q_proj", "qkv"]} if "visual" in key else {}
    assert fix in str(refused(lambda: fold(tmp_path, BOTH | more, **options), what).fix)


def test_a_packed_base_in_the_file_is_named_before_its_shape(tmp_path: Path) -> None:
    base = f"{PREFIX}{Q.format(0)}.base_layer.weight"
    packed = {base: np.zeros((24, 1), np.uint8), f"{base}.absmax": zeros(1)}
    refused(lambda: fold(tmp_path, BOTH | packed), "absmax' is part of a base that bitsandbytes packed")


def test_what_is_not_known_is_counted(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"1 of its tensors belong to nothing in the base, the first is 'x\.y'"
    ):
        fold(tmp_path, BOTH | {"x.y": zeros(1)})


BUFFERS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached",
    "transformer.rotary_pos_emb.inv_freq",
    "transformer.h.0.attn.masked_bias",
    "transformer.h.0.attn.bias",
    "model.embeddings.position_ids",
    "rope.freqs",
    "model.causal_mask",
    "model.layers.0.self_attn.q_proj._extra_state",
)


@pytest.mark.parametrize("key", BUFFERS)
def test_what_a_model_computes_by_itself_is_left_out_and_told(key: str, tmp_path: Path) -> None:
    plain = fold(tmp_path, BOTH)
    folded = fold(tmp_path, BOTH | {PREFIX + key: np.full(3, 9, np.float32)})
    name = f"{Q.format(0)}.weight"
    assert np.array_equal(folded.rows(name, 0, 8), plain.rows(name, 0, 8))
    assert folded.touched == plain.touched
    (note,) = Adapter.open(tmp_path / "adapter").notes
    assert key in note and "left out" in note


# What target_modules does not say, and the other settings that limit it.
UNSAID: tuple[dict[str, Any], ...] = (
    {"target_modules": None},
    {"target_modules": []},
    {"target_modules": None, "layers_to_transform": [0, 1]},
    {"target_modules": None, "lora_alpha": 4},
)


@pytest.mark.parametrize("options", UNSAID)
def test_the_tensors_tell_what_was_trained(options: dict[str, Any], tmp_path: Path) -> None:
    folded = fold(tmp_path, BOTH, **options)
    assert set(folded.touched) == {f"{Q.format(layer)}.weight" for layer in (0, 1)}
    (plan,) = folded.plans
    assert plan.notes == [
        "adapter_config.json has no target_modules: by its tensors these were trained: q_proj"
    ]
    assert differs_for_peft(plan) == UNTARGETED


@pytest.mark.parametrize("said", [None, "all-linear"])
def test_tensors_that_tell_only_half(said: str | None, tmp_path: Path) -> None:
    """Layer 1 has nothing: half of the file may be lost, and there is nothing to compare it with."""
    problem = "nothing is for model.layers.1.self_attn.q_proj, while other layers have some"
    refused(lambda: fold(tmp_path, lora(Q.format(0)), target_modules=said), problem)
    one = fold(tmp_path, lora(Q.format(0)), target_modules=said, layers_to_transform=[0])
    assert len(one.touched) == 1


def test_embedding_factors_that_are_not_targeted(tmp_path: Path) -> None:
    """PEFT makes no place for them, and takes no notice."""
    embedding = f"{PREFIX}model.embed_tokens.lora_embedding_"
    tensors = BOTH | {f"{embedding}A": zeros(2, 10), f"{embedding}B": zeros(6, 2)}
    refused(lambda: fold(tmp_path, tensors), "does not target model.embed_tokens")
    assert len(fold(tmp_path, tensors, target_modules=["q_proj", "embed_tokens"]).touched) == 3


def test_tensors_of_another_method_than_the_configuration_names(tmp_path: Path) -> None:
    scales = {f"{PREFIX}{Q.format(layer)}.ia3_l": np.ones((8, 1), np.float32) for layer in (0, 1)}
    ia3 = {"peft_type": "IA3", "feedforward_modules": []}
    assert fold(tmp_path, scales, **ia3).touched
    refused(lambda: fold(tmp_path, scales), "ia3_l' is in the file, but .* does not set peft_type IA3")
    refused(lambda: fold(tmp_path, BOTH, **ia3), "lora_A.weight' is in the file, but .* peft_type LORA")
    norm = {f"{PREFIX}{Q.format(0)}.ln_tuning_layers.weight": zeros(8, 6)}
    refused(lambda: fold(tmp_path, BOTH | norm), "does not set peft_type LN_TUNING")


def test_ia3_factors_of_the_other_side(tmp_path: Path) -> None:
    """In a square layer no size tells inputs from outputs, but PEFT's shape does."""
    names = [f"{PREFIX}{Q.format(layer)}.ia3_l" for layer in (0, 1)]
    inputs = {name: np.ones((1, 6), np.float32) for name in names}
    outputs = {name: np.ones((8, 1), np.float32) for name in names}
    for tensors, modules, side in ((inputs, [], "inputs"), (outputs, ["q_proj"], "outputs")):
        options = {"peft_type": "IA3", "feedforward_modules": modules}
        refused(
            lambda t=tensors, o=options: fold(tmp_path, t, **o), f"scales {side}, but feedforward_modules"
        )
    assert fold(tmp_path, inputs, peft_type="IA3", feedforward_modules=["q_proj"]).touched


FORMS = {
    "split": (["q_proj", "k_proj", "v_proj"], "qkv_proj", "[qkv]_proj is qkv_proj in the base"),
    "fused": (["qkv_proj"], "", "qkv_proj is q_proj and k_proj and v_proj in the base"),
}


@pytest.mark.parametrize("name", FORMS)
def test_another_form_of_the_same_model(name: str, tmp_path: Path) -> None:
    """Unsloth's Phi-4 has Llama's layers, Microsoft's has them fused: an adapter fits one of them."""
    from safetensors.numpy import load_file, save_file

    from lorafold.weights import Checkpoint

    modules, fused, problem = FORMS[name]
    layer = "model.layers.0.self_attn"
    tensors: dict[str, Any] = {}
    for module in modules:
        tensors |= lora(f"{layer}.{module}", rows=24 if module == "qkv_proj" else 8)
    base = base_folder(tmp_path / "base").folder
    held = {key: value for key, value in load_file(base / "model.safetensors").items() if "q_proj" not in key}
    names = [fused] if fused else ["q_proj", "k_proj", "v_proj"]
    held |= {f"{layer}.{other}.weight": zeros(24 if fused else 8, 6) for other in names}
    save_file(held, base / "model.safetensors")
    adapter = Adapter.open(adapter_folder(tmp_path / "adapter", tensors, target_modules=modules))
    error = refused(lambda: Folded(Checkpoint.open(base), [(adapter, 1.0)]), problem)
    assert "same names of layers" in str(error.fix)


def test_a_rank_that_is_not_said(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", BOTH)
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace('"r": 2, ', ""))
    base = base_folder(tmp_path / "base")
    with pytest.raises(InputError, match="the configuration has no r, for which PEFT takes 8"):
        Folded(base, [(Adapter.open(folder), 1.0)])


def test_an_alpha_that_is_not_said_is_told(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", BOTH)
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text.replace('"lora_alpha": 4, ', ""))
    adapter = Adapter.open(folder)
    assert adapter.config.lora_alpha == 8  # PEFT's default
    (note,) = adapter.notes
    assert "no lora_alpha: PEFT's default of 8 counts" in note


def test_the_factor_of_a_convolution(tmp_path: Path) -> None:
    module = f"{PREFIX}{Q.format(0)}"
    tensors = BOTH | {f"{module}.lora_A.weight": zeros(2, 6, 3), f"{module}.lora_B.weight": zeros(8, 2, 1)}
    error = refused(
        lambda: fold(tmp_path, tensors), r"\[2, 6, 3\]: the factor of a convolution, which is not"
    )
    assert "merge_and_unload" in str(error.fix)
