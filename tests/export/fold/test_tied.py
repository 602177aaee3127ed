"""Tied embeddings, resized vocabularies and PEFT's other foldable methods, judged by what the model answers.

The reference is the PEFT model with its adapter active, not merged: PEFT's merge changes both sides of a tied
embedding, which is not what was trained. The folded side is the merged folder, loaded by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_models import base_model, draw, load, logits, make_adapter, merged_by_peft
from tiny_models import VOCABULARY

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.folded import Folded
from lorafold.export.outputs.merged_folder import plan_merged_folder, write_merged_folder
from lorafold.export.outputs.side_files import find_side_files
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")


def fold_into_folder(base: Path, adapter: Path, folder: Path, **options: Any) -> Folded:
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)])
    folder.mkdir()
    plan = plan_merged_folder(folded, base, find_side_files(base), **options)
    write_merged_folder(plan, folded, folder)
    return folded


def assert_same_answers(base: Path, adapter: Path, tmp_path: Path) -> Folded:
    folded = fold_into_folder(base, adapter, tmp_path / "folded")
    wanted = logits(peft.PeftModel.from_pretrained(load(base, "float32"), adapter))
    plain = logits(load(base, "float32"))
    assert np.abs(wanted - plain).max() > 1e-3, "the adapter changes nothing"
    got = logits(load(tmp_path / "folded", "float32"))
    assert np.abs(got - wanted).max() < 1e-4
    return folded


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

TIED = {
    # name: (LoraConfig, untied by it)
    "neither side": ({"target_modules": ["q_proj"]}, False),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, True),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, True),
    "both alone": ({"target_modules": ["lm_head", "embed_tokens"]}, True),
    "embedding saved": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
    "head saved": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    "tokens of both": ({"target_modules": ["q_proj"], "trainable_token_indices": [5, 9, 200]}, False),
    "both together": (
        {"target_modules": ["lm_head", "embed_tokens", "q_proj"], "ensure_weight_tying": True},
        False,
    ),
    "both saved together": (
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["lm_head", "embed_tokens"],
            "ensure_weight_tying": True,
        },
        False,
    ),
}


SLOW = ("neither side", "both alone", "embedding saved", "head saved")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TIED]
)
def test_tied_embeddings(name: str, tmp_path: Path) -> None:
    config, untied = TIED[name]
    base = base_model(tmp_path / "base", "qwen2", "float32", tie_word_embeddings=True)
    assert HEAD not in Checkpoint.open(base).tensors
    adapter = make_adapter(base, tmp_path / "adapter", "float32", peft.LoraConfig(r=4, **config))
    folded = assert_same_answers(base, adapter, tmp_path)
    assert (HEAD in folded.tensors) == untied
    assert folded.config["tie_word_embeddings"] is not untied
    written = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert written["tie_word_embeddings"] is not untied
    if untied:  # the head is materialised from the embedding
        base_rows = folded.base.rows(EMBEDDING, 0, 7)
        sides = (HEAD, EMBEDDING)
        changed = {side for side in sides if not np.array_equal(folded.rows(side, 0, 7), base_rows)}
        assert changed == {"embedding": {EMBEDDING}, "head": {HEAD}}.get(name.split()[0], {HEAD, EMBEDDING})


def test_two_copies_of_a_tied_embedding_are_one(tmp_path: Path) -> None:
    """Some files hold the tied head too; transformers ties it to the embedding all the same."""
    from safetensors.torch import load_file, save_file

    base = base_model(tmp_path / "base", "qwen2", "float32", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, base / "model.safetensors", {"format": "pt"})
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 9])
    adapter = make_adapter(base, tmp_path / "adapter", "float32", config)
    folded = assert_same_answers(base, adapter, tmp_path)
    assert HEAD not in folded.tensors and folded.config["tie_word_embeddings"] is True


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary(tied: bool, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32", tie_word_embeddings=tied)
    model = load(base, "float32")
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    tuned = draw(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"])))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    folded = fold_into_folder(base, tmp_path / "adapter", tmp_path / "folded")
    assert folded.config["vocab_size"] == VOCABULARY + 8
    assert folded.tensors[EMBEDDING].shape == (VOCABULARY + 8, 64)
    assert folded.config["tie_word_embeddings"] is tied and (HEAD in folded.tensors) is not tied
    got = logits(load(tmp_path / "folded", "float32"))
    assert got.shape[-1] == VOCABULARY + 8
    assert np.abs(got - logits(tuned)).max() < 1e-4


RESIZED: dict[str, tuple[bool, dict[str, Any]]] = {
    # name: (tied, LoraConfig); q_proj is always a target
    "both saved": (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "both saved, tied": (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding saved": (False, {"modules_to_save": ["embed_tokens"]}),
    "embedding saved, tied": (True, {"modules_to_save": ["embed_tokens"]}),
    "saved together, tied": (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "head saved, tied": (True, {"modules_to_save": ["lm_head"]}),
    "both targeted": (False, {"target_modules": ["embed_tokens", "lm_head"]}),
    "both targeted, DoRA": (False, {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "both targeted, PiSSA": (False, {"target_modules": ["lm_head", "embed_tokens"], "init": "pissa"}),
    "both targeted, tied": (True, {"target_modules": ["embed_tokens", "lm_head"]}),
    "targeted together, tied": (
        True,
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "embedding targeted, tied": (True, {"target_modules": ["embed_tokens"]}),
    "head targeted, tied": (True, {"target_modules": ["lm_head"]}),
    "new tokens trained": (False, {"trainable_token_indices": [VOCABULARY, VOCABULARY + 1]}),
    "new tokens trained, tied": (True, {"trainable_token_indices": [VOCABULARY, VOCABULARY + 1]}),
}
QUICK = ("both saved", "embedding saved, tied", "both targeted", "both targeted, DoRA", "head targeted, tied")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RESIZED]
)
def test_a_resized_vocabulary_by_peft_s_recipes(name: str, tmp_path: Path) -> None:
    """PEFT saves the embeddings by itself then, some of them under two names."""
    tied, options = RESIZED[name]
    options = {**options, "target_modules": ["q_proj", *options.get("target_modules", ())]}
    options["init_lora_weights"] = options.pop("init", True)
    base = base_model(tmp_path / "base", "llama", "float32", tie_word_embeddings=tied)
    model = load(base, "float32")
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    tuned = draw(peft.get_peft_model(model, peft.LoraConfig(r=4, **options)))
    tuned.save_pretrained(tmp_path / "adapter")
    folded = fold_into_folder(base, tmp_path / "adapter", tmp_path / "folded")
    assert folded.config["vocab_size"] == VOCABULARY + 8
    got = logits(load(tmp_path / "folded", "float32"))
    assert np.abs(got - logits(tuned)).max() < 1e-4
    if not (tied and "targeted" in name):  # PEFT's merge would change both sides of a tied embedding
        merged = tuned.merge_and_unload().state_dict()
        allowed = 1e-5 if "PiSSA" in name else 1e-6  # its part of the base comes from another SVD
        for tensor in folded.tensors:
            wanted = merged[tensor].numpy()
            got = folded.rows(tensor, 0, folded.tensors[tensor].rows).reshape(wanted.shape)
            assert np.abs(got - wanted).max() <= allowed * max(1, np.abs(wanted).max()), tensor


def test_a_resizing_adapter_stands_alone(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32", tie_word_embeddings=False)
    model = load(base, "float32")
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    tuned = draw(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"])))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    adapter = Adapter.open(tmp_path / "adapter")
    for adapters in ([(adapter, 0.5)], [(adapter, 1.0), (adapter, 1.0)]):
        with pytest.raises(InputError, match=r"it resizes .*, so it cannot be mixed with other adapters"):
            Folded(Checkpoint.open(base), adapters)


def test_a_resized_embedding_without_its_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = base_model(tmp_path / "base", "llama", "float32", tie_word_embeddings=False)
    model = load(base, "float32")
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    tuned = draw(peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"])))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "lm_head" not in key}, file)
    with pytest.raises(InputError, match=r"lm_head.weight has 320 rows, but the adapter brings .* with 328"):
        Folded(Checkpoint.open(base), [(Adapter.open(tmp_path / "adapter"), 1.0)])


OTHER_METHODS = {
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=6, lora_alpha=12, target_modules=["q_proj", "v_proj"], total_step=10, task_type="CAUSAL_LM"
    ),
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        target_modules=["embed_tokens"], token_indices=[9, 3, 200]
    ),
    "layer norms": lambda: peft.LNTuningConfig(
        task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]
    ),
    "kasa": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], kasa_config=peft.tuners.lora.config.KasaConfig()
    ),
    "block diagonal": lambda: peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "o_proj"],
        use_bdlora=peft.tuners.lora.config.BdLoraConfig(
            target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_METHODS)
def test_other_methods(name: str, tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "qwen2", "float32", tie_word_embeddings=False)
    adapter = make_adapter(base, tmp_path / "adapter", "float32", OTHER_METHODS[name]())
    assert_same_answers(base, adapter, tmp_path)
    merged = merged_by_peft(base, adapter, tmp_path / "merged", "float32")
    folded = Checkpoint.open(tmp_path / "folded")
    for tensor, info in merged.tensors.items():
        got, wanted = folded.rows(tensor, 0, info.rows), merged.rows(tensor, 0, info.rows)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max(), tensor


def test_ia3_of_conv1d(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "gpt2", "float32")
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["c_attn", "mlp.c_proj"],
        feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True,
    )
    assert_same_answers(base, make_adapter(base, tmp_path / "adapter", "float32", config), tmp_path)


def test_a_converted_pissa_adapter_is_a_plain_one(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base", "llama", "float32")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    model = peft.get_peft_model(load(base, "float32"), config)
    model.peft_config["default"].init_lora_weights = True  # as PEFT's documentation says
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    draw(model)
    wanted = logits(model)
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    fold_into_folder(base, tmp_path / "adapter", tmp_path / "folded")
    assert np.abs(logits(load(tmp_path / "folded", "float32")) - wanted).max() < 1e-4


@pytest.mark.slow
def test_a_pruned_adalora_adapter(tmp_path: Path) -> None:
    """AdaLoRA cuts its tensors to the masks in `rank_pattern` when it saves them: each to a rank, or to 0."""
    base = base_model(tmp_path / "base", "llama", "float32")
    config = peft.AdaLoraConfig(
        init_r=6, lora_alpha=12, target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM"
    )
    model = draw(peft.get_peft_model(load(base, "float32"), config), size=0.3)
    model.peft_config["default"].rank_pattern = {
        f"model.layers.{layer}.self_attn.q_proj.lora_E": [True] * (2 * layer) + [False] * (6 - 2 * layer)
        for layer in range(3)
    }
    model.save_pretrained(tmp_path / "adapter")
    assert_same_answers(base, tmp_path / "adapter", tmp_path)
