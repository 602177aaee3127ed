"""gpt-oss in MXFP4: experts that no adapter touches keep their bits; llama.cpp's converter is the oracle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from converter import convert
from tiny_families import tiny_family

from lorafold.export import ExportConfig, export
from lorafold.export.inputs import open_inputs
from lorafold.export.outputs.gguf import plan_gguf_output

torch = pytest.importorskip("torch", reason="the model is made with it")
pytest.importorskip("transformers")

EXPERTS = re.compile(r"blk\.\d\.ffn_(gate|up|down)_exps\.weight")


def packed_gpt_oss(folder: Path) -> Path:
    """A tiny gpt-oss whose experts are random blocks, with the tokenizer of `tiny_chat`."""
    from safetensors.torch import load_file, save_file

    tiny_family("gpt-oss", folder, "bfloat16")
    tensors = load_file(folder / "model.safetensors")
    dice = torch.Generator().manual_seed(0)
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        experts, into, out = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, into // 32, 16), generator=dice, dtype=torch.uint8)
        # Without its large numbers ggml's own quantizer would write a block in another way.
        blocks[:, ::3] &= 0x99
        scales = torch.randint(115, 123, (experts, out, into // 32), generator=dice, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_chat.folder() / name, folder / name)
    return folder


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_experts_keep_their_bits(tmp_path: Path) -> None:
    base = packed_gpt_oss(tmp_path / "base")
    convert([{"folder": str(base), "out": str(tmp_path / "theirs.gguf"), "outtype": "bf16"}])
    queries = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    tensors = {key: value for name in queries for key, value in lora(name, 2, 128, 64).items()}
    adapter = adapter_folder(tmp_path / "adapter", tensors, base_model_name_or_path=str(base))
    result = export(ExportConfig(str(adapter), out=tmp_path / "out", quant=("BF16", "Q4_K_M"), name="tiny"))
    (note,) = (note for note in result.notes if "MXFP4" in note and "stay" in note)
    assert note.startswith("6 tensors of the base stay in MXFP4")
    theirs = tensors_of(tmp_path / "theirs.gguf")
    for quant in ("BF16", "Q4_K_M"):
        ours = tensors_of(tmp_path / f"out/tiny-{quant}.gguf")
        assert ours.keys() == theirs.keys()
        kept = [name for name in ours if EXPERTS.fullmatch(name)]
        assert len(kept) == 6
        for name in kept if quant == "Q4_K_M" else ours:
            if not name.endswith("attn_q.weight"):
                assert ours[name].tensor_type == theirs[name].tensor_type, name
                assert np.array_equal(ours[name].data.view(np.uint8), theirs[name].data.view(np.uint8)), name
    assert result.proof.verdict != "failed", result.proof.summary()


def test_a_type_that_is_asked_for_goes_first(tmp_path: Path) -> None:
    base = packed_gpt_oss(tmp_path / "base")
    config = ExportConfig(
        str(base), out=tmp_path / "out", quant=("Q8_0",), tensor_type=("ffn_down_exps=Q8_0",), verify=False
    )
    types = {tensor.name: tensor.type for tensor in plan_gguf_output(open_inputs(config), config).tensors()}
    assert types["blk.0.ffn_down_exps.weight"] == "Q8_0" and types["blk.0.ffn_up_exps.weight"] == "MXFP4"


def test_experts_that_an_adapter_touches_are_quantized(tmp_path: Path) -> None:
    """A change of one expert layer's projection leaves the others as they are."""
    base = packed_gpt_oss(tmp_path / "base")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_family("gpt-oss", tmp_path / "plain", "bfloat16"))
    settings = peft.LoraConfig(
        r=2, target_parameters=["layers.0.mlp.experts.down_proj"], target_modules=[], task_type="CAUSAL_LM"
    )
    peft.get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    config = ExportConfig(
        str(tmp_path / "adapter"), base=str(base), out=tmp_path / "out", quant=("Q8_0",), verify=False
    )
    types = {tensor.name: tensor.type for tensor in plan_gguf_output(open_inputs(config), config).tensors()}
    assert types["blk.0.ffn_down_exps.weight"] == "Q8_0"
    assert types["blk.1.ffn_down_exps.weight"] == types["blk.0.ffn_up_exps.weight"] == "MXFP4"
