"""The header's bytes, with gguf-py's reader and writer as oracles."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.export.gguf.header import ALIGNMENT, GgufFile, encode_header, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor

METADATA = [
    KeyValue("general.architecture", "llama", Value.STRING),
    KeyValue("llama.block_count", 2, Value.UINT32),
    KeyValue("llama.rope.freq_base", 10000.0, Value.FLOAT32),
    KeyValue("tokenizer.ggml.add_bos_token", True, Value.BOOL),
    KeyValue("tokenizer.ggml.tokens", ["a", "", "中文", "😀"], Value.ARRAY, Value.STRING),
    KeyValue("tokenizer.ggml.scores", np.array([0.5, -1, 2, 3], np.float32), Value.ARRAY, Value.FLOAT32),
    KeyValue("tokenizer.ggml.token_type", [1, 3, 1, 1], Value.ARRAY, Value.INT32),
]
TENSORS = [
    (MappedTensor("norm.weight", (33,)), Type.F32),
    (MappedTensor("a.weight", (4, 256)), Type.Q4_K),
    (MappedTensor("experts.weight", (2, 3, 64)), Type.Q8_0),
]


def write(path: Path, metadata: list[KeyValue], tensors: list[tuple[MappedTensor, Type]]) -> GgufFile:
    placed = place_tensors(tensors)
    file = GgufFile(path.name, "Q4_K_M", encode_header(metadata, placed), tuple(placed))
    path.write_bytes(file.header + bytes(file.size - len(file.header)))
    return file


def test_the_header_equals_ggufs_own_writer(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours.gguf", METADATA, TENSORS)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for entry in METADATA[1:]:
        value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
        writer.add_key_value(entry.key, value, entry.type, entry.subtype)
    for tensor, type_ in TENSORS:
        shape = (*tensor.shape[:-1], place_tensors([(tensor, type_)])[0].row_bytes)
        data = np.zeros(shape, np.uint8) if type_ != Type.F32 else np.zeros(tensor.shape, np.float32)
        writer.add_tensor(tensor.name, data, raw_dtype=None if type_ == Type.F32 else type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert ours.size == (tmp_path / "theirs.gguf").stat().st_size


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=50),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9).map(lambda n: n * 32)), min_size=1, max_size=6),
)
def test_a_reader_gets_back_what_was_written(
    tmp_path_factory: object, texts: list[str], shapes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"  # type: ignore[attr-defined]
    tensors = [(MappedTensor(f"t{i}.weight", shape), Type.Q8_0) for i, shape in enumerate(shapes)]
    metadata = [METADATA[0], KeyValue("texts", texts, Value.ARRAY, Value.STRING)]
    file = write(path, metadata, tensors)
    reader = gguf.GGUFReader(path)
    if texts:  # gguf-py cannot read back an empty array
        assert reader.fields["texts"].contents() == texts
    for typed, tensor in zip(file.tensors, reader.tensors, strict=True):
        assert tuple(tensor.shape[::-1]) == typed.tensor.shape
        assert tensor.data_offset == len(file.header) + typed.offset
        assert tensor.data_offset % ALIGNMENT == 0 and tensor.n_bytes == typed.nbytes
