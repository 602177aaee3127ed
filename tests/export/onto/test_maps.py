"""Every kind of map by which a GGUF holds a base's rows, found by values and folded through.

Each case converts base and merged model by the same few lines of numpy; the names of the GGUF say nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from onto_cases import Convert, Tensors, case, drawn, worst

from lorafold.export.onto.find import find_sources
from lorafold.export.onto.match import BLOCK_NUMBERS

L = "model.layers.{}."


def interleaved(rows: np.ndarray, head: int) -> np.ndarray:  # type: ignore[type-arg]
    """The halves of every head in turns, as Llama's q and k are stored."""
    return rows.reshape(-1, 2, head // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def as_they_are(t: Tensors) -> Tensors:
    return {f"blk.{layer}.a.weight": t[f"model.layers.{layer}.x.proj.weight"] for layer in (0, 1)}


def permuted_heads(t: Tensors) -> Tensors:
    return {name: interleaved(rows, 8) for name, rows in as_they_are(t).items()}


def stacked(t: Tensors) -> Tensors:
    return {
        f"blk.{layer}.e.weight": np.stack(
            [t[f"model.layers.{layer}.experts.{e}.proj.weight"] for e in range(3)]
        )
        for layer in (0, 1)
    }


def sliced(t: Tensors) -> Tensors:
    whole = t["model.layers.0.x.proj.weight"]
    return {"blk.0.one.weight": whole[:10], "blk.0.two.weight": whole[10:]}


def transposed(t: Tensors) -> Tensors:
    return {name: rows.T for name, rows in as_they_are(t).items()}


def latent(t: Tensors) -> Tensors:
    """DeepSeek's kv_b: per head the rows of the keys transposed, those of the values as they are."""
    heads = t["model.layers.0.x.proj.weight"].reshape(4, 6, 12)
    return {
        "blk.0.k_b.weight": heads[:, :4].swapaxes(1, 2),
        "blk.0.v_b.weight": heads[:, 4:].reshape(8, 12),
    }


def permuted_columns(t: Tensors) -> Tensors:
    order = np.random.default_rng(7).permutation(12)
    return {name: rows[::-1][:, order] for name, rows in as_they_are(t).items()}


def scaled(t: Tensors) -> Tensors:
    factors = np.repeat(np.array([0.4419417, 1.3, 2.5], np.float32), 8)[:, None]
    return {name: rows * factors for name, rows in as_they_are(t).items()}


def negative(t: Tensors) -> Tensors:
    return {name: rows * np.float32(-0.7) for name, rows in as_they_are(t).items()}


def padded(t: Tensors) -> Tensors:
    return {name: np.concatenate([rows, 0 * rows[:3]]) for name, rows in as_they_are(t).items()}


SHAPE = {f"model.layers.{layer}.x.proj.weight": (24, 12) for layer in (0, 1)}
WIDE = dict.fromkeys(SHAPE, (24, 64))
EXPERTS = {f"model.layers.{layer}.experts.{e}.proj.weight": (10, 12) for layer in (0, 1) for e in range(3)}

CASES: dict[str, tuple[dict[str, tuple[int, ...]], Convert, str]] = {
    "rows": (SHAPE, as_they_are, "rows"),
    "permuted heads": (SHAPE, permuted_heads, "permuted rows"),
    "stacked": (EXPERTS, stacked, "stacked"),
    "sliced": ({"model.layers.0.x.proj.weight": (24, 12)}, sliced, "slices"),
    "transposed": (SHAPE, transposed, "transposed"),
    "latent": ({"model.layers.0.x.proj.weight": (24, 12)}, latent, "transposed parts"),
    "permuted columns": (SHAPE, permuted_columns, "permuted columns"),
    "scaled": (WIDE, scaled, "scaled rows"),
    "negative": (WIDE, negative, "scaled rows"),
    "padded": (SHAPE, padded, "rows"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("type_", [Type.F32, Type.BF16, Type.F16])
def test_every_kind_of_map_is_found_and_folded_through(tmp_path: Path, name: str, type_: Type) -> None:
    shapes, convert, kind = CASES[name]
    base = drawn(shapes)
    modules = [tensor.removesuffix(".weight") for tensor in base]
    found, wanted = case(tmp_path, base, modules, convert, type_)
    source = found.source()
    assert kind in {tensor.describe(source.found.search.lines) for tensor in source.found.maps.values()}
    assert set(source.found.maps) == set(wanted)
    # A constant is known as well as the file's type tells it: far better than what is then rounded.
    assert worst(source, wanted) <= (1e-5 if kind == "scaled rows" and type_ != Type.F32 else 2e-6)


def test_a_base_in_float32_is_compared_as_the_file_rounds_it(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    base = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPE.items()}
    modules = [tensor.removesuffix(".weight") for tensor in base]
    for type_ in (Type.BF16, Type.F16):
        found, wanted = case(tmp_path / type_.name, base, modules, permuted_heads, type_, dtype="F32")
        assert worst(found.source(), wanted) <= 1e-6


def test_blocks_of_any_size_hold_the_same_rows(tmp_path: Path) -> None:
    for name, (shapes, convert, _) in CASES.items():
        base = drawn(shapes)
        modules = [tensor.removesuffix(".weight") for tensor in base]
        found, _ = case(tmp_path / name, base, modules, convert)
        source = found.source()
        for tensor in source.file_tensors():
            whole = source.rows(tensor.name, 0, tensor.rows)
            parts = [source.rows(tensor.name, row, row + 1) for row in range(tensor.rows)]
            assert np.array_equal(whole, np.concatenate(parts)), name
            exact = source.exact_rows(tensor.name, np.arange(2, 6))
            assert np.abs(exact - whole[2:6]).max() < 1e-6, name


@pytest.mark.parametrize("plus", [0.0, 1.0])
def test_what_is_not_touched_keeps_its_bytes(tmp_path: Path, plus: float) -> None:
    base = drawn(SHAPE | {"model.layers.0.norm.weight": (12,)})

    def convert(t: Tensors) -> Tensors:
        return as_they_are(t) | {"blk.0.norm.weight": t["model.layers.0.norm.weight"] + np.float32(plus)}

    found, wanted = case(tmp_path, base, ["model.layers.1.x.proj"], convert, Type.BF16)
    source = found.source()
    assert set(source.found.maps) == {"blk.1.a.weight"}
    assert worst(source, wanted) < 2e-3  # the file is rounded, what is folded is not yet
    for name in ("blk.0.a.weight", "blk.0.norm.weight"):
        tensor = found.model.tensors[name]
        packed = source.packed(name, tensor.type, 0, tensor.rows, None)
        assert packed is not None and np.array_equal(packed, found.model.packed(name, 0, tensor.rows))


def test_one_expert_of_a_stack(tmp_path: Path) -> None:
    base = drawn(EXPERTS)
    found, wanted = case(tmp_path, base, ["model.layers.1.experts.2.proj"], stacked)
    source = found.source()
    assert set(source.found.maps) == {"blk.1.e.weight"}
    assert not source.touches("blk.1.e.weight", 0, 20) and source.touches("blk.1.e.weight", 20, 30)
    assert worst(source, wanted) <= 1e-6


def test_an_index_takes_twelve_bytes_a_row_and_only_of_what_is_touched(tmp_path: Path) -> None:
    base = drawn(SHAPE)
    found, _ = case(tmp_path, base, ["model.layers.1.x.proj"], as_they_are)
    search = found.find().search
    assert search.largest_index == 12 * 24


@pytest.mark.parametrize("swapped", [20_000, 39_998])
def test_a_block_is_not_what_the_block_before_makes_likely(tmp_path: Path, swapped: int) -> None:
    """Three blocks in order but for two rows of the second or the last; a row of the last is there twice."""
    name, rows = "model.layers.0.x.proj.weight", 40_000
    assert rows * 64 > 2 * BLOCK_NUMBERS
    order = np.arange(rows)
    order[[swapped, swapped + 1]] = order[[swapped + 1, swapped]]
    base = drawn({name: (rows, 64)})
    base[name][35_000] = base[name][36_000]
    found, wanted = case(
        tmp_path, base, ["model.layers.0.x.proj"], lambda t: {"blk.0.a.weight": t[name][order]}
    )
    source = found.source()
    assert np.array_equal(source.found.maps["blk.0.a.weight"].lines, order)
    assert worst(source, wanted) <= 1e-6


def test_threads_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    shapes = {f"model.layers.{layer}.{part}.weight": (24, 64) for layer in range(9) for part in "ab"}
    base = drawn(shapes)
    modules = [name.removesuffix(".weight") for name in shapes]

    def convert(t: Tensors) -> Tensors:
        layers = ((layer, part) for layer in range(9) for part in "ab")
        return {f"blk.{n}.{p}.weight": interleaved(t[f"model.layers.{n}.{p}.weight"], 8) for n, p in layers}

    found, wanted = case(tmp_path, base, modules, convert)
    one, many = (find_sources(found.fold, found.fold.base, found.model, threads=n).search for n in (1, 4))
    assert list(one.maps) == list(many.maps) == list(wanted)
    assert all(np.array_equal(one.maps[name].lines, many.maps[name].lines) for name in wanted)
    assert one.lines.strips == many.lines.strips


def test_rows_in_the_middle_of_a_tensor_that_shows_none_at_its_ends(tmp_path: Path) -> None:
    """Its first, middle and last row are other tensors': it is read because something is still missing."""
    names = {part: f"model.layers.0.{part}.proj.weight" for part in "abc"}
    base = drawn({names["a"]: (24, 32), names["b"]: (6, 32), names["c"]: (40, 32)})

    def fused(t: Tensors) -> Tensors:
        return {"blk.0.abc.weight": np.concatenate([t[names[part]] for part in "abc"])}

    found, wanted = case(tmp_path, base, ["model.layers.0.b.proj"], fused)
    source = found.source()
    assert worst(source, wanted) <= 1e-6
    assert (source.found.maps["blk.0.abc.weight"].lines != 0xFFFFFFFF).sum() == 6
