"""Random models of published Qwen2 shapes with an adapter, for benchmarks: quantizers do not care.

A shape becomes two Hugging Face folders, made once: a base in bfloat16 with the real tokenizer of
../shared/tokenizers/qwen2, and an adapter of rank 8 on all seven projections.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent

# hidden size, layers, heads, key-value heads, feed-forward size, tied head; vocabulary 151,936 or 152,064.
SHAPES = {
    "tiny": (256, 2, 4, 2, 512, True, 151_936),
    "0.5B": (896, 24, 14, 2, 4864, True, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, True, 151_936),
    "7B": (3584, 28, 28, 4, 18944, False, 152_064),
}
RANK = 8
POOL = 1 << 24  # random weights are cut from a pool of this many: quantizers do not care


def build_model(folder: Path, shape: str) -> tuple[Path, Path]:
    """A random model of a published shape, and an adapter; made once."""
    base, adapter = folder / "base", folder / "adapter"
    if not (adapter / "adapter_model.safetensors").exists():
        print(f"  making a random {shape} model", file=sys.stderr, flush=True)
        base.mkdir(parents=True, exist_ok=True)
        adapter.mkdir(exist_ok=True)
        _write_base(base, shape)
        _write_adapter(adapter, base, shape)
    return base, adapter


def _tensors(shape: str) -> dict[str, tuple[int, ...]]:
    hidden, layers, heads, kv_heads, ffn, tied, vocab = SHAPES[shape]
    kv = hidden // heads * kv_heads
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows, cols in _projections(hidden, kv, ffn):
            tensors[f"{prefix}{name}.weight"] = (rows, cols)
            if name.startswith("self_attn.") and not name.endswith("o_proj"):
                tensors[f"{prefix}{name}.bias"] = (rows,)
        tensors[f"{prefix}input_layernorm.weight"] = (hidden,)
        tensors[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    tensors["model.norm.weight"] = (hidden,)
    if not tied:
        tensors["lm_head.weight"] = (vocab, hidden)
    return tensors


def _projections(hidden: int, kv: int, ffn: int) -> list[tuple[str, int, int]]:
    return [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", ffn, hidden),
        ("mlp.up_proj", ffn, hidden),
        ("mlp.down_proj", hidden, ffn),
    ]


def _write_base(folder: Path, shape: str) -> None:
    hidden, layers, heads, kv_heads, ffn, tied, vocab = SHAPES[shape]
    tokenizer = REPOSITORY.parent / "shared" / "tokenizers" / "qwen2"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    (folder / "config.json").write_text(json.dumps(config))
    pool = _bf16(np.random.default_rng(0).standard_normal(POOL, np.float32) * 0.02)
    _write_safetensors(folder / "model.safetensors", _tensors(shape), "BF16", pool)


def _write_adapter(folder: Path, base: Path, shape: str) -> None:
    hidden, layers, heads, kv_heads, ffn, _, _ = SHAPES[shape]
    projections = _projections(hidden, hidden // heads * kv_heads, ffn)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for name, rows, cols in projections:
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = (RANK, cols)
            tensors[f"{key}.lora_B.weight"] = (rows, RANK)
    pool = np.random.default_rng(1).standard_normal(POOL, np.float32) * np.float32(0.02)
    _write_safetensors(folder / "adapter_model.safetensors", tensors, "F32", pool.view(np.uint8))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 32,
        "target_modules": [name.rpartition(".")[2] for name, _, _ in projections],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _bf16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str, pool: np.ndarray) -> None:
    width = {"BF16": 2, "F32": 4}[dtype]
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(2)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            left = int(np.prod(shape)) * width
            while left:
                start = int(random.integers(0, len(pool) // 2 // width)) * width
                piece = min(left, len(pool) - start)
                file.write(pool[start : start + piece].data)
                left -= piece
