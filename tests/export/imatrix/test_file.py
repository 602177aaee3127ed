"""Importance matrices: files against gguf-py, quantized bytes against llama.cpp, and damaged files."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_skeletons import Skeleton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from oracles import native, quantize_job

from lorafold.errors import InputError, LorafoldError, NumericError
from lorafold.export.imatrix.file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from lorafold.export.quant import ggml
from lorafold.export.quant.mixture import plan_types
from lorafold.export.quant.recipes import RECIPES, ModelShape

DENSE = Skeleton("llama", 2, 256, 512, 4, 2, 320)
SMALL = Skeleton("llama", 1, 256, 256, 4, 2, 32)
EXPERTS = Skeleton("llama", 2, 256, 256, 4, 2, 320, experts=4)
ODD = Skeleton("qwen2", 2, 96, 160, 4, 2, 320, tied=True)


def entry(sums: Sequence[float], counts: Sequence[float]) -> ImatrixEntry:
    return ImatrixEntry(np.array(sums, np.float32), np.array(counts, np.float32))


def random_imatrix(skeleton: Skeleton, seed: int) -> Imatrix:
    """What a collection over this model could give: all blocks' matrices, one expert never called."""
    generator = np.random.default_rng(seed)
    entries = {}
    for name, shape in skeleton.tensors():
        if not name.startswith("blk.") or len(shape) < 2:
            continue
        parts = shape[0] if len(shape) == 3 else 1
        counts = generator.integers(1, 5000, parts).astype(np.float32)
        counts[1:2] = 0
        entries[name] = ImatrixEntry(
            generator.gamma(0.5, 100.0, parts * shape[-1]).astype(np.float32), counts
        )
    return Imatrix(entries, ("calibration.txt",), chunks=7, chunk_size=512)


def legacy_file(entries: Sequence[tuple[str, int, Sequence[float]]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)))
        parts.append(np.array(values, "<f4").tobytes())
    return b"".join(parts) + tail


def gguf_imatrix(path: Path, tensors: dict[str, NDArray[np.float32]], kind: str = "imatrix") -> Path:
    """A file made by gguf-py, as llama.cpp's own would be."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_by_hand() -> None:
    """Sums over counts; a part without tokens weighs 1 everywhere."""
    stack = entry([2, 4, 9, 9], [4, 0])
    assert stack.weights().tolist() == [0.5, 1.0, 1.0, 1.0]
    found = Imatrix({"a.weight": stack, "b.weight": entry([3, 6], [3])}).weights(
        [("a.weight", (2, 5, 2)), ("b.weight", (7, 2)), ("c.weight", (7, 2))]
    )
    assert found["a.weight"].shape == (2, 2) and found["b.weight"].tolist() == [1.0, 2.0]
    assert "c.weight" not in found


def test_one_count_covers_a_whole_stack() -> None:
    """llama.cpp counts once for a stack that every token passes through (MLA)."""
    found = Imatrix({"a.weight": entry([2, 4, 6, 8], [2])}).weights([("a.weight", (2, 5, 2))])
    assert found["a.weight"].tolist() == [[1, 2], [3, 4]]


def test_file_is_what_gguf_py_reads(tmp_path: Path) -> None:
    matrix = random_imatrix(EXPERTS, 1)
    write_imatrix(matrix, tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["calibration.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 7
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    names = [name + suffix for name in sorted(matrix.entries) for suffix in (".in_sum2", ".counts")]
    assert [tensor.name for tensor in reader.tensors] == names
    for tensor in reader.tensors:
        name, _, kind = tensor.name.rpartition(".")
        expected = matrix.entries[name]
        parts = len(expected.counts)
        assert tensor.data.shape == ((parts, 256) if kind == "in_sum2" else (parts, 1))
        assert np.array_equal(tensor.data.reshape(-1), getattr(expected, {"in_sum2": "sums"}.get(kind, kind)))
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


@settings(max_examples=40, deadline=None)  # it waits for the disk
@given(
    values=hnp.arrays(np.float32, (3, 8), elements=st.floats(0, 2.0**100, width=32)),
    counts=hnp.arrays(np.float32, 3, elements=st.integers(0, 2**20).map(float)),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.float32], counts: NDArray[np.float32]
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    write_imatrix(Imatrix({"blk.0.ffn_up.weight": ImatrixEntry(values.reshape(-1), counts)}), path)
    back = read_imatrix(path).entries["blk.0.ffn_up.weight"]
    assert np.array_equal(back.sums, values.reshape(-1)) and np.array_equal(back.counts, counts)


def test_older_format(tmp_path: Path) -> None:
    """Mean squares times calls, so that the same quotient weighs."""
    path = tmp_path / "imatrix.dat"
    entries = [("blk.0.attn_q.weight", 4, [2.0, 8.0]), ("blk.0.attn_k.weight", 0, [3.0, 5.0])]
    path.write_bytes(legacy_file(entries, struct.pack("<ii", 9, 4) + b"text"))
    matrix = read_imatrix(path)
    assert matrix.entries["blk.0.attn_q.weight"].weights().tolist() == [0.5, 2.0]
    assert matrix.entries["blk.0.attn_k.weight"].weights().tolist() == [3.0, 5.0]
    assert (matrix.chunks, matrix.datasets) == (9, ("text",))
    path.write_bytes(legacy_file(entries))
    assert read_imatrix(path).chunks == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("skeleton", "names"),
    [
        pytest.param(ODD, list(RECIPES), id="odd width"),
        pytest.param(SMALL, ["Q4_K_M", "Q2_K", "Q5_0", "IQ4_XS", "IQ2_XXS"], id="dense"),
        pytest.param(EXPERTS, ["Q4_K_M", "Q2_K_S"], id="experts"),
        pytest.param(DENSE, list(RECIPES), id="dense, every recipe", marks=pytest.mark.slow),
        pytest.param(EXPERTS, ["IQ3_XXS", "IQ1_S"], id="experts, few bits", marks=pytest.mark.slow),
    ],
)
def test_bytes_equal_llama_model_quantize(tmp_path: Path, skeleton: Skeleton, names: list[str]) -> None:
    """With an importance matrix read from a file, our bytes are llama.cpp's."""
    weights = skeleton.fill(tmp_path / "f32.gguf", 3)
    write_imatrix(random_imatrix(skeleton, 4), tmp_path / "imatrix.gguf")
    importance = read_imatrix(tmp_path / "imatrix.gguf").weights(skeleton.tensors())
    recipes = [RECIPES[name] for name in names if RECIPES[name].quantized]
    jobs = [
        quantize_job(tmp_path / "f32.gguf", tmp_path / recipe.name, recipe.file_type, importance)
        for recipe in recipes
    ]
    assert all(answer["status"] == 0 for answer in native(jobs))
    for recipe in recipes:
        shape = ModelShape.from_metadata(skeleton.metadata())
        types = plan_types(skeleton.tensors(), recipe, shape, importance)
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / recipe.name).tensors}
        assert theirs.keys() == weights.keys()
        for name, tensor in theirs.items():
            values, kind = weights[name], types[name]
            assert tensor.tensor_type == kind, (recipe.name, name)
            stack = values.reshape(-1, *values.shape[-2:]) if values.ndim > 1 else values[None, None]
            rows = importance.get(name, np.empty(0, np.float32)).reshape(-1, values.shape[-1])
            ours = [
                ggml.quantize(matrix, kind, rows[i] if len(rows) else None) for i, matrix in enumerate(stack)
            ]
            assert np.concatenate(ours).tobytes() == tensor.data.tobytes(), (recipe.name, name)


def test_entry_of_another_model_is_refused() -> None:
    matrix = Imatrix({"blk.0.attn_q.weight": entry([1, 2], [1]), "token_embd.weight": entry([1, 2], [1])})
    with pytest.raises(InputError, match=r"has 2 values for blk\.0\.attn_q\.weight, expected 3"):
        matrix.weights([("blk.0.attn_q.weight", (5, 3))])
    with pytest.raises(InputError, match="none of the importance matrix's 2 entries"):
        matrix.weights([("blk.7.attn_q.weight", (5, 2))])
    # llama.cpp looks embeddings up: their entry may have any size
    assert matrix.weights([("blk.0.attn_q.weight", (5, 2)), ("token_embd.weight", (9, 3))]).keys() == {
        "blk.0.attn_q.weight"
    }


BAD_GGUF: dict[str, tuple[dict[str, NDArray[np.float32]], str, type[LorafoldError], str]] = {
    "a model": ({"a.in_sum2": np.ones((1, 4), np.float32)}, "model", InputError, "general.type 'model'"),
    "no entries": ({"a": np.ones(4, np.float32)}, "imatrix", InputError, "without entries"),
    "no counts": ({"a.in_sum2": np.ones(4, np.float32)}, "imatrix", InputError, "a has only one of"),
    "half precision": (
        {"a.in_sum2": np.ones(4, np.float16), "a.counts": np.ones(1, np.float32)},  # type: ignore[dict-item]
        "imatrix",
        InputError,
        "a.in_sum2 is F16, expected F32",
    ),
    "counts that do not divide": (
        {"a.in_sum2": np.ones(4, np.float32), "a.counts": np.ones(3, np.float32)},
        "imatrix",
        InputError,
        "4 sums for 3 counts",
    ),
    "NaN": (
        {"a.in_sum2": np.full(4, np.nan, np.float32), "a.counts": np.ones(1, np.float32)},
        "imatrix",
        NumericError,
        "NaN, infinite or negative",
    ),
    "negative count": (
        {"a.in_sum2": np.ones(4, np.float32), "a.counts": -np.ones(1, np.float32)},
        "imatrix",
        NumericError,
        "NaN, infinite or negative",
    ),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_bad_gguf(tmp_path: Path, case: str) -> None:
    tensors, kind, error, problem = BAD_GGUF[case]
    path = gguf_imatrix(tmp_path / "imatrix.gguf", tensors, kind)
    with pytest.raises(error, match=problem) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the number of entries takes 4 bytes"),
        (legacy_file([]), "without entries"),
        (struct.pack("<i", -1), "the number of entries is -1"),
        (struct.pack("<ii", 1, 10**6), "the length of name 0 is 1000000"),
        (legacy_file([("a", 1, [1, 2])])[:-3], "the values of a takes 8 bytes"),
        (legacy_file([("a", 1, [])]), "a has no values"),
        (legacy_file([("a", 1, [1]), ("a", 1, [1])]), "a occurs twice"),
        (legacy_file([("a", 1, [1])], struct.pack("<ii", 1, 9) + b"short"), "the data set's name"),
        (b"<!doctype html><html>", "a web page"),
    ],
)
def test_bad_older_format(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_imatrix(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        read_imatrix(tmp_path / "absent.gguf")


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_never_escape_the_error_tree(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("imatrix") / "i.dat"
    path.write_bytes(content)
    with pytest.raises(LorafoldError):
        read_imatrix(path)
