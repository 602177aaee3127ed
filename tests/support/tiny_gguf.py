"""A GGUF of a tiny model: our mapping and header, a made-up vocabulary, gguf-py's writer, float32."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from converter import add_vocabulary

from lorafold.export.arch import map_tensors, metadata
from lorafold.export.gguf.rows import RowSource, read_block
from lorafold.weights import Checkpoint


def write_tiny_gguf(folder: Path, out: Path, source: RowSource | None = None) -> Path:
    """Convert a model folder of `tiny_families`.

    Args:
        folder: config.json and safetensors.
        out: the file.
        source: where the rows come from instead of the folder's own weights, for example a fold.

    Returns:
        `out`.
    """
    config = json.loads((folder / "config.json").read_text())
    base = Checkpoint.open(folder)
    tensors = map_tensors(config, base.tensors)
    architecture, *entries = metadata(config, tensors, folder, 0)
    writer = gguf.GGUFWriter(out, str(architecture.value))
    for entry in entries:
        writer.add_key_value(entry.key, entry.value, entry.type, entry.subtype)
    add_vocabulary(writer, config.get("text_config", config)["vocab_size"])
    for tensor in tensors:
        rows = read_block(source or base, tensor, 0, tensor.rows)
        writer.add_tensor(tensor.name, rows.reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
