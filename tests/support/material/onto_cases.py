"""A base, an adapter and a GGUF of the base, all written number by number, for tests of `--onto`."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from adapter_folders import PREFIX, adapter_folder
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.export.onto.find import Found, find_sources
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.source import OntoSource
from lorafold.weights import Checkpoint

Tensors = dict[str, NDArray[np.float32]]
Convert = Callable[[Tensors], Tensors]
SCALE = 2.0  # lora_alpha 4, rank 2


def bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 numbers as bfloat16 holds them, by gguf-py."""
    rounded = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), Type.BF16)
    return gguf.quants.dequantize(rounded, Type.BF16).reshape(values.shape)


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Random weights that bfloat16 holds."""
    random = np.random.default_rng(seed)
    return {
        name: bf16(random.standard_normal(shape).astype(np.float32) * 0.1) for name, shape in shapes.items()
    }


def write_base(folder: Path, tensors: Tensors, dtype: str = "BF16", **config: Any) -> Path:
    """A model folder; numpy has no bfloat16, so the file is put together here."""
    folder.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        raw = values.astype("<f4")
        packed = (raw.view("<u4") >> 16).astype("<u2").tobytes() if dtype == "BF16" else raw.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(packed)],
        }
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 16} | config))
    return folder


def write_gguf(path: Path, tensors: Tensors, type_: Type = Type.F32, **metadata: Any) -> Path:
    """A GGUF by gguf-py; vectors stay in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for name, values in tensors.items():
        plain = np.ascontiguousarray(values, np.float32)
        if type_ == Type.F32 or values.ndim == 1:
            writer.add_tensor(name, plain)
        else:
            writer.add_tensor(name, gguf.quants.quantize(plain, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(folder: Path, base: Tensors, modules: list[str], seed: int = 1) -> Path:
    """A random LoRA adapter on linear layers."""
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for module in modules:
        rows, cols = base[f"{module}.weight"].shape
        for part, shape in (("A", (2, cols)), ("B", (rows, 2))):
            values = random.standard_normal(shape).astype(np.float32) * 0.2
            tensors[f"{PREFIX}{module}.lora_{part}.weight"] = values
    return adapter_folder(folder, tensors, target_modules=modules)


def merged(base: Tensors, adapter: Path) -> Tensors:
    """Base plus adapter, in numpy."""
    from safetensors.numpy import load_file

    saved = load_file(adapter / "adapter_model.safetensors")
    result = dict(base)
    for name in base:
        a = f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight"
        if a in saved:
            b = a.replace("lora_A", "lora_B")
            result[name] = base[name] + np.float32(SCALE) * (saved[b] @ saved[a])
    return result


@dataclass(frozen=True, slots=True)
class Case:
    """What a search works on."""

    fold: Folded
    model: BaseGguf

    def find(self) -> Found:
        """Search."""
        return find_sources(self.fold, self.fold.base, self.model)

    def source(self) -> OntoSource:
        """The rows of the result."""
        return OntoSource(self.fold, self.model, self.find())


def case(
    folder: Path,
    base: Tensors,
    modules: list[str],
    convert: Convert,
    type_: Type = Type.F32,
    dtype: str = "BF16",
    **config: Any,
) -> tuple[Case, Tensors]:
    """A base, an adapter on some of its modules, the base's GGUF; and what the merged model's would hold."""
    write_base(folder / "base", base, dtype, **config)
    adapter = write_adapter(folder / "adapter", base, modules)
    model = write_gguf(folder / "base.gguf", convert(base), type_)
    fold = Folded(Checkpoint.open(folder / "base"), [(Adapter.open(adapter), 1.0)])
    return Case(fold, BaseGguf.open(model)), convert(merged(base, adapter))


def worst(source: OntoSource, wanted: Tensors) -> float:
    """The greatest difference of any number."""
    assert {tensor.name for tensor in source.file_tensors()} == set(wanted)
    return max(
        float(np.abs(source.rows(t.name, 0, t.rows) - wanted[t.name].reshape(t.rows, t.cols)).max())
        for t in source.file_tensors()
    )
