"""Gated delta nets in a pack compute what transformers' own code computes of each example by itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_classes import drawn_example, write_tiny
from tiny_run import packed_run

from lorafold.train import TrainConfig, train
from lorafold.train.fast.check import leaks, measure
from lorafold.train.fast.delta_net import CONVOLUTION, RULE, _convolution, _rule
from lorafold.train.fast.forward import Forward
from lorafold.train.fast.speed import _wraps_experts, choose, restored_modules, tell_of_bounds
from lorafold.train.methods import METHODS
from lorafold.train.tokens.collate import make_batch
from lorafold.train.tokens.packing import make_pack

CPU = torch.device("cpu")
LENGTHS = (70, 1, 3, 200, 64, 5, 129)


def bounds_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("repeat", [1, 2])
def test_the_rule_and_its_gradient(unit: bool, repeat: int) -> None:
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    own, draw = vars(module)[RULE].__wrapped__, torch.Generator().manual_seed(0)

    def random(heads: int, *width: int) -> torch.Tensor:
        return torch.randn(1, sum(LENGTHS), heads, *width, generator=draw) / 4

    query, key, value = random(2, 16), random(2, 16), random(2 * repeat, 24)
    g, beta = -random(2 * repeat).abs(), random(2 * repeat).sigmoid()
    enters = [each.requires_grad_() for each in (query, key, value, g, beta)]
    pull = random(2 * repeat, 24)
    bounds = bounds_of(LENGTHS)
    found, state = _rule(
        own,
        *enters[:3],
        g=g,
        beta=beta,
        cu_seqlens=bounds,
        use_qk_l2norm_in_kernel=unit,
        output_final_state=False,
    )
    slopes = torch.autograd.grad((found * pull).sum(), enters)
    parts = []
    for start, end in pairwise(bounds):
        q, k, v, decay, rate = (each[:, start:end] for each in enters)
        q, k = (each.repeat_interleave(repeat, dim=2) for each in (q, k))
        parts.append(own(q, k, v, g=decay, beta=rate, use_qk_l2norm_in_kernel=unit)[0])
    wanted = torch.cat(parts, dim=1)
    assert state is None
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(slopes, torch.autograd.grad((wanted * pull).sum(), enters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_the_convolution(biased: bool) -> None:
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    own = vars(module)[CONVOLUTION]
    hidden = torch.randn(1, 12, sum(LENGTHS), generator=torch.Generator().manual_seed(0))
    weight, bias = torch.randn(12, 4), torch.randn(12) if biased else None
    bounds = bounds_of(LENGTHS)
    found = _convolution(own, hidden, weight, bias, "silu", cu_seq_lens_q=bounds)
    parts = [own(hidden[..., start:end], weight, bias, activation="silu") for start, end in pairwise(bounds)]
    torch.testing.assert_close(found, torch.cat(parts, dim=-1))
    assert torch.equal(_convolution(own, hidden, weight, bias, "silu"), own(hidden, weight, bias, "silu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "OlmoHybridForCausalLM"])
def test_a_model_packs_and_nothing_leaks(name: str, tmp_path: Path) -> None:
    """Loss and gradient of a pack are those of a padded batch, in which each example has a row."""
    import transformers
    from peft import LoraConfig, get_peft_model

    write_tiny(name, tmp_path, "float32")
    model = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float32)
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert _wraps_experts(model) == (name == "Qwen3NextForCausalLM")  # so it goes without Liger
    sequences = [drawn_example(length, length) for length in (13, 70, 2, 140, 64)]
    wanted = measure(Forward(model, CPU), make_batch(sequences, 0))
    with restored_modules():
        speed = choose(TrainConfig(packing=True), METHODS["lora"], model, CPU)
        tell_of_bounds(model)
        assert speed.packing and speed.bounded and "states that begin with each example" in speed.line()
        forward = Forward(model, CPU, attention=speed.attention, bounded=True)
        assert not leaks(forward, sequences[:2])
        found = measure(forward, make_pack(sequences))
        assert leaks(replace(forward, bounded=False), sequences[:2]), "or it could not be seen"
        again = measure(Forward(model, CPU), make_batch(sequences, 0))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    torch.testing.assert_close(
        found.gradient, wanted.gradient, rtol=1e-3, atol=1e-5 * float(wanted.gradient.abs().max())
    )
    assert again.loss == wanted.loss and torch.equal(again.gradient, wanted.gradient)


@pytest.mark.slow
def test_a_run_is_packed(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
    shape |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    shape |= {"linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    shape |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    base = tiny_base(tmp_path / "base", family="Qwen3Next", **shape)
    config = packed_run(tmp_path / "packed", base)
    packed = train(config)
    assert any("packed to" in note and "begin with each" in note for note in packed.notes), packed.notes
    plain = train(replace(config, packing=False, out=tmp_path / "plain"))
    assert packed.loss == pytest.approx(plain.loss, rel=1e-4)
