"""What does not belong together is refused by name, and what is equal twice is told apart or refused."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from onto_cases import Case, Tensors, case, drawn, merged, worst, write_adapter, write_base, write_gguf

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.folded import Folded
from lorafold.export.onto.model import BaseGguf
from lorafold.weights import Checkpoint

SHAPE = {f"model.layers.{layer}.x.proj.weight": (24, 32) for layer in (0, 1)}
BOTH = ["model.layers.0.x.proj", "model.layers.1.x.proj"]


def blocks(t: Tensors) -> Tensors:
    return {f"blk.{layer}.a.weight": t[f"model.layers.{layer}.x.proj.weight"] for layer in (0, 1)}


def refusal(found: Case) -> str:
    with pytest.raises(InputError) as caught:
        found.find()
    return str(caught.value)


@pytest.mark.parametrize("type_", [Type.F32, Type.BF16, Type.Q8_0])
def test_another_revision_of_the_base(tmp_path: Path, type_: Type) -> None:
    found, _ = case(tmp_path, drawn(SHAPE), BOTH, blocks, type_)
    found.find()
    changed = {n: v + drawn(SHAPE, 9)[n] * np.float32(0.1) for n, v in drawn(SHAPE).items()}
    other = Case(found.fold, BaseGguf.open(write_gguf(tmp_path / "other.gguf", blocks(changed), type_)))
    text = refusal(other)
    assert "2 of 2 tensors that the adapter changes are not in it, the first is model.layers.0.x.proj" in text
    assert "0 of 24 rows were found" in text and "same revision" in text


def test_a_row_that_differs_where_the_fingerprint_does_not_look(tmp_path: Path) -> None:
    base = drawn({"model.layers.0.x.proj.weight": (24, 64)})

    def convert(t: Tensors) -> Tensors:
        rows = t["model.layers.0.x.proj.weight"].copy()
        rows[5, 1] += 1.0  # of 64 numbers every second is part of the fingerprint: 0, 2, 4, ...
        return {"blk.0.a.weight": rows}

    found, _ = case(tmp_path, base, ["model.layers.0.x.proj"], convert)
    assert "of which 23 of 24 rows were found" in refusal(found)


def test_what_the_file_leaves_out(tmp_path: Path) -> None:
    base = drawn(SHAPE | {"visual.proj.weight": (8, 32)})
    found, _ = case(tmp_path, base, [*BOTH, "visual.proj"], blocks)
    text = refusal(found)
    assert "leaves out 1 tensors" in text and "visual.proj.weight" in text and "--format folder" in text


def test_rows_that_are_in_the_file_twice(tmp_path: Path) -> None:
    base = drawn({"model.layers.0.x.proj.weight": (24, 32)})

    def convert(t: Tensors) -> Tensors:
        rows = t["model.layers.0.x.proj.weight"]
        return {"blk.0.a.weight": rows, "blk.0.b.weight": rows}

    found, _ = case(tmp_path, base, ["model.layers.0.x.proj"], convert)
    text = refusal(found)
    assert "are in it twice" in text and "blk.0.a.weight" in text and "blk.0.b.weight" in text


def test_equal_rows_that_nothing_tells_apart(tmp_path: Path) -> None:
    base = drawn({"model.layers.0.x.proj.weight": (24, 32), "model.layers.0.y.proj.weight": (24, 32)})
    base["model.layers.0.y.proj.weight"] = base["model.layers.0.x.proj.weight"]

    def convert(t: Tensors) -> Tensors:
        return {
            "blk.0.a.weight": t["model.layers.0.x.proj.weight"],
            "blk.0.b.weight": t["model.layers.0.y.proj.weight"],
        }

    found, _ = case(tmp_path, base, ["model.layers.0.x.proj", "model.layers.0.y.proj"], convert)
    assert "nothing tells them apart" in refusal(found)


def test_equal_layers_are_told_apart_by_their_number(tmp_path: Path) -> None:
    base = drawn(SHAPE)
    base["model.layers.1.x.proj.weight"] = base["model.layers.0.x.proj.weight"]
    for number, modules in enumerate((BOTH, BOTH[1:])):
        found, wanted = case(tmp_path / str(number), base, modules, blocks)
        assert worst(found.source(), wanted) <= 1e-6


def test_equal_experts_are_told_apart_by_their_place(tmp_path: Path) -> None:
    names = [f"model.layers.0.experts.{e}.proj.weight" for e in range(3)]
    base = drawn(dict.fromkeys(names, (10, 32)))
    base = dict.fromkeys(names, base[names[0]])
    modules = [name.removesuffix(".weight") for name in names]
    found, wanted = case(
        tmp_path, base, modules, lambda t: {"blk.0.e.weight": np.stack([t[n] for n in names])}
    )
    assert worst(found.source(), wanted) <= 1e-6


def test_equal_rows_of_one_tensor_stand_where_their_neighbours_do(tmp_path: Path) -> None:
    base = drawn({"model.layers.0.x.proj.weight": (48, 32)})
    rows = base["model.layers.0.x.proj.weight"]
    rows[[7, 8, 9, 31]] = rows[7]

    def interleaved(t: Tensors) -> Tensors:
        heads = t["model.layers.0.x.proj.weight"].reshape(3, 2, 8, 32).swapaxes(1, 2)
        return {"blk.0.a.weight": heads.reshape(48, 32)}

    def plain(t: Tensors) -> Tensors:
        return {"blk.0.a.weight": t["model.layers.0.x.proj.weight"]}

    for convert in (plain, interleaved):
        found, wanted = case(tmp_path / convert.__name__, base, ["model.layers.0.x.proj"], convert)
        assert worst(found.source(), wanted) <= 1e-6, convert.__name__


EMBEDDING = {"model.embed_tokens.weight": (16, 32), "model.layers.0.x.proj.weight": (8, 32)}


def with_head(t: Tensors) -> Tensors:
    head = t.get("lm_head.weight", t["model.embed_tokens.weight"])
    return {
        "token_embd.weight": t["model.embed_tokens.weight"],
        "output.weight": head,
        "blk.0.a.weight": t["model.layers.0.x.proj.weight"],
    }


def test_a_head_that_equals_the_embedding_is_told_by_its_role(tmp_path: Path) -> None:
    base = drawn(EMBEDDING | {"lm_head.weight": (16, 32)})
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    found, wanted = case(tmp_path, base, ["lm_head"], with_head)
    source = found.source()
    assert set(source.found.maps) == {"output.weight"}
    assert worst(source, wanted) <= 1e-6


def test_a_tied_base_whose_head_is_trained_gets_a_head_of_its_own(tmp_path: Path) -> None:
    base = drawn(EMBEDDING)
    write_base(tmp_path / "base", base, tie_word_embeddings=True)
    adapter = write_adapter(
        tmp_path / "adapter", {"lm_head.weight": base["model.embed_tokens.weight"]}, ["lm_head"]
    )
    without = {n: v for n, v in with_head(base).items() if n != "output.weight"}
    fold = Folded(Checkpoint.open(tmp_path / "base"), [(Adapter.open(adapter), 1.0)])
    model = BaseGguf.open(write_gguf(tmp_path / "base.gguf", without))
    source = Case(fold, model).source()
    head = merged({"lm_head.weight": base["model.embed_tokens.weight"]}, adapter)["lm_head.weight"]
    assert worst(source, without | {"output.weight": head}) <= 1e-6
    assert source.found.notes == (
        "output.weight is new: the adapter changes one side of the tied embedding alone",
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__type": "mmproj"}, "the projector of a multimodal model"),
        ({"general__type": "adapter"}, "an adapter, not a model"),
        ({"general__type": "imatrix"}, "an importance matrix"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", blocks(drawn(SHAPE)), **metadata)
    with pytest.raises(InputError, match=message) as caught:
        BaseGguf.open(path)
    assert str(path) in str(caught.value)


def test_an_old_projector_says_clip(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "clip")
    writer.add_tensor("v.patch_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="mmproj"):
        BaseGguf.open(tmp_path / "x.gguf")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", blocks(drawn(SHAPE))).read_bytes()
    for length in [*range(0, 400, 7), len(whole) - 1, len(whole) // 2]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(InputError):
            BaseGguf.open(tmp_path / "cut.gguf")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tensors"):
        BaseGguf.open(write_gguf(tmp_path / "x.gguf", {}))


def test_a_resized_vocabulary(tmp_path: Path) -> None:
    from adapter_folders import adapter_folder

    base = drawn(EMBEDDING)
    write_base(tmp_path / "base", base, tie_word_embeddings=True)
    saved = {"base_model.model.model.embed_tokens.weight": np.ones((18, 32), np.float32)}
    saved |= {"base_model.model.lm_head.weight": np.ones((18, 32), np.float32)}
    adapter = adapter_folder(
        tmp_path / "adapter",
        saved,
        target_modules=["embed_tokens"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    fold = Folded(Checkpoint.open(tmp_path / "base"), [(Adapter.open(adapter), 1.0)])
    found = Case(fold, BaseGguf.open(write_gguf(tmp_path / "x.gguf", with_head(base))))
    assert re.search(r"resizes \S+ from 16 to 18 rows", refusal(found))


def test_no_flipped_bit_of_a_header_is_more_than_a_refusal(tmp_path: Path) -> None:
    found, wanted = case(tmp_path, drawn(SHAPE), BOTH, blocks, Type.BF16)
    whole = (tmp_path / "base.gguf").read_bytes()
    header = whole.index(b"blk.1.a.weight") + 60
    random = np.random.default_rng(5)
    refused = 0
    for place, bit in zip(random.integers(0, header, 300), random.integers(0, 8, 300), strict=True):
        data = bytearray(whole)
        data[place] ^= 1 << int(bit)
        (tmp_path / "flipped.gguf").write_bytes(data)
        try:
            source = Case(found.fold, BaseGguf.open(tmp_path / "flipped.gguf")).source()
        except InputError:
            refused += 1
            continue
        # A name or a key that nothing depends on: what is folded is right all the same.
        assert len(source.found.maps) == len(wanted)
    assert refused > 100
