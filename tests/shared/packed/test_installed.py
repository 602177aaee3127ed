"""Packed weights against the installed libraries: bitsandbytes, and transformers for FP8 and MXFP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_folders import open_packed, packed_folder
from packed_parts import INT8

from lorafold.packed.source import PackedCheckpoint

torch = pytest.importorskip("torch", reason="the libraries need torch")


def check(base: PackedCheckpoint, name: str, right: Any) -> None:
    """All rows, in blocks of several sizes, equal the library's float32 numbers."""
    assert base.tensors[name].shape == tuple(right.shape)
    rows, flat = base.tensors[name].rows, right.numpy().reshape(-1, right.shape[-1])
    for step in (1, 7, 32, rows):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            np.testing.assert_array_equal(base.rows(name, start, stop), flat[start:stop])


# (48, 80) has rows that begin inside a block, and (37, 6) ends inside one.
SHAPES = ((64, 128), (48, 80), (37, 6), (300, 256))


def unpacked(functional: Any, packed: Any, state: Any) -> Any:
    """What bitsandbytes unpacks, all in one row.

    Its kernel for CPUs (0.50.2) takes wrong scales for rows that begin inside a block: their distance from
    the weights that were packed doubles. Its other kernels do not.
    """
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))
    whole = functional.dequantize_4bit(packed, state).reshape(shape)
    state.shape = shape
    return whole


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(kind: str, double: bool, dtype: str, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    tensors, states = {}, {}
    for number, shape in enumerate(SHAPES):
        name = f"m{number}.weight"
        weight = torch.randn(shape).to(getattr(torch, dtype))
        packed, state = functional.quantize_4bit(
            weight, quant_type=kind, blocksize=(64, 128)[number % 2], compress_statistics=double
        )
        tensors[name] = packed
        tensors |= {f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}
        states[name] = state
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    base = open_packed(packed_folder(tmp_path, settings, tensors))
    assert set(base.tensors) == set(states)
    for name, state in states.items():
        in_type = unpacked(functional, tensors[name], state)
        state.dtype = torch.float32  # what the library computes before it rounds to the weight's own type
        right = unpacked(functional, tensors[name], state)
        check(base, name, right)
        mine = torch.from_numpy(base.rows(name, 0, len(right))).to(in_type.dtype)
        assert torch.equal(mine, in_type)


def test_bitsandbytes_with_its_bytes_called_another_type(tmp_path: Path) -> None:
    """FSDP needs all weights in one type, so the packed ones are stored under the name of that."""
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 128)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", quant_storage=torch.bfloat16)
    parts = {f"a.weight.{part}": value for part, value in state.as_dict(packed=True).items()}
    folder = packed_folder(tmp_path, {"quant_method": "bitsandbytes"}, {"a.weight": packed, **parts})
    check(open_packed(folder), "a.weight", functional.dequantize_4bit(packed, state))


def test_bitsandbytes_in_eight_bits(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    packed, scales, _ = functional.int8_vectorwise_quant(torch.randn(70, 96).half())
    tensors = {"a.weight": packed, "a.SCB": scales, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
    base = open_packed(packed_folder(tmp_path, INT8, tensors))
    check(base, "a.weight", functional.int8_vectorwise_dequant(packed, scales))


GRIDS = {"tensor": (1, 1), "row": (96, 1), "block": (3, 4), "row of groups": (96, 4)}


@pytest.mark.parametrize("scale_type", ["float32", "bfloat16", "float8_e8m0fnu"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("lead", [(), (3,)], ids=["matrix", "experts"])
def test_fp8_against_transformers(lead: tuple[int, ...], grid: str, scale_type: str, tmp_path: Path) -> None:
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    torch.manual_seed(0)
    weight = (torch.randn(*lead, 96, 128) * 20).to(torch.float8_e4m3fn)
    scales = (torch.rand(*lead, *GRIDS[grid]) + 0.01).to(getattr(torch, scale_type))
    name, settings = ("a.weight" if not lead else "experts.gate_up_proj"), {"quant_method": "fp8"}
    if grid == "block":
        settings["weight_block_size"] = [32, 32]
    base = open_packed(packed_folder(tmp_path, settings, {name: weight, f"{name}_scale_inv": scales}))
    check(base, name, fp8.Fp8Dequantize(None)._dequantize_one(weight, scales, torch.float32))


def test_every_fp8_number_is_torchs(tmp_path: Path) -> None:
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        codes = torch.arange(256, dtype=torch.uint8).view(kind)
        finite = codes[torch.isfinite(codes.float())].reshape(2, -1)
        tensors = {"a.weight": finite, "a.weight_scale": torch.tensor(1.0)}
        base = open_packed(packed_folder(tmp_path / str(kind), {"quant_method": "fp8"}, tensors))
        check(base, "a.weight", finite.float())


def test_mxfp4_against_transformers(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    torch.manual_seed(0)
    experts, out, groups = 3, 40, 5
    blocks = torch.randint(0, 256, (experts, out, groups, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (experts, out, groups), dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    base = open_packed(packed_folder(tmp_path, {"quant_method": "mxfp4"}, tensors))
    right = mxfp4._convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert right.shape == (experts, groups * 32, out)
    check(base, name, right)
