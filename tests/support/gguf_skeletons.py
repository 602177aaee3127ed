"""GGUF files that hold a model's header and a hole where its weights would be.

A dry run of llama_model_quantize reads only names, shapes and hyper-parameters, so a sparse file of a few
kilobytes stands for a 70B model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

Tensors = list[tuple[str, tuple[int, ...]]]

# The recipes of which llama.cpp's tools say that they need an importance matrix, whatever the model.
NEED_IMATRIX = ("IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The sizes of a model.

    Args:
        style: which matrices a block has: "separate", "fused" (q-k-v and gate-up in one), "gpt2" (q-k-v in
            one, learned positions) or "shared" (experts beside a dense one).
    """

    arch: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int = 1000
    experts: int = 0
    tied: bool = False
    style: str = "separate"

    def tensors(self) -> Tensors:
        """GGUF names and numpy shapes, in the order of a converter: by layer, not by name."""
        n, kv = self.width, self.width // self.heads * self.kv_heads
        found: Tensors = [("token_embd.weight", (self.vocabulary, n)), ("output_norm.weight", (n,))]
        if not self.tied:
            found.append(("output.weight", (self.vocabulary, n)))
        if self.style == "gpt2":
            found.append(("position_embd.weight", (64, n)))
        for layer in range(self.layers):
            block: Tensors = [("attn_norm.weight", (n,)), ("ffn_norm.weight", (n,))]
            block.append(("attn_output.weight", (n, n)))
            if self.style in ("fused", "gpt2"):
                block += [("attn_qkv.weight", (n + 2 * kv, n)), ("attn_qkv.bias", (n + 2 * kv,))]
            else:
                block += [("attn_q.weight", (n, n)), ("attn_k.weight", (kv, n)), ("attn_v.weight", (kv, n))]
                block.append(("attn_q_norm.weight", (n // self.heads,)))
            block += self._feed_forward()
            found += [(f"blk.{layer}.{name}", shape) for name, shape in block]
        return found

    def _feed_forward(self) -> Tensors:
        n, inner, experts = self.width, self.inner, self.experts
        if self.style == "fused":
            return [("ffn_up.weight", (2 * inner, n)), ("ffn_down.weight", (n, inner))]
        if self.style == "gpt2":
            return [("ffn_up.weight", (inner, n)), ("ffn_down.weight", (n, inner)), ("ffn_down.bias", (n,))]
        if not experts:
            return [(f"ffn_{part}.weight", (inner, n)) for part in ("gate", "up")] + [
                ("ffn_down.weight", (n, inner))
            ]
        block: Tensors = [
            ("ffn_gate_inp.weight", (experts, n)),
            ("ffn_down_exps.weight", (experts, n, inner)),
        ]
        block += [(f"ffn_{part}_exps.weight", (experts, inner, n)) for part in ("gate", "up")]
        if self.style == "shared":
            block += [("ffn_gate_inp_shexp.weight", (n,)), ("ffn_down_shexp.weight", (n, 2 * inner))]
            block += [(f"ffn_{part}_shexp.weight", (2 * inner, n)) for part in ("gate", "up")]
        return block

    def metadata(self) -> dict[str, int | float | str]:
        """The GGUF keys that llama.cpp insists on before it plans."""
        keys: dict[str, int | float | str] = {
            "context_length": 64,
            "embedding_length": self.width,
            "block_count": self.layers,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5,
            "attention.sliding_window": 64,
        }
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": 2}
        if self.experts and self.style == "shared":
            keys |= {"expert_feed_forward_length": self.inner}
            keys |= {"expert_shared_feed_forward_length": 2 * self.inner}
        return {"general.architecture": self.arch} | {f"{self.arch}.{k}": v for k, v in keys.items()}

    def _writer(self, path: Path) -> gguf.GGUFWriter:
        writer = gguf.GGUFWriter(path, self.arch)
        for key, value in self.metadata().items():
            if key != "general.architecture":
                add = {int: writer.add_uint32, float: writer.add_float32}[type(value)]
                add(key, value)
        writer.add_vocab_size(self.vocabulary)
        return writer

    def fill(self, path: Path, seed: int) -> dict[str, NDArray[np.float32]]:
        """Write the file with random weights, all F32; they are returned by name."""
        generator = np.random.default_rng(seed)
        weights = {n: generator.standard_normal(shape, np.float32) for n, shape in self.tensors()}
        writer = self._writer(path)
        for name, values in weights.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return weights

    def write(self, path: Path) -> Path:
        """Write the sparse file, matrices as F16 and the rest as F32."""
        writer = self._writer(path)
        total = 0
        for name, shape in self.tensors():
            matrix = len(shape) > 1 and name.endswith("weight") and "inp" not in name and "posi" not in name
            kind, item = (Type.F16, 2) if matrix else (Type.F32, 4)
            nbytes = int(np.prod(shape)) * item
            writer.add_tensor_info(name, shape, np.dtype(np.float16 if matrix else np.float32), nbytes, kind)
            total += -(-nbytes // 32) * 32
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + 64 + total)
        return path
