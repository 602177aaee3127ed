"""`--onto` with a file that is damaged or made to mislead: refused by name, and nothing is written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_chat

from lorafold.cli import main
from lorafold.errors import NumericError
from lorafold.export import ExportConfig, export
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import read_gguf_header

Damage = Callable[[bytearray, GgufHeader], None]
TYPES = ("F32", "BF16", "Q8_0")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as GGUF; the adapter changes q, v and down of both layers."""
    out = tmp_path_factory.mktemp("bases") / "out"
    export(ExportConfig(str(tiny_chat.folder()), out=out, quant=TYPES, name="base", verify=False))
    return out


def rows_of(data: bytearray, header: GgufHeader, name: str) -> np.ndarray:  # type: ignore[type-arg]
    """A tensor's rows as bytes, to be changed in place."""
    tensor = header.tensors[name]
    whole = np.frombuffer(data, np.uint8)[tensor.offset : tensor.offset + tensor.nbytes]
    return whole.reshape(int(np.prod(tensor.shape[:-1])), -1)


def one_bit(data: bytearray, header: GgufHeader) -> None:
    rows = rows_of(data, header, "blk.0.attn_v.weight")
    # The lowest bit of a number; of eight bits a high one, for the lowest may be what quantizing leaves.
    rows[7, 20] ^= 0x40 if header.quantization == "Q8_0" else 1


def equal_rows(data: bytearray, header: GgufHeader) -> None:
    rows = rows_of(data, header, "blk.1.ffn_down.weight")
    rows[4] = rows[3]


def permuted_rows(data: bytearray, header: GgufHeader) -> None:
    rows = rows_of(data, header, "blk.1.ffn_down.weight")
    rows[:] = rows[np.random.default_rng(0).permutation(len(rows))]


def swapped_rows(data: bytearray, header: GgufHeader) -> None:
    rows = rows_of(data, header, "blk.1.attn_v.weight")
    rows[[2, 3]] = rows[[3, 2]]


def field(key: str, value: int) -> Damage:
    """A number of the header."""

    def change(data: bytearray, header: GgufHeader) -> None:
        place = data.index(key.encode() + struct.pack("<I", header.types[key])) + len(key) + 4
        struct.pack_into("<I", data, place, value)

    change.__name__ = key
    return change


def count(place: int, value: int) -> Damage:
    """The number of tensors, or of metadata pairs."""

    def change(data: bytearray, header: GgufHeader) -> None:
        struct.pack_into("<q", data, place, value)

    change.__name__ = f"count {value}"
    return change


def array_of(key: str, length: int) -> Damage:
    """The number of elements of an array."""

    def change(data: bytearray, header: GgufHeader) -> None:
        struct.pack_into("<Q", data, data.index(key.encode()) + len(key) + 8, length)

    change.__name__ = f"{key} {length}"
    return change


def entry(name: str, part: str, value: int) -> Damage:
    """A tensor's entry: dimensions (u32, then columns and rows), type (u32), offset."""

    def change(data: bytearray, header: GgufHeader) -> None:
        place = data.index(name.encode() + struct.pack("<I", 2)) + len(name) + 4
        form, at = {"rows": ("<Q", 8), "type": ("<I", 16), "offset": ("<Q", 20)}[part]
        struct.pack_into(form, data, place + at, value)

    change.__name__ = f"{part} {value}"
    return change


def touched_up(name: str) -> Damage:
    """The lowest bit of one number."""

    def change(data: bytearray, header: GgufHeader) -> None:
        rows_of(data, header, name)[3, 10] ^= 1

    return change


def swapped(one: str, other: str) -> Damage:
    """Two tensors of one shape."""

    def change(data: bytearray, header: GgufHeader) -> None:
        a, b = (rows_of(data, header, name) for name in (one, other))
        a[:], b[:] = b.copy(), a.copy()

    return change


CASES: list[tuple[Damage, str]] = [
    (
        one_bit,
        "1 of 6 tensors that the adapter changes are not in it, the first is model.layers.0.self_attn.v_p",
    ),
    (equal_rows, "model.layers.1.mlp.down_proj.weight"),
    (
        swapped("blk.0.attn_q.weight", "blk.0.attn_output.weight"),
        "model.layers.0.self_attn.q_proj.weight is in it as blk.*.attn_output.weight",
    ),
    (swapped("blk.0.attn_v.weight", "blk.1.attn_v.weight"), ".self_attn.v_proj.weight"),
    (permuted_rows, "another order than those of blk."),
    (swapped_rows, "another order than those of blk."),
    (field("llama.attention.head_count", 8), "llama.attention.head_count is 8, and the base's is 4"),
    (field("llama.attention.head_count_kv", 4), "llama.attention.head_count_kv is 4, and the base's is 2"),
    (field("llama.embedding_length", 128), "llama.embedding_length is 128, and the base's is 64"),
    (field("llama.block_count", 1), "llama.block_count is 1, and the base's is 2"),
    (field("llama.context_length", 0), "llama.context_length is 0"),
    (count(8, 1 << 62), "4,611,686,018,427,387,904 tensors do not fit into"),
    (count(16, -1), "-1 metadata pairs do not fit into"),
    (array_of("tokenizer.ggml.tokens", 1 << 60), "array tokenizer.ggml.tokens of 1,152,921,504,606,846,976"),
    (entry("blk.0.attn_v.weight", "offset", 0), "tensor blk.0.attn_v.weight lies at offset 0, expected"),
    (entry("blk.0.attn_v.weight", "rows", 1 << 40), "blk.0.attn_v.weight"),
    (entry("blk.0.attn_v.weight", "type", 99), "tensor blk.0.attn_v.weight has type 99"),
]


def config(out: Path, onto: Path) -> ExportConfig:
    return ExportConfig(str(tiny_chat.adapter()), base=str(tiny_chat.folder()), out=out, onto=str(onto))


def refused(capsys: pytest.CaptureFixture[str], out: Path, onto: Path) -> str:
    """The one line that refuses the file."""
    command = ["export", str(tiny_chat.adapter()), "--base", str(tiny_chat.folder()), "--onto", str(onto)]
    code = main([*command, "--out", str(out), "--no-verify"])
    said = capsys.readouterr().err
    assert code == 3, said
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert str(onto) in error and "fix:" in error and "Traceback" not in said, said
    assert [path.name for path in out.parent.iterdir()] == [onto.name]
    return error


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize(("damage", "words"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_damage_is_named(
    bases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    type_: str,
    damage: Damage,
    words: str,
) -> None:
    sound = bases / f"base-{type_}.gguf"
    data = bytearray(sound.read_bytes())
    damage(data, read_gguf_header(sound))
    assert data != sound.read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data)
    assert words in refused(capsys, tmp_path / "out", broken)


LEFT_ALONE: list[tuple[str, Damage]] = [
    ("row 3 of token_embd.weight", touched_up("token_embd.weight")),
    ("row 3 of blk.1.attn_k.weight", touched_up("blk.1.attn_k.weight")),
    ("blk.*.ffn_", swapped("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "damage"), LEFT_ALONE, ids=["embedding", "bit", "swapped"])
def test_the_proof_names_damage_of_what_is_left_alone(
    bases: Path, tmp_path: Path, words: str, damage: Damage
) -> None:
    sound = bases / "base-BF16.gguf"
    data = bytearray(sound.read_bytes())
    damage(data, read_gguf_header(sound))
    (tmp_path / "broken.gguf").write_bytes(data)
    with pytest.raises(NumericError, match=r"left alone: broken\.gguf") as caught:
        export(config(tmp_path / "out", tmp_path / "broken.gguf"))
    assert words in str(caught.value) and not (tmp_path / "out").exists()
