"""A GGUF of a tiny model by the product's own mapping, written by gguf-py, with a made-up vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
from converter import add_vocabulary

from lorafold.export.arch import map_tensors, metadata
from lorafold.export.gguf.rows import read_block
from lorafold.weights import Checkpoint


def our_gguf(
    folder: Path,
    out: Path,
    types: Mapping[str, gguf.GGMLQuantizationType] = MappingProxyType({}),
    file_type: int = 0,
) -> Path:
    """Write a GGUF of a model.

    Args:
        folder: the model.
        out: the file.
        types: of its tensors; F32 if none is given.
        file_type: for the header.

    Returns:
        `out`.
    """
    config = json.loads((folder / "config.json").read_text())
    source = Checkpoint.open(folder)
    tensors = map_tensors(config, source.tensors)
    entries = metadata(config, tensors, folder, file_type)
    writer = gguf.GGUFWriter(out, entries[0].value)
    for entry in entries[1:]:
        writer.add_key_value(entry.key, entry.value, entry.type, entry.subtype)
    add_vocabulary(writer, config.get("text_config", config)["vocab_size"])
    for tensor in tensors:
        block = read_block(source, tensor, 0, tensor.rows).reshape(tensor.shape)
        kind = types.get(tensor.name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(tensor.name, gguf.quants.quantize(block, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
