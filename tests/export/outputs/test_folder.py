"""The proof of a merged folder: it passes for every type and way of rounding, and fails for wrong weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny_chat
import torch
from adapter_folders import adapter_folder, lora
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lorafold.errors import NumericError
from lorafold.export import ExportConfig, export, verify
from lorafold.export.outputs.merged_folder import plan_merged_folder, write_merged_folder
from lorafold.export.outputs.side_files import find_side_files
from lorafold.weights import Checkpoint

WIDE = 4096
DOWN = "model.layers.{}.mlp.down_proj"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def small_weights(folder: Path, dtype: str) -> Path:
    """A base with weights as trained ones are, of standard deviation 0.02: one in 400 is an F16 subnormal."""
    shutil.copytree(tiny_chat.folder(), folder)
    dice = np.random.default_rng(5)
    tensors = load_file(folder / "model.safetensors")
    for layer in (0, 1):
        for name, shape in {"gate": (WIDE, 64), "up": (WIDE, 64), "down": (64, WIDE)}.items():
            tensors[f"model.layers.{layer}.mlp.{name}_proj.weight"] = np.zeros(shape, np.float32)
    made = {
        name: torch.from_numpy(dice.standard_normal(value.shape) * 0.02).to(DTYPES[dtype])
        for name, value in tensors.items()
    }
    safetensors.torch.save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**settings, "intermediate_size": WIDE, "torch_dtype": dtype})
    )
    return folder


def small_adapter(folder: Path, seed: int = 0) -> Path:
    dice = np.random.default_rng(seed)
    tensors = lora(DOWN.format(0), 8, 64, WIDE) | lora(DOWN.format(1), 8, 64, WIDE)
    values = {name: (dice.standard_normal(v.shape) * 0.02).astype(np.float32) for name, v in tensors.items()}
    return adapter_folder(folder, values, r=8, lora_alpha=16, target_modules=["down_proj"])


@pytest.mark.parametrize("rounding", ["exact", "peft"])
@pytest.mark.parametrize(
    ("of_base", "dtype"),
    [("float16", "keep"), ("float32", "f16"), ("bfloat16", "f16"), ("bfloat16", "keep"), ("float32", "f32")],
)
def test_a_right_folder_is_proven(of_base: str, dtype: Any, rounding: Any, tmp_path: Path) -> None:
    base = small_weights(tmp_path / "base", of_base)
    adapters = [str(small_adapter(tmp_path / f"adapter{seed}", seed)) for seed in range(3)]
    for number, further in enumerate(((), tuple(adapters[1:]))):
        settings = ExportConfig(
            adapters[0],
            base=str(base),
            adapter=further,
            out=tmp_path / f"out{number}",
            format="folder",
            dtype=dtype,
            rounding=rounding,
        )
        assert [check.verdict for check in export(settings).proof.checks] == ["passed"]


@pytest.mark.parametrize(("dtype", "error"), [("f16", 2.0**-23), ("bf16", 2.0**-13), ("f32", 1e-6)])
def test_weights_that_are_off_by_more_than_rounding_are_seen(
    dtype: Any, error: float, tmp_path: Path
) -> None:
    """One weight in each row of a matrix is moved by a few times what rounding may do to it."""
    base = small_weights(tmp_path / "base", "float32")
    out = tmp_path / "out"
    export(ExportConfig(str(base), out=out, format="folder", dtype=dtype, verify=False))
    assert verify(out).passed
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    wrong = tensors[DOWN.format(0) + ".weight"]
    places = torch.arange(64), wrong.float().abs().argmin(dim=1)
    wrong[places] = (wrong[places].float() + error).to(wrong.dtype)
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((out / "lorafold.json").read_text())
    entry = manifest["files"]["model.safetensors"]
    entry["sha256"] = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    entry["size"] = (out / "model.safetensors").stat().st_size
    (out / "lorafold.json").write_text(json.dumps(manifest))
    proof = verify(out)
    with pytest.raises(NumericError, match=r"layers\.0\.mlp\.down_proj") as caught:
        proof.require()
    assert caught.value.fix is not None and caught.value.fix.startswith("export again")


class Recorded:
    """A checkpoint that notes how many weights were asked for at once."""

    def __init__(self, source: Checkpoint) -> None:
        self.tensors, self.largest, self._source = source.tensors, 0, source

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        self.largest = max(self.largest, (stop - start) * self.tensors[name].cols)
        return self._source.rows(name, start, stop)


@pytest.mark.parametrize(("threads", "memory"), [(1, 200_000_000), (1, 1_000_000), (4, 1_000_000)])
def test_blocks_are_as_small_as_the_memory_demands(threads: int, memory: int, tmp_path: Path) -> None:
    base = small_weights(tmp_path / "base", "float32")
    source = Recorded(Checkpoint.open(base))
    (tmp_path / "out").mkdir()
    plan = plan_merged_folder(source, base, find_side_files(base))
    write_merged_folder(plan, source, tmp_path / "out", threads=threads, max_memory=memory)
    assert threads * source.largest * 4 <= memory < 200_000_000 or source.largest == 64 * WIDE
    assert load_file(tmp_path / "out/model.safetensors").keys() == source.tensors.keys()
