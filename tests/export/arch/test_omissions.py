"""Parts of a multimodal model that its GGUF does not hold are named, and what an adapter does there too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from safetensors.numpy import load_file, save_file

from lorafold.errors import InputError
from lorafold.export import ExportConfig, export
from lorafold.export.arch.omissions import describe_omissions
from lorafold.weights import Checkpoint

GEMMA = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}
IMAGES = [f"vision_tower.encoder.layers.{i}.mlp.fc1.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]
PROJECTOR = "multi_modal_projector.mm_input_projection_weight"
TEXT = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in (0, 1, 2)]


def test_every_part_is_named_with_its_reason() -> None:
    notes = describe_omissions(GEMMA, [*TEXT, *IMAGES, PROJECTOR], TEXT[:1], None)
    assert notes == [
        "vision_tower is left out (4 of its tensors): sees images; the text model does not",
        "multi_modal_projector is left out (1 of its tensors): sees images; the text model does not",
    ]


def test_what_an_adapter_does_there_is_said() -> None:
    *_, note = describe_omissions(GEMMA, [*TEXT, *IMAGES], [*TEXT, IMAGES[0], IMAGES[2]], None)
    assert note.startswith("2 of the 5 tensors that the adapter changes are in these parts, vision_tower.")
    assert "--format folder" in note


def test_an_adapter_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(InputError, match=r"only what a GGUF of the text part does not hold") as caught:
        describe_omissions(GEMMA, [*TEXT, *IMAGES], IMAGES[:1], Path("adapter"))
    assert caught.value.at == "adapter" and "--format folder" in str(caught.value)


def test_a_model_that_goes_over_whole_has_no_notes() -> None:
    llama = {"architectures": ["LlamaForCausalLM"]}
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert describe_omissions(llama, names, names[:1], None) == []


def test_a_multimodal_base_becomes_a_text_gguf_with_notes(tmp_path: Path) -> None:
    """The text part of a Gemma 3 with an adapter on both parts; the folder keeps both."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_chat.folder(), base)
    text = {"model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
    config = json.loads((base / "config.json").read_text())
    config = {key: config[key] for key in config if key not in ("architectures", "rope_theta", "model_type")}
    whole = {"model_type": "gemma3", "text_config": config | text, "tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(GEMMA | whole))
    tensors = {
        name.replace("model.", "language_model.model.", 1): value
        for name, value in load_file(base / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    for layer in (0, 1):
        prefix = f"language_model.model.layers.{layer}"
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(64, np.float32)
        for norm in ("q_norm", "k_norm"):
            tensors[f"{prefix}.self_attn.{norm}.weight"] = np.ones(16, np.float32)
    seen = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {seen: np.zeros((8, 6), np.float32)}, base / "model.safetensors")
    modules = [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    changes = lora(modules[0], rows=64, cols=64) | lora(modules[1], rows=64, cols=64)
    # transformers 5 calls the image encoder's modules otherwise than the published files do.
    changes |= lora("model.vision_tower.encoder.layers.0.self_attn.q_proj")
    adapter_folder(adapter, changes)
    settings = ExportConfig(str(adapter), base=str(base), out=tmp_path / "gguf", quant=("F32",), verify=False)
    for kind in (settings, replace(settings, format="adapter", quant=(), out=tmp_path / "as adapter")):
        notes = export(kind).notes
        assert "vision_tower is left out (1 of its tensors): sees images; the text model does not" in notes
        assert any(note.startswith("1 of the 3 tensors that the adapter changes") for note in notes)
    export(ExportConfig(str(adapter), base=str(base), out=tmp_path / "folder", format="folder"))
    assert Checkpoint.open(tmp_path / "folder").rows(seen, 0, 1)[0, 0] == 4.0  # 2 · (1·1 + 1·1)


def test_a_number_of_the_header_cannot_be_tuned() -> None:
    """Apertus' activation has numbers that a GGUF keeps in its header, where no adapter reaches them."""
    config = {"architectures": ["ApertusForCausalLM"], "num_hidden_layers": 2}
    names = [f"model.layers.{layer}.mlp.act_fn.alpha_p" for layer in (0, 1)]
    assert describe_omissions(config, names, ["model.norm.weight"], None) == []
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.act_fn\.alpha_p, a number that .* in its header; fix: "
    ):
        describe_omissions(config, names, names[1:], None)
