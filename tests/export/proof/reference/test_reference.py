"""The proof of the answers where transformers and PEFT need help to load the reference, or cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from peft_models import resized_adapter

from lorafold.errors import InputError
from lorafold.export import ExportConfig, export
from lorafold.export.imatrix.data import collect_both
from lorafold.export.imatrix.texts import read_texts
from lorafold.export.inputs import open_inputs

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ],
    ids=["saved by itself", "modules_to_save", "target_modules"],
)
def test_a_resized_adapter_is_proven(options: dict[str, Any], tmp_path: Path) -> None:
    adapter = resized_adapter(tmp_path / "adapter", tiny_chat.folder(), **options)
    result = export(ExportConfig(str(adapter), out=tmp_path / "out", quant=("F32",), name="tiny"))
    checks = {check.name: check for check in result.proof.checks}
    assert checks["logits tiny-F32.gguf"].verdict == "passed", checks["logits tiny-F32.gguf"].meaning
    assert checks["logits tiny-F32.gguf"].figures["mean KL"] < 1e-5
    assert checks["logits tiny-F32.gguf"].figures["KL of the adapter"] > 1e-3
    assert checks["tokenizer"].verdict == "passed"


def unknown_to_transformers(folder: Path) -> Path:
    """A model type that only this program knows by its architecture, as Index without its `auto_map`."""
    base = shutil.copytree(tiny_chat.folder(), folder)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"model_type": "not-in-transformers"}))
    return base


def test_a_reference_that_cannot_be_loaded_leaves_the_export_standing(tmp_path: Path) -> None:
    base = unknown_to_transformers(tmp_path / "base")
    result = export(ExportConfig(str(base), out=tmp_path / "out", quant=("F32",), name="tiny"))
    (check,) = (check for check in result.proof.checks if check.name == "logits tiny-F32.gguf")
    assert check.verdict == "not checked"
    assert "cannot load it as a reference (ValueError: " in check.meaning and "\n" not in check.meaning
    assert check.meaning.startswith("transformers cannot compute it layer by layer (ValueError: ")
    assert (tmp_path / "out" / "tiny-F32.gguf").is_file()


def test_an_adapter_that_peft_cannot_load_leaves_the_export_standing(tmp_path: Path) -> None:
    """A method's option that this PEFT does not know: it names itself, and stops PEFT alone."""
    adapter = shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["lora_dropout"] = "a lot"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    options: dict[str, Any] = {"quant": ("F32",), "name": "tiny"}
    result = export(ExportConfig(str(adapter), out=tmp_path / "out", reference="peft", **options))
    (check,) = (check for check in result.proof.checks if check.name == "logits tiny-F32.gguf")
    assert check.verdict == "not checked" and "cannot load it as a reference (TypeError: " in check.meaning
    result = export(ExportConfig(str(adapter), out=tmp_path / "layers", **options))
    assert result.proof.passed is True, "layer by layer PEFT is not needed"


def test_an_importance_matrix_without_a_reference_is_an_error_in_one_line(tmp_path: Path) -> None:
    base = unknown_to_transformers(tmp_path / "base")
    texts = tmp_path / "texts.txt"
    texts.write_text("some text")
    inputs = open_inputs(ExportConfig(str(base), out=tmp_path / "out"))
    with pytest.raises(InputError, match=r"transformers cannot run it .ValueError.*--imatrix") as caught:
        collect_both(inputs, [], read_texts(inputs, texts, hold_out=False), lambda *_: None)
    assert "\n" not in str(caught.value)


def wrapped(folder: Path) -> Path:
    """The tiny adapter with a wrapper around its names, as `torch.compile` leaves it."""
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(tiny_chat.adapter(), folder)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, path)
    return adapter


def test_what_peft_would_read_in_another_way_is_not_called_proven_by_peft(tmp_path: Path) -> None:
    adapter = wrapped(tmp_path / "adapter")
    result = export(ExportConfig(str(adapter), out=tmp_path / "out", quant=("F32",), name="tiny"))
    checks = {check.name: check for check in result.proof.checks}
    assert checks["logits tiny-F32.gguf"].verdict == "passed"
    assert checks["effect"].figures["KL of the adapter"] > 1e-3
    assert checks["reading"].verdict == "note"
    assert "PEFT would read another adapter from this folder (its tensors carry" in checks["reading"].meaning
    assert "PEFT does not confirm the reading" in checks["reading"].meaning
    plain = export(
        ExportConfig(str(tiny_chat.adapter()), out=tmp_path / "plain", quant=("F32",), name="tiny")
    )
    assert "reading" not in {check.name for check in plain.proof.checks}


def test_several_weighted_adapters_are_proven(tmp_path: Path) -> None:
    """No single PEFT model is their sum; layer by layer the merge itself gives the weights."""
    result = export(
        ExportConfig(
            f"{tiny_chat.adapter()}=0.5",
            adapter=(f"{tiny_chat.adapter(seed=2)}=-0.25",),
            base=str(tiny_chat.folder()),
            out=tmp_path / "out",
            quant=("F32",),
            name="tiny",
        )
    )
    checks = {check.name: check for check in result.proof.checks}
    assert checks["logits tiny-F32.gguf"].verdict == "passed" and result.proof.passed is True
    assert checks["logits tiny-F32.gguf"].figures["mean KL"] < 1e-5
    assert checks["effect"].figures["KL of the adapter"] > 1e-3
