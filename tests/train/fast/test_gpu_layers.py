"""Fused layers and packed passes on a CUDA GPU: what they compute is what the plain ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_base import tiny_base
from tiny_gpu import adapted, examples, off, random, seed_of

from lorafold.chat.tokenizer import Encoded
from lorafold.train.fast.attention import VARLEN
from lorafold.train.fast.check import Measured, difference, measure
from lorafold.train.fast.forward import Forward
from lorafold.train.tokens.collate import IGNORED, make_batch
from lorafold.train.tokens.packing import make_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", VARLEN])
def test_a_fused_packed_pass_equals_the_padded_one(family: str, attention: str, tmp_path: Path) -> None:
    from lorafold.train.fast.attention import register_varlen
    from lorafold.train.fast.fused_lora import fuse

    register_varlen()
    extra = {"sliding_window": 16} if family == "Mistral" else {}
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, **extra}
    folder = tiny_base(tmp_path / "base", family=family, **shape)
    sequences = examples()
    exact = measure(Forward(adapted(folder, torch.float32), torch.device("cuda")), make_batch(sequences, 0))
    model = adapted(folder, torch.bfloat16)
    rounded = measure(Forward(model, torch.device("cuda")), make_batch(sequences, 0))
    model.get_base_model().set_attn_implementation(attention)
    assert fuse(model) == 14
    fast = Forward(model, torch.device("cuda"), attention=attention, direct=True)
    found = measure(fast, make_pack(sequences))
    assert not difference(rounded, found)
    # As near to the float32 pass as the plain 16-bit one is.
    assert off(found.gradient, exact.gradient.double()) < 1.5 * off(rounded.gradient, exact.gradient.double())


def test_dropout_drops_the_same_in_forward_and_backward(tmp_path: Path) -> None:
    """The gradient of a layer with dropout agrees with differences of its own output."""
    from lorafold.train.fast import lora_kernels
    from lorafold.train.fast.fused_lora import LoraLinear

    base = torch.nn.Linear(96, 80, device="cuda", dtype=torch.float32).requires_grad_(False)
    x = random(40, 96, dtype=torch.float32).requires_grad_()
    a = random(8, 96, dtype=torch.float32).requires_grad_()
    b = random(80, 8, dtype=torch.float32).requires_grad_()

    def layer(*inputs: torch.Tensor) -> torch.Tensor:
        return LoraLinear.apply(*inputs, base, 0.5, 0.4, seed_of(123), lora_kernels)

    pull = random(40, 80, dtype=torch.float32, seed=5)
    (layer(x, a, b) * pull).sum().backward()
    for value in (x, a, b):
        step = 1e-2 * random(*value.shape, dtype=torch.float32, seed=9)
        with torch.no_grad():
            moved = [value + step if one is value else one for one in (x, a, b)]
            back = [value - step if one is value else one for one in (x, a, b)]
            slope = ((layer(*moved) - layer(*back)) * pull).double().sum() / 2
        assert value.grad is not None
        assert abs(float(slope) - float((value.grad * step).double().sum())) < 2e-2 * abs(float(slope)) + 0.05


def test_a_leak_between_packed_examples_is_found(tmp_path: Path) -> None:
    model = adapted(tiny_base(tmp_path / "base"), torch.float32)
    sequences = examples()
    right = measure(Forward(model, torch.device("cuda")), make_batch(sequences, 0))
    merged = Encoded([i for s in sequences for i in s.ids], [m for s in sequences for m in s.mask])
    leaking = measure(Forward(model, torch.device("cuda")), make_pack([merged]))
    assert difference(right, leaking)
    assert difference(right, Measured(float("nan"), right.gradient))


def test_ignored_positions_cost_nothing(tmp_path: Path) -> None:
    """A worker without work trains on a batch that counts nothing: its loss and gradient are zero."""
    from lorafold.train.fast.fused_lora import fuse

    model = adapted(tiny_base(tmp_path / "base"), torch.bfloat16)
    fuse(model)
    batch = make_pack(examples(2))
    batch.targets.fill_(IGNORED)
    found = measure(Forward(model, torch.device("cuda"), direct=True), batch)
    assert found.loss == 0 and not found.gradient.any()
