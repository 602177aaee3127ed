"""Reading weights: safetensors of every kind, and every way in which a file or an index can be wrong."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError, NumericError, SystemFault, UnsafeInputError
from lorafold.files.jsonfile import read_object
from lorafold.weights import Checkpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def one(folder: Path, header: Any, data: bytes = b"") -> Checkpoint:
    write(folder / "model.safetensors", header, data)
    return Checkpoint.open(folder)


def test_a_file_by_hand(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": entry("F32", [2, 3], 0, 24),
        "b": entry("BF16", [2], 24, 28),
        "s": entry("F16", [], 28, 30),
        "e": entry("F32", [0, 4], 30, 30),
    }
    # bfloat16 1.5 = 0x3FC0, -2 = 0xC000; float16 0.25 = 0x3400
    checkpoint = one(tmp_path, header, floats(1, 2, 3, 4, 5, 6) + b"\xc0\x3f\x00\xc0" + b"\x00\x34")
    assert checkpoint.rows("w", 1, 2).tolist() == [[4, 5, 6]]
    assert checkpoint.rows("b", 0, 1).tolist() == [[1.5, -2]]
    assert checkpoint.rows("s", 0, 1).tolist() == [[0.25]]
    assert checkpoint.rows("e", 0, 0).shape == (0, 4)
    info = checkpoint.tensors["b"]
    assert (info.dtype, info.shape, info.rows, info.cols, info.nbytes) == ("BF16", (2,), 1, 2, 4)
    assert (tmp_path / "model.safetensors").read_bytes()[info.offset : info.offset + 2] == b"\xc0\x3f"


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
    shape=st.lists(st.integers(1, 6), min_size=0, max_size=4),
    seed=st.integers(0, 1000),
)
def test_rows_equal_safetensors_own_reader(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: list[int], seed: int
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(getattr(torch, dtype))
    save_file({"other": torch.ones(3), "t": tensor}, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    info = checkpoint.tensors["t"]
    wanted = tensor.float().reshape(info.rows, info.cols).numpy()
    got = checkpoint.rows("t", 0, info.rows)
    assert got.flags.c_contiguous and got.flags.writeable and got.dtype == np.float32
    assert np.array_equal(got, wanted)
    assert np.array_equal(checkpoint.rows("t", info.rows // 2, info.rows), wanted[info.rows // 2 :])


def test_threads_share_a_checkpoint(tmp_path: Path) -> None:
    values = np.arange(64 * 50, dtype=np.float32).reshape(64, 50)
    checkpoint = one(tmp_path, {"w": entry("F32", [64, 50], 0, values.nbytes)}, values.tobytes())
    with ThreadPoolExecutor(7) as pool:
        rows = list(pool.map(lambda row: checkpoint.rows("w", row % 64, row % 64 + 1), range(640)))
    assert all(np.array_equal(rows[i][0], values[i % 64]) for i in range(640))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    checkpoint.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before - 1
    assert checkpoint.rows("w", 0, 1)[0, 3] == 3  # opened again


W = {"w": entry("F32", [2], 0, 8)}
TWICE = b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
TWO = b"{" + TWICE + b"," + TWICE + b"}"

HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "header over 100 MB": ((200_000_000).to_bytes(8, "little") + b"{}", b"", "over the format's limit"),
    "header of 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", b"", "9,223,372,036,854,775,808 is over"),
    "header cut": ((100).to_bytes(8, "little") + b"{}", b"", "truncated: the header alone needs 108"),
    "under 8 bytes": (b"{}", b"", "2 bytes, expected at least 8"),
    "empty": (b"", b"", "0 bytes, expected at least 8"),
    "LFS pointer": (LFS, b"", "Git LFS pointer, not the weights.*git lfs pull"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_file(name: str, tmp_path: Path) -> None:
    raw, _, problem = HEADERS[name]
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match=problem) as caught:
        Checkpoint.open(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value) and caught.value.fix


ENTRIES: dict[str, tuple[Any, bytes, str]] = {
    "invalid JSON": (b'{"w": ', b"", "not valid JSON"),
    "invalid UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "no object": (b"[1]", b"", "header is a list"),
    "deep": (b"[" * 200_000, b"", "nested too deeply|not valid JSON"),
    "given twice": (TWO, floats(1, 2), "'w' is given twice"),
    "metadata": ({"__metadata__": {"a": 1}, **W}, floats(1, 2), "not an object of strings"),
    "overlap": (
        {"w": entry("F32", [2], 0, 8), "v": entry("F32", [2], 4, 12)},
        floats(1, 2, 3),
        "'v' overlaps w",
    ),
    "hole": (
        {"w": entry("F32", [2], 0, 8), "v": entry("F32", [1], 12, 16)},
        floats(1, 2, 3, 4),
        "'v' leaves a hole of 4 bytes after w",
    ),
    "hole at the start": (
        {"w": entry("F32", [2], 4, 12)},
        floats(1, 2, 3),
        "hole of 4 bytes after the start",
    ),
    "trailing bytes": (W, floats(1, 2, 3), "4 bytes follow the last tensor"),
    "truncated": (W, floats(1), "truncated: the tensors need"),
    "shape overflow": ({"w": entry("F32", [1 << 62, 1 << 62], 0, 8)}, floats(1, 2), "overflows 63 bits"),
    "wrong size": ({"w": entry("F32", [3], 0, 8)}, floats(1, 2), r"F32 \[3\] needs 12 bytes, got 8"),
    "negative shape": ({"w": entry("F32", [-2], 0, 8)}, floats(1, 2), r"shape \[-2\] is not a list of sizes"),
    "shape of floats": ({"w": entry("F32", [2.0], 0, 8)}, floats(1, 2), "not a list of sizes"),
    "shape of an object": (
        {"w": {"dtype": "F32", "shape": {}, "data_offsets": [0, 4]}},
        floats(1),
        "not a list of sizes",
    ),
    "reversed range": ({"w": entry("F32", [2], 8, 0)}, floats(1, 2), "are not a range"),
    "one offset": (
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        floats(1, 2),
        "not two numbers",
    ),
    "unknown dtype": ({"w": entry("F33", [2], 0, 8)}, floats(1, 2), "unknown dtype 'F33'"),
    "dtype of a list": ({"w": entry([], [2], 0, 8)}, floats(1, 2), "unknown dtype"),
    "no dtype": ({"w": {"shape": [2], "data_offsets": [0, 8]}}, floats(1, 2), "expected dtype, shape and"),
    "extra field": ({"w": {**entry("F32", [2], 0, 8), "x": 1}}, floats(1, 2), "expected dtype, shape and"),
    "a number": ({"w": 3}, b"", "expected dtype, shape and data_offsets"),
    "no tensors": ({}, b"", "no tensors in it"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_wrong_header(name: str, tmp_path: Path) -> None:
    header, data, problem = ENTRIES[name]
    with pytest.raises(InputError, match=problem) as caught:
        one(tmp_path, header, data)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    """Whatever bit flips, the answer is an error of ours or a tensor that lies inside the file."""
    path = tmp_path_factory.mktemp("flip") / "model.safetensors"
    write(path, {"w": entry("F32", [2], 0, 8), "v": entry("BF16", [2, 1], 8, 12)}, floats(1, 2, 3))
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    try:
        checkpoint = Checkpoint.open(path.parent)
        for name, info in checkpoint.tensors.items():
            assert 0 <= info.offset <= info.offset + info.nbytes <= len(raw)
            checkpoint.rows(name, 0, info.rows)
    except (InputError, NumericError):
        pass


def test_a_hundred_thousand_tensors(tmp_path: Path) -> None:
    count = 100_000
    header = {f"model.layers.{i}.weight": entry("F32", [1], 4 * i, 4 * i + 4) for i in range(count)}
    write(tmp_path / "model.safetensors", header, bytes(4 * count))

    def seconds() -> float:
        start = time.process_time()
        assert len(Checkpoint.open(tmp_path).tensors) == count
        return time.process_time() - start

    # The processor's time, the best of three: neighbours on the same core slow it down too.
    assert any(seconds() < 1 for _ in range(3))


def test_types_that_hold_no_plain_numbers(tmp_path: Path) -> None:
    header = {"w": entry("U8", [4], 0, 4), "f": entry("F8_E4M3", [2, 2], 4, 8)}
    checkpoint = one(tmp_path, header, bytes(8))
    for name in ("w", "f"):
        with pytest.raises(InputError, match=r"quantized or integer, expected BF16.*dequantize"):
            checkpoint.rows(name, 0, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(value: float, tmp_path: Path) -> None:
    checkpoint = one(tmp_path, {"w": entry("F32", [3, 2], 0, 24)}, floats(1, 2, 3, value, 5, 6))
    assert checkpoint.rows("w", 0, 1).tolist() == [[1, 2]]
    with pytest.raises(NumericError, match="NaN or infinity in tensor 'w', row 1") as caught:
        checkpoint.rows("w", 0, 3)
    assert caught.value.exit_code == 6


# The bits of: the largest number, infinity, the first NaN behind it, the last NaN.
EDGES = {"BF16": (0x7F7F, 0x7F80, 0x7F81, 0x7FFF), "F16": (0x7BFF, 0x7C00, 0x7C01, 0x7FFF)}


@pytest.mark.parametrize("dtype", EDGES)
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_nan_and_infinity_in_16_bits(dtype: str, sign: int, tmp_path: Path) -> None:
    for number, bits in enumerate(EDGES[dtype]):
        data = np.array([0x8000, 0, 0x3C00, bits | sign], "<u2").tobytes()
        checkpoint = one(tmp_path, {"w": entry(dtype, [2, 2], 0, 8)}, data)
        if number == 0:
            assert np.isfinite(checkpoint.rows("w", 0, 2)).all()
            continue
        with pytest.raises(NumericError, match="row 1"):
            checkpoint.rows("w", 0, 2)
        assert checkpoint.rows("w", 0, 1).tolist() == [[0, 0]]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    checkpoint = one(tmp_path, W, floats(1, 2))
    os.truncate(tmp_path / "model.safetensors", checkpoint.tensors["w"].offset + 4)
    with pytest.raises(SystemFault, match="it has changed since it was opened"):
        checkpoint.rows("w", 0, 1)


# The shard index.


def sharded(folder: Path, weight_map: Any, shards: dict[str, dict[str, float]]) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        header = {key: entry("F32", [1], 4 * i, 4 * i + 4) for i, key in enumerate(tensors)}
        write(folder / name, header, floats(*tensors.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return Checkpoint.open(folder)


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_shards(tmp_path: Path) -> None:
    checkpoint = sharded(tmp_path, {"x": A, "y": B, "z": B}, {A: {"x": 1}, B: {"y": 2, "z": 3}})
    assert [checkpoint.rows(name, 0, 1).item() for name in "xyz"] == [1, 2, 3]
    assert checkpoint.tensors["y"].file == tmp_path / B


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"2 of 3 shards are missing: {A}, {B}") as caught:
        sharded(tmp_path, {"x": A, "y": B, "z": "c.safetensors"}, {"c.safetensors": {"z": 1}})
    assert caught.value.fix.endswith(f"hf download ORG/NAME --local-dir {tmp_path}")


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("modelscope/hub/models/Qwen/Qwen2-1___5B", "modelscope download --model Qwen/Qwen2-1.5B"),
        ("hub/models--org--x/snapshots/abc", "hf download org/x"),
        ("my folder", "hf download ORG/NAME --local-dir 'FOLDER'"),
    ],
)
def test_a_download_that_stopped_is_gone_on_with(folder: str, command: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    with pytest.raises(InputError, match="no weights") as caught:
        Checkpoint.open(place)
    assert caught.value.fix.endswith(command.replace("FOLDER", str(place)))


INDEX_FAULTS: dict[str, tuple[Any, dict[str, dict[str, float]], str]] = {
    "wrong shard": ({"x": B, "y": B}, {A: {"x": 1}, B: {"y": 2}}, "'x' is in no shard, expected in"),
    "swapped": ({"x": B, "y": A}, {A: {"x": 1}, B: {"y": 2}}, f"'x' is in {A}, expected in {B}"),
    "two shards": (
        {"x": A, "y": B},
        {A: {"x": 1}, B: {"x": 1, "y": 2}},
        f"'x' is in two shards, {A} and {B}",
    ),
    "not in the index": (
        {"x": A},
        {A: {"x": 1, "y": 2}},
        "1 tensors of the shards are not in the index.*'y'",
    ),
    "empty": ({}, {}, "weight_map is missing or empty"),
    "a list": ([], {}, "weight_map is missing or empty"),
    "no name": ({"x": 3}, {}, "weight_map.'x'. is 3, expected a file name"),
    "LFS shard": ({"x": "lfs.safetensors"}, {}, "Git LFS pointer"),
}


@pytest.mark.parametrize("name", INDEX_FAULTS)
def test_a_wrong_index(name: str, tmp_path: Path) -> None:
    weight_map, shards, problem = INDEX_FAULTS[name]
    (tmp_path / "lfs.safetensors").write_bytes(LFS)
    with pytest.raises(InputError, match=problem):
        sharded(tmp_path, weight_map, shards)


@pytest.mark.parametrize("name", ["../outside/a.safetensors", "{}/outside/a.safetensors", "link.safetensors"])
def test_an_index_that_leaves_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "a.safetensors", W, floats(1, 2))
    model = tmp_path / "model"
    model.mkdir()
    (model / "link.safetensors").symlink_to(tmp_path / "outside" / "a.safetensors")
    with pytest.raises(UnsafeInputError, match="leads out of the folder") as caught:
        sharded(model, {"w": name.format(tmp_path)}, {})
    assert caught.value.exit_code == 4


def test_the_hub_cache_is_made_of_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write(blobs / "f00", W, floats(1, 2))
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/f00"))
    assert Checkpoint.open(snapshot).rows("w", 0, 1).tolist() == [[1, 2]]


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Checkpoint.open(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no weights: neither model.safetensors nor"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsafeInputError, match=r"pickles.*pytorch_model.bin.*save_pretrained") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.exit_code == 4
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"an adapter, not a base model.*--base"):
        Checkpoint.open(adapter)


JSON_FAULTS = {
    "truncated": (b'{"a": 1', "truncated or invalid JSON .line 1, column 8"),
    "empty": (b"", "the file is empty"),
    "array": (b"[]", "got a JSON list, expected an object"),
    "latin": (b'{"a": "\xe9"}', "not UTF-8 .byte 7"),
    "twice": (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "large": (b" " * 2000, "larger than 1,000 bytes"),
    "pointer": (LFS, "Git LFS pointer"),
}


@pytest.mark.parametrize("name", JSON_FAULTS)
def test_json_files(name: str, tmp_path: Path) -> None:
    raw, problem = JSON_FAULTS[name]
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=problem):
        read_object(path, limit=1000 if name == "large" else 1 << 20)
    with pytest.raises(InputError, match="no such file"):
        read_object(tmp_path / "absent.json")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(path) == {"a": 1}


def test_a_folder_of_ones_own_may_link_into_the_hubs_cache(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    write(blobs / "f00", W, floats(1, 2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").symlink_to(blobs / "f00")
    assert Checkpoint.open(tmp_path / "mine").rows("w", 0, 1).tolist() == [[1, 2]]
