"""Exports of bases that are packed in 4 or 8 bits, and of adapters on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from packed_folders import BNB, bnb_model, packed_folder, unpacked_by_bitsandbytes
from tiny_hub import COMMIT, go_there

from lorafold.cli import main
from lorafold.errors import InputError, SystemFault
from lorafold.export import ExportConfig, export
from lorafold.export.inputs import open_inputs
from lorafold.export.judge.settle import settle_base
from lorafold.export.proof.reference.whole import why_no_reference
from lorafold.models import fingerprint
from lorafold.packed.source import PackedCheckpoint
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch", reason="the bases are packed with it")
pytest.importorskip("bitsandbytes", reason="the bases are packed with it")
Q = "model.layers.{}.self_attn.q_proj"


def an_adapter(folder: Path, base: Path | str) -> Path:
    tensors = {key: 0.1 * value for i in (0, 1) for key, value in lora(Q.format(i), 2, 64, 64).items()}
    return adapter_folder(folder, tensors, base_model_name_or_path=str(base))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "fp4", "int8"])
def test_an_adapter_on_a_packed_base(kind: str, tmp_path: Path) -> None:
    base = bnb_model(kind)
    adapter = an_adapter(tmp_path / "adapter", base)
    config = ExportConfig(str(adapter), out=tmp_path / "out", quant=("F32",), name="tiny", reference="peft")
    result = export(config)
    assert result.proof.passed
    checks = {check.name: check for check in result.proof.checks}
    assert checks["logits tiny-F32.gguf"].verdict == "passed"  # against bitsandbytes' own reading
    (note,) = [note for note in result.notes if "unpacked weights" in note]
    said = {"nf4-double": "NF4", "fp4": "FP4", "int8": "int8"}[kind]
    assert f"folded into the unpacked weights of {base} (bitsandbytes, {said})" in note
    assert "pass its 16-bit original with --base" in note
    right = unpacked_by_bitsandbytes(base)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "out/tiny-F32.gguf").tensors}
    got = tensors["blk.1.ffn_down.weight"].data
    np.testing.assert_array_equal(got, right["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", BNB)
def test_the_merged_folder_is_plain(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = bnb_model(kind)
    export(ExportConfig(str(base), out=tmp_path / "out", format="folder"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    right = unpacked_by_bitsandbytes(base)
    for name, value in model.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, torch.from_numpy(right[name]).bfloat16()), name


def gptq_copy(folder: Path) -> Path:
    """`tiny_chat.folder()` with one projection in GPTQ: zero points of 1, and all integers 0 but one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_chat.folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    del tensors[f"{name}.weight"]
    codes = torch.zeros(8, 64, dtype=torch.int32)
    codes[0, 5] = 9 << 8  # input 2 of output 5
    tensors |= {
        f"{name}.qweight": codes,
        f"{name}.qzeros": torch.zeros(1, 8, dtype=torch.int32),
        f"{name}.scales": torch.full((1, 64), 0.5, dtype=torch.float16),
    }
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_transformers_cannot_unpack_is_not_checked(tmp_path: Path) -> None:
    base = gptq_copy(tmp_path / "base")
    adapter = an_adapter(tmp_path / "adapter", base)
    inputs = open_inputs(ExportConfig(str(adapter), out=tmp_path / "out"))
    assert why_no_reference(inputs) == "transformers does not unpack this base here (GPTQ, 4 bits)"
    block = inputs.source.base.rows("model.layers.0.self_attn.q_proj.weight", 5, 6)[0]
    assert block.tolist() == [0.5 * (9 - 1) if at == 2 else -0.5 for at in range(64)]
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--quant", "F16"]) == 0
    manifest = json.loads((tmp_path / "out/lorafold.json").read_text())
    verdicts = {check["name"].split()[0]: check for check in manifest["proof"]}
    assert verdicts["tensors"]["verdict"] == "passed"
    # transformers' layers with the unpacked rows are the reference that transformers alone would not be.
    assert verdicts["logits"]["verdict"] == "passed" and "reference" not in verdicts
    assert main(["export", str(adapter), "--out", str(tmp_path / "gguf"), "--format", "adapter"]) == 0


def test_rows_that_bitsandbytes_unpacks_wrongly_are_no_reference(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(bnb_model("nf4"), tmp_path / "base")
    adapter = an_adapter(tmp_path / "adapter", base)
    config = ExportConfig(str(adapter), out=tmp_path / "out")
    assert why_no_reference(open_inputs(config)) is None
    # The same weights in blocks of 128: those with 64 columns have rows that begin inside a block.
    tensors = load_file(base / "model.safetensors")
    for state in [name for name in tensors if name.endswith("bitsandbytes__nf4")]:
        told = json.loads(bytes(tensors[state].tolist())) | {"blocksize": 128}
        tensors[state] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        scales = state.partition(".quant_state")[0] + ".absmax"
        tensors[scales] = tensors[scales][::2].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert "unpacks rows wrongly on a CPU" in str(why_no_reference(open_inputs(config)))


def test_inspect_counts_the_models_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = gptq_copy(tmp_path / "base")
    assert main(["inspect", str(base)]) == 0
    shown = capsys.readouterr().out
    plain = Checkpoint.open(tiny_chat.folder()).tensors.values()
    assert f"{sum(int(np.prod(info.shape)) for info in plain):,} in {len(plain)} tensors" in shown
    assert "GPTQ, 4 bits: 1 tensors" in shown
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "aqlm"
    (base / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(base)]) == 0
    assert "not readable: the base is quantized (aqlm)" in " ".join(capsys.readouterr().out.split())


def test_onto_needs_the_plain_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = an_adapter(tmp_path / "adapter", gptq_copy(tmp_path / "base"))
    plain = tmp_path / "base.gguf"
    plain.write_bytes(b"GGUF")
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--onto", str(plain)]) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the base is packed (GPTQ, 4 bits), and --onto looks for the 16-bit weights" in line
    assert "pass its 16-bit original with --base, or leave --onto out" in line


def test_fold_into(tmp_path: Path) -> None:
    adapter = an_adapter(tmp_path / "adapter", tiny_chat.folder())
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"--fold-into: the base .* is not packed; fix: pass the 4-bit"):
        open_inputs(ExportConfig(str(adapter), out=out, fold_into="quantized"))
    assert open_inputs(ExportConfig(str(adapter), out=out, fold_into="original")).notes == ()
    base = gptq_copy(tmp_path / "base")
    packed = an_adapter(tmp_path / "packed-adapter", base)
    opened = open_inputs(ExportConfig(str(packed), out=out, fold_into="quantized"))
    assert isinstance(opened.source.base, PackedCheckpoint)
    with pytest.raises(InputError, match=r"neither its name nor its model card says .*--fold-into quantized"):
        open_inputs(ExportConfig(str(packed), out=out, fold_into="original"))


def test_a_base_that_was_packed_for_the_training_alone(tmp_path: Path) -> None:
    """QLoRA on plain weights: the manifest says what the adapter saw, in the words of the training."""
    from lorafold.models import resolve_base
    from lorafold.train.config import TrainConfig
    from lorafold.train.methods import METHODS
    from lorafold.train.model.packing import trained_weights

    base = resolve_base(str(tiny_chat.folder()))
    adapter = an_adapter(tmp_path / "adapter", base.folder)
    for method, notes in (("qlora", 1), ("lora", 0)):
        asked = TrainConfig(base=base.id, data=("chats.jsonl",), out=tmp_path / "run", method=method)
        noted = {**base.identity(), "weights": trained_weights(base, asked, METHODS[method])}
        manifest = {"kind": "adapter", "lorafold": "0", "files": {}, "base": noted}
        (adapter / "lorafold.json").write_text(json.dumps(manifest))
        found = open_inputs(ExportConfig(str(adapter), out=tmp_path / "out")).notes
        assert len(found) == notes
        assert all("while its weights were packed (bitsandbytes, NF4)" in note for note in found)


PACKED, ORIGINAL = "unsloth/Tiny-bnb-4bit", "unsloth/Tiny"


@pytest.mark.parametrize(
    ("here", "into", "taken", "told"),
    [
        ("both", "auto", PACKED, f"pass its 16-bit original with --base {ORIGINAL}"),
        ("both", "quantized", PACKED, f"pass its 16-bit original with --base {ORIGINAL}"),
        ("both", "original", ORIGINAL, f"was trained on {PACKED} and is folded into {ORIGINAL}, its 16-bit"),
        ("packed", "auto", PACKED, f"the adapter is folded into the unpacked weights of {PACKED}"),
        ("packed", "original", None, f"or fold into {PACKED}, which is here: --fold-into quantized"),
        ("original", "auto", ORIGINAL, "what the adapter learned to make up for the packing"),
        ("original", "original", ORIGINAL, f"was trained on {PACKED} and is folded into {ORIGINAL}, its"),
        ("original", "quantized", None, f"base_model_name_or_path: the base '{PACKED}' was not found"),
        ("none", "auto", None, f"base_model_name_or_path: the base '{PACKED}' was not found"),
    ],
)
def test_which_base_of_those_at_hand(
    here: str, into: Any, taken: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gptq_copy(tmp_path / "packed")
    for id_, folder in ((PACKED, packed), (ORIGINAL, tiny_chat.folder())):
        if here == "both" or here == ("packed" if id_ == PACKED else "original"):
            kept = tmp_path / "cache" / f"models--{id_.replace('/', '--')}"
            shutil.copytree(folder, kept / "snapshots" / COMMIT)
            (kept / "refs").mkdir()
            (kept / "refs/main").write_text(COMMIT)
    go_there("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    adapter = an_adapter(tmp_path / "adapter", PACKED)
    made_on = {"kind": "adapter", "lorafold": "0", "files": {}, "base": {"fingerprint": fingerprint(packed)}}
    (adapter / "lorafold.json").write_text(json.dumps(made_on))
    config = ExportConfig(str(adapter), out=tmp_path / "out", fold_into=into, offline=True)
    if taken is None:
        with pytest.raises((InputError, SystemFault)) as caught:
            open_inputs(config)
        assert told in str(caught.value)
        return
    inputs = open_inputs(config)
    assert inputs.base.id == taken
    assert told in inputs.notes[0]
    _, _, choice = settle_base(inputs, replace(config, verify=False))  # in the hub's cache, without asking it
    assert (choice.other if choice else None) == (ORIGINAL if (here, into) == ("both", "auto") else None)
    if taken == ORIGINAL:  # as the note of the packed one proposes it
        assert open_inputs(replace(config, fold_into="auto", base=ORIGINAL)).notes[0] == inputs.notes[0]


def test_the_original_of_the_card_is_folded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card names a hub id; a folder of that name below the working directory stands for it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_chat.folder(), tmp_path / "org/plain")
    base = gptq_copy(tmp_path / "base")
    (base / "README.md").write_text("---\nbase_model: org/plain\nbase_model_relation: quantized\n---\n")
    adapter = an_adapter(tmp_path / "adapter", base)
    made_on = {"kind": "adapter", "lorafold": "0", "files": {}, "base": {"fingerprint": fingerprint(base)}}
    (adapter / "lorafold.json").write_text(json.dumps(made_on))
    quantized = open_inputs(ExportConfig(str(adapter), out=tmp_path / "out"))
    assert "pass its 16-bit original with --base org/plain" in quantized.notes[0]
    inputs = open_inputs(ExportConfig(str(adapter), out=tmp_path / "out", fold_into="original"))
    assert isinstance(inputs.source.base, Checkpoint)
    assert inputs.base.folder.name == "plain"
    made_on["base"] = {"fingerprint": "0" * 64}
    (adapter / "lorafold.json").write_text(json.dumps(made_on))
    with pytest.raises(InputError, match="made for another base"):
        open_inputs(ExportConfig(str(adapter), out=tmp_path / "out", fold_into="original"))


def test_plain_conversion_says_what_it_was_made_from(tmp_path: Path) -> None:
    base = gptq_copy(tmp_path / "base")
    result = export(ExportConfig(str(base), out=tmp_path / "out", quant=("F16",), verify=False))
    assert any("made from the unpacked weights" in note and "GPTQ, 4 bits" in note for note in result.notes)


def test_a_folder_without_a_model_is_refused_by_its_method(tmp_path: Path) -> None:
    packed_folder(tmp_path / "b", {"quant_method": "aqlm"}, {"norm.weight": np.ones(4, np.float32)})
    with pytest.raises(InputError, match=r"the base is quantized \(aqlm\), which cannot be read"):
        open_inputs(ExportConfig(str(tmp_path / "b"), out=tmp_path / "out"))
