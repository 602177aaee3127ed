"""A quantized GGUF of the base: its rows are found by the nearest lines, and the base's values are folded."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from onto_cases import Case, Tensors, case, drawn, write_gguf

from lorafold.errors import InputError
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.source import OntoSource

SHAPE = {f"model.layers.{layer}.x.proj.weight": (64, 96) for layer in (0, 1)}
BOTH = ["model.layers.0.x.proj", "model.layers.1.x.proj"]


def plain(t: Tensors) -> Tensors:
    return {f"blk.{layer}.a.weight": t[f"model.layers.{layer}.x.proj.weight"] for layer in (0, 1)}


def interleaved(t: Tensors) -> Tensors:
    """Llama's order of q and k, with heads of 16 rows."""
    return {n: v.reshape(4, 2, 8, 96).swapaxes(1, 2).reshape(64, 96) for n, v in plain(t).items()}


def shuffled(t: Tensors) -> Tensors:
    order = np.random.default_rng(2).permutation(64)
    return {n: v[order] for n, v in plain(t).items()}


def halves(t: Tensors) -> Tensors:
    return {
        f"blk.{layer}.{part}.weight": t[f"model.layers.{layer}.x.proj.weight"][rows]
        for layer in (0, 1)
        for part, rows in (("gate", slice(0, 32)), ("up", slice(32, 64)))
    }


@pytest.mark.parametrize("convert", [plain, interleaved, shuffled, halves])
@pytest.mark.parametrize("type_", [Type.Q8_0, Type.Q5_0, Type.Q4_0])
def test_rows_are_found_and_the_bases_values_folded(tmp_path: Path, convert: object, type_: Type) -> None:
    found, wanted = case(tmp_path, drawn(SHAPE), BOTH, convert, type_)  # type: ignore[arg-type]
    source = found.source()
    assert set(source.found.maps) == set(wanted)
    for name, values in wanted.items():
        assert np.abs(source.rows(name, 0, len(values)) - values).max() <= 1e-6


def test_latent_attention(tmp_path: Path) -> None:
    base = drawn({"model.layers.0.x.proj.weight": (4 * 48, 64)})

    def convert(t: Tensors) -> Tensors:
        heads = t["model.layers.0.x.proj.weight"].reshape(4, 48, 64)
        return {
            "blk.0.k_b.weight": heads[:, :32].swapaxes(1, 2),
            "blk.0.v_b.weight": heads[:, 32:].reshape(64, 64),
        }

    found, wanted = case(tmp_path, base, ["model.layers.0.x.proj"], convert, Type.Q8_0)
    source = found.source()
    for name, values in wanted.items():
        rows = values.reshape(-1, values.shape[-1])
        assert np.abs(source.rows(name, 0, len(rows)) - rows).max() <= 1e-6


def experts(t: Tensors) -> Tensors:
    return {"blk.0.e.weight": np.stack([t[f"model.layers.0.experts.{e}.proj.weight"] for e in range(4)])}


def one_expert(folder: Path) -> tuple[OntoSource, Case]:
    shapes = {f"model.layers.0.experts.{e}.proj.weight": (32, 64) for e in range(4)}
    found, _ = case(folder, drawn(shapes), ["model.layers.0.experts.2.proj"], experts, Type.Q4_0)
    return found.source(), found


def test_rows_beside_a_touched_expert_keep_their_bytes(tmp_path: Path) -> None:
    source, found = one_expert(tmp_path)
    own = found.model.packed("blk.0.e.weight", 0, 128)
    got = source.packed("blk.0.e.weight", Type.Q4_0, 0, 128, None)
    assert got is not None
    kept = np.r_[0:64, 96:128]
    assert np.array_equal(got[kept], own[kept])
    folded = gguf.quants.dequantize(got[64:96], Type.Q4_0)
    assert np.abs(folded - source.rows("blk.0.e.weight", 64, 96)).max() < 0.2
    assert not np.array_equal(got[64:96], own[64:96])


def test_a_revision_that_differs_less_than_quantizing_is_told_by_its_norms(tmp_path: Path) -> None:
    shapes = SHAPE | {f"model.layers.{layer}.norm.weight": (96,) for layer in (0, 1)}

    def convert(t: Tensors) -> Tensors:
        return plain(t) | {
            f"blk.{layer}.norm.weight": t[f"model.layers.{layer}.norm.weight"] for layer in (0, 1)
        }

    base = drawn(shapes)
    found, _ = case(tmp_path, base, BOTH, convert, Type.Q4_0)
    found.find()
    near = {name: values * np.float32(1.003) for name, values in base.items()}
    other = Case(found.fold, BaseGguf.open(write_gguf(tmp_path / "near.gguf", convert(near), Type.Q4_0)))
    with pytest.raises(InputError, match=r"2 of its 2 norms are not the base's, the first is blk\.0\.norm"):
        other.find()
    one_more = {name: values + np.float32("norm" in name) for name, values in convert(base).items()}
    gemma = Case(found.fold, BaseGguf.open(write_gguf(tmp_path / "gemma.gguf", one_more, Type.Q4_0)))
    gemma.find()
