"""A Llama whose weights are chosen, and an adapter on it whose change is known, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from adapter_folders import PREFIX, adapter_folder
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tiny_base import tiny_tokenizer

from lorafold.export import ExportConfig

Matrix = NDArray[np.float32]

HIDDEN, INNER, LAYERS = 256, 512, 2
# Module of a layer -> (rows, cols), and what GGUF calls it.
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
HEADS = 4
MODULES = ("mlp.down_proj", "mlp.up_proj", "self_attn.v_proj", "self_attn.q_proj")
GGUF_NAMES = {
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_proj": "attn_q",
}


def trained(shape: tuple[int, ...], dice: np.random.Generator) -> Matrix:
    """Weights as training leaves them."""
    return (dice.standard_normal(shape) * 0.02).astype(np.float32)


def on_a_grid(shape: tuple[int, ...], dice: np.random.Generator) -> Any:
    """Weights that were once in 4 bit: each block of 32 has a scale and 16 levels."""
    drawn = (dice.standard_normal(shape) * 0.02).astype(np.float32)
    return gguf.dequantize(gguf.quantize(drawn, Type.Q4_1), Type.Q4_1).reshape(shape)


def tuned_base(folder: Path, draw: Callable[..., Matrix] = trained, *, bfloat16: bool = False) -> Path:
    """Write a base of two layers, 256 wide, with a byte-level tokenizer and ChatML.

    Args:
        folder: where.
        draw: makes the matrices of the layers, of their shape and a generator.
        bfloat16: store them so, rounded.
    """
    vocabulary = tiny_tokenizer(folder)
    dice = np.random.default_rng(7)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16" if bfloat16 else "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": trained((vocabulary, HIDDEN), dice),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": draw(shape, dice) for name, shape in SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(HIDDEN, np.float32)
    if bfloat16:
        _save_bfloat16(tensors, folder / "model.safetensors")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def tuned_adapter(folder: Path, modules: tuple[str, ...], size: float, rank: int = 4) -> Path:
    """Write an adapter whose change to each weight has about this standard deviation."""
    dice = np.random.default_rng(11)
    tensors = {}
    for layer in range(LAYERS):
        for module in modules:
            rows, cols = SHAPES[module]
            for side, shape in (("A", (rank, cols)), ("B", (rows, rank))):
                drawn = dice.standard_normal(shape).astype(np.float32)
                if side == "B":
                    drawn *= np.float32(size / np.sqrt(rank))
                tensors[f"{PREFIX}model.layers.{layer}.{module}.lora_{side}.weight"] = drawn
    targets = [module.rpartition(".")[2] for module in modules]
    return adapter_folder(folder, tensors, r=rank, lora_alpha=rank, target_modules=targets)


def made_once(make: Callable[..., Path], *settings: Any, **named: Any) -> Any:
    """A fixture: a folder that is made once for all tests of a module.

    Args:
        make: writes the folder that it is given first, as `tuned_base` and `tuned_adapter` do.
        settings: what else it is given.
        named: the same, by name.
    """

    @pytest.fixture(scope="module")
    def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make(tmp_path_factory.mktemp("made") / "folder", *settings, **named)

    return made


def change_of(adapter: Path, module: str, layer: int) -> NDArray[np.float64]:
    """B · A, by hand, in llama.cpp's order of the rows; alpha is the rank."""
    from safetensors.numpy import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    left, right = (
        tensors[f"{PREFIX}model.layers.{layer}.{module}.lora_{side}.weight"].astype(np.float64)
        for side in "BA"
    )
    change = np.asarray(left @ right)
    if module == "self_attn.q_proj":  # rope's halves stand side by side, as llama.cpp's converter permutes
        return change.reshape(HEADS, 2, -1, change.shape[1]).swapaxes(1, 2).reshape(change.shape)
    return change


def tuned_config(adapter: Path | str, base: Path, out: Path, **changes: Any) -> ExportConfig:
    settings: dict[str, Any] = {"base": str(base), "name": "m", "verify": False, "threads": 2, **changes}
    return ExportConfig(str(adapter), out=out, **settings)


def with_own_code(base: Path) -> Path:
    """Let a base bring its own code, which nobody runs: its answers cannot be asked for."""
    config = json.loads((base / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Mine"}
    (base / "config.json").write_text(json.dumps(config))
    return base


def with_long_system(base: Path) -> Path:
    """Let a base's template write a system prompt of hundreds of tokens before every question."""
    path = base / "tokenizer_config.json"
    told = json.loads(path.read_text())
    system = "{{ '<|im_start|>system\n" + "Be helpful. " * 40 + "<|im_end|>\n' }}"
    path.write_text(json.dumps(told | {"chat_template": system + told["chat_template"]}))
    return base


def size_of(out: Path, quant: str) -> int:
    """Bytes of a GGUF that `tuned_config` names."""
    return (out / f"m-{quant}.gguf").stat().st_size


def types_in(path: Path) -> dict[str, str]:
    """The type of each tensor of a GGUF."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def found_in(out: Path, model: str) -> dict[str, dict[str, Any]]:
    manifest = json.loads((out / "lorafold.json").read_text())
    return {each["tensor"]: each for each in manifest["survival"]["models"][model]["tensors"]}


def _save_bfloat16(tensors: dict[str, Any], path: Path) -> None:
    """numpy has no bfloat16: the upper halves of float32 are written, and the header says what they are."""
    header: dict[str, Any] = {}
    data = b""
    for name, values in tensors.items():
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        packed = (bits >> np.uint32(16)).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
