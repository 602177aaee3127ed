"""What a type costs a model, as transformers computes it, against what llama.cpp computes from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tiny_base import tiny_base, tiny_tokenizer

from lorafold.export import ExportConfig, export
from lorafold.export.proof.reference.rounding import rounded_activations
from lorafold.export.quant import ggml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0])
def test_activations_are_rounded_as_ggml_rounds_them(kind: Type) -> None:
    """ggml rounds activations as it quantizes weights of the partner type."""
    x = np.random.default_rng(0).standard_normal((7, 128)).astype(np.float32) * np.float32(3)
    x[1, :32] = 0
    x[2, 5] = 400.0
    wanted = ggml.dequantize(ggml.quantize(x, kind), kind, 128)
    ours = rounded_activations(torch.tensor(x), kind).numpy()
    assert np.mean(ours != wanted) < 0.002  # ties that multiplying with 1/scale decides otherwise
    np.testing.assert_allclose(ours, wanted, atol=4.0)
    assert not np.array_equal(ours, x)


def test_k_quants_round_activations_in_blocks_of_256() -> None:
    """By hand: 127 steps to the largest of 256; a row that is no multiple of it is left alone."""
    x = torch.zeros(1, 512)
    x[0, 0], x[0, 1], x[0, 256] = 127.0, 1.4, 1.4
    ours = rounded_activations(x, Type.Q4_K)[0]
    assert ours[0] == 127.0 and ours[1] == 1.0
    assert abs(float(ours[256]) - 1.4) < 1e-6
    odd = torch.ones(1, 100)
    assert rounded_activations(odd, Type.Q4_K) is odd


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("Llama", {}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Mixtral", {"num_local_experts": 4}),
        ("GPT2", {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512, "n_positions": 512}),
    ],
)
def test_what_a_type_costs_is_what_llama_cpp_loses(
    family: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    """Stacked experts, tied heads and transposed weights too: every weight has its place."""
    if family == "GPT2":
        base = tmp_path / "base"
        options = {**shape, "initializer_range": 0.1, "vocab_size": tiny_tokenizer(base)}
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**options, bos_token_id=None, eos_token_id=None)
        )
        model.save_pretrained(base)
    else:
        shape = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.1, **shape}
        base = tiny_base(tmp_path / "base", family=family, **shape)
    quants = ("F32", "F16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K")
    result = export(ExportConfig(str(base), out=tmp_path / "out", quant=quants, name="tiny"))
    checks = {check.name: check for check in result.proof.checks}
    for quant in quants:
        check = checks[f"logits tiny-{quant}.gguf"]
        assert check.verdict == "passed", check.meaning
        file, kind = (check.figures[name] for name in ("mean KL", "mean KL of the type itself"))
        assert abs(file - kind) <= 0.15 * kind + 1e-6, (quant, file, kind)
        assert check.figures["KL from the rounded reference"] <= check.figures["limit of that"] / 2
