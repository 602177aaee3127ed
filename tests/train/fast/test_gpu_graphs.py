"""Passes captured as CUDA graphs against the same passes launched."""

from __future__ import annotations

import gc
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_gpu import adapted, examples, off

from lorafold.train.fast.attention import VARLEN
from lorafold.train.fast.forward import Forward, seed_pass
from lorafold.train.tokens.packing import make_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def graphed(folder: Path, *, checkpointing: bool = False, **lora: Any) -> list[Forward]:
    """A model launched as usual, and the same as graphs."""
    from lorafold.train.fast.attention import register_varlen
    from lorafold.train.fast.fused_lora import fuse
    from lorafold.train.fast.graphs import DecoderGraphs
    from lorafold.train.model.adapter import trainable

    register_varlen()
    model = adapted(tiny_base(folder, hidden_size=128, head_dim=64), torch.bfloat16, **lora)
    model.get_base_model().set_attn_implementation(VARLEN)
    fuse(model)
    if checkpointing:
        options = {"use_reentrant": False}
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.train()
    device, decoder = torch.device("cuda"), model.get_base_model().base_model
    for value in trainable(model).values():
        value.data += 0.02 * torch.randn_like(value)
        value.grad = torch.zeros_like(value)
    sums = list(accumulate(sorted(len(example.ids) for example in examples(20))))
    graphs = DecoderGraphs(decoder, device, VARLEN, sums=sums, longest=70, budget=2**33)
    return [Forward(model, device, attention=VARLEN, direct=True, graphs=use) for use in (None, graphs)]


def step_of(way: Forward, packs: list[Any]) -> tuple[list[float], torch.Tensor]:
    """Losses, and the gradient that the packs of a step sum up to."""
    from lorafold.train.model.adapter import trainable

    way.model.zero_grad(set_to_none=False)
    losses = []
    for pack in packs:
        loss = way.loss(pack)
        loss.backward()
        losses.append(loss.item())
        del loss
    return losses, torch.cat([value.grad.flatten().clone() for value in trainable(way.model).values()])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_graphs_compute_what_launches_compute(checkpointing: bool, tmp_path: Path) -> None:
    """Packs of several sizes, two accumulated a step, each size captured but in the very first pass."""
    ways = graphed(tmp_path / "base", checkpointing=checkpointing)
    packs = [make_pack(examples(count)) for count in (3, 8, 20)]
    for step in range(4):
        pair = [packs[step % 3], packs[(step + 1) % 3]]
        (plain, wanted), (fast, gradient) = (step_of(way, pair) for way in ways)
        assert plain == pytest.approx(fast, rel=2e-3) and off(gradient, wanted.double()) < 1e-2
    assert ways[1].graphs is not None and len(ways[1].graphs._graphs) == 3


def test_garbage_of_an_earlier_pass_does_not_spoil_a_capture(tmp_path: Path) -> None:
    ways = graphed(tmp_path / "base")
    pack = make_pack(examples(8))
    gc.disable()
    try:
        cycle: list[Any] = [ways[0].loss(pack)]
        cycle.append(cycle)
        del cycle
        for _ in range(3):
            step_of(ways[1], [pack])
    finally:
        gc.enable()
    assert ways[1].graphs is not None and len(ways[1].graphs._graphs) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_seeded_pass_drops_the_same_launched_captured_and_replayed(
    checkpointing: bool, tmp_path: Path
) -> None:
    """So a run that goes on before its graphs are captured again follows the one that had them."""
    _, fast = graphed(tmp_path / "base", checkpointing=checkpointing, lora_dropout=0.3)
    packs = [make_pack(examples(8))]

    def gradient(step: int) -> torch.Tensor:
        seed_pass(42, step, 0, 0)
        return step_of(fast, packs)[1]

    launched, captured, replayed, other = gradient(0), gradient(0), gradient(0), gradient(1)
    assert fast.graphs is not None and len(fast.graphs._graphs) == 1
    assert off(captured, launched.double()) < 1e-2 and off(replayed, captured.double()) < 1e-2
    # What was dropped shows in the gradient (0.6 apart) and hardly in the loss (0.0004 of it).
    assert off(other, launched.double()) > 0.3 and off(gradient(1), other.double()) < 1e-2


def test_layers_computed_twice_drop_the_same(tmp_path: Path) -> None:
    """The gradient with checkpointing is the gradient without, dropout included; launched and captured."""
    kept, saved = (graphed(tmp_path / str(on), checkpointing=on, lora_dropout=0.3)[1] for on in (False, True))
    packs = [make_pack(examples(8))]
    for _ in range(3):
        found = []
        for way in (kept, saved):
            seed_pass(42, 3, 0, 0)
            found.append(step_of(way, packs)[1])
        assert off(found[1], found[0].double()) < 1e-2
    for way in (kept, saved):
        assert way.graphs is not None and len(way.graphs._graphs) == 1


def test_a_failed_capture_costs_speed_only(tmp_path: Path) -> None:
    """A loss that is kept alive spoils it; what is random stays random, and the results right."""
    plain, fast = graphed(tmp_path / "base", lora_dropout=0.0)
    packs = [make_pack(examples(8))]
    kept = fast.loss(packs[0])
    for _ in range(3):
        (losses, gradient), (wanted, slopes) = step_of(fast, packs), step_of(plain, packs)
        assert losses == pytest.approx(wanted, rel=2e-3) and off(gradient, slopes.double()) < 1e-2
    assert fast.graphs is not None and fast.graphs.fault and not fast.graphs._graphs
    assert kept.item() == pytest.approx(wanted[0], rel=2e-3)
    assert torch.rand(8, device="cuda").unique().numel() == 8
