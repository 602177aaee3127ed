"""Training on bases that are packed already: as they are, and what is said and written down of that."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from packed_folders import bnb_model, unpacked_by_bitsandbytes
from safetensors.numpy import save_file
from tiny_run import steady, tiny_run

from lorafold.errors import InputError, UsageError
from lorafold.models import Base, fingerprint
from lorafold.train import TrainConfig, train
from lorafold.train.model.room import least_memory

pytest.importorskip("bitsandbytes", reason="the bases are packed with it")

WORDS = {"nf4-double": "bitsandbytes, NF4", "int8": "bitsandbytes, int8"}


def three_steps(out: Path, base: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(tiny_run(out), base=str(base), max_steps=3, **changes)


def unpacked(kind: str, folder: Path) -> Path:
    """The base of the same weights, plain, as transformers and bitsandbytes unpack them."""
    shutil.copytree(tiny_chat.folder(), folder)
    save_file(unpacked_by_bitsandbytes(bnb_model(kind)), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
def test_a_packed_base_is_trained_on_as_it_is(kind: str, tmp_path: Path) -> None:
    """The losses are those on the weights as bitsandbytes unpacks them, and not the 16-bit original's."""
    base = bnb_model(kind)
    others = {"unpacked": unpacked(kind, tmp_path / "base"), "original": tiny_chat.folder()}
    asked = {method: three_steps(tmp_path / method, base, method=method) for method in ("lora", "qlora")}
    asked |= {name: three_steps(tmp_path / name, folder) for name, folder in others.items()}
    losses = {name: [row["loss"] for row in steady(train(one).folder)] for name, one in asked.items()}
    assert len(losses["lora"]) == 3 and losses["lora"] == losses["qlora"]
    assert losses["lora"] == pytest.approx(losses["unpacked"], rel=5e-3)  # its own products round
    first = {name: each[0] for name, each in losses.items()}
    assert abs(first["lora"] - first["unpacked"]) < abs(first["lora"] - first["original"]) / 3
    runs = [tmp_path / "lora", tmp_path / "qlora"]
    for folder in runs:
        facts = json.loads((folder / "lorafold.json").read_text())
        assert facts["base"] == {
            "id": str(base),
            "spec": str(base),
            "revision": None,
            "fingerprint": fingerprint(base),
            "weights": f"{WORDS[kind]}, as the folder has them",
        }
        (note,) = (note for note in facts["notes"] if "packed" in note and "export" in note)
        assert note == (
            f"the base's weights are packed ({WORDS[kind]}) and trained on as they are; export folds into "
            "them, unpacked, or into their 16-bit original with --fold-into original"
        )


@pytest.mark.slow
def test_what_a_plain_base_is_packed_into_is_written_down(tmp_path: Path) -> None:
    for changes, words in (
        ({"method": "qlora", "bnb_4bit_quant_type": "fp4"}, ", packed for the training (bitsandbytes, FP4)"),
        ({"load_in_8bit": True}, ", packed for the training (bitsandbytes, int8)"),
        ({}, ""),
    ):
        out = tmp_path / str(len(words))
        facts_in = train(three_steps(out, tiny_chat.folder(), **changes)).folder / "lorafold.json"
        facts = json.loads(facts_in.read_text())
        assert facts["base"]["weights"] == f"float32{words}"
        assert any("folds into the unquantized base" in note for note in facts["notes"]) == bool(words)


@pytest.mark.parametrize(
    ("method", "needs"), [("full", "trains the weights"), ("pissa", "starts from a part of the weights")]
)
def test_what_needs_the_weights_themselves_is_refused(method: Any, needs: str, tmp_path: Path) -> None:
    base = shutil.copytree(bnb_model("nf4-double"), tmp_path / "Tiny-bnb-4bit")
    (base / "README.md").write_text("---\nbase_model: org/Tiny\nbase_model_relation: quantized\n---\n")
    with pytest.raises(UsageError) as caught:
        train(three_steps(tmp_path / "out", base, method=method))
    assert str(caught.value) == (
        f"--method {method}: it {needs}, and those of {base} are packed (bitsandbytes, NF4); fix: choose "
        "--method qlora, or give its 16-bit original, org/Tiny"
    )


def test_a_packing_that_transformers_cannot_load_here_is_no_damage(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"transformers cannot load it .*optimum") as caught:
        train(three_steps(tmp_path / "out", base, method="qlora"))
    assert caught.value.fix == (
        f"install what transformers asks for, or train on the 16-bit original of {base}"
    )


def test_the_plan_counts_packed_weights_as_they_lie_there(tmp_path: Path) -> None:
    """The bytes behind the header; as so many numbers of float32 they would be several times that."""
    base = bnb_model("nf4-double")
    stored = (base / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(stored[:8], "little")
    for method in ("lora", "qlora"):
        least, _, _ = least_memory(three_steps(tmp_path / "out", base, method=method), Base(base, "tiny"))
        assert least == len(stored) - header
