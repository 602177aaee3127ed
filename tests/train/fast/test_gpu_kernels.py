"""The kernels of a CUDA GPU against float64, and the optimizer's against bitsandbytes' own."""

from __future__ import annotations

import pytest
import torch
from tiny_gpu import off, random, seed_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

SIZES = ((1, 64, 8), (333, 200, 8), (1000, 1536, 16), (257, 8960, 64), (64, 96, 1), (130, 512, 100))


@pytest.mark.parametrize(("tokens", "width", "rank"), SIZES)
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_the_three_products_equal_float64(tokens: int, width: int, rank: int, p: float) -> None:
    from lorafold.train.fast import lora_kernels as kernels

    x, a, b = random(tokens, width), random(rank, width, dtype=torch.float32), random(width, rank, seed=1)
    h = random(tokens, rank, seed=2)
    mask = torch.zeros(tokens, width, device="cuda")
    kernels.expand_add(
        mask, torch.ones(tokens, 1, device="cuda"), torch.ones(width, 1, device="cuda"), seed_of(77), p
    )
    kept = (mask > 0).float().mean().item()
    assert abs(kept - (1 - p)) < 4 * ((p * (1 - p)) / (tokens * width)) ** 0.5 + 1e-9
    dropped = x.double() * mask.double()
    assert off(kernels.project(x, a, 0.5, seed_of(77), p), 0.5 * dropped @ a.to(x.dtype).double().t()) < 5e-3
    y = random(tokens, width, seed=3)
    wanted = y.double() + mask.double() * (h.double() @ b.double().t())
    kernels.expand_add(y, h, b, seed_of(77), p)
    assert off(y, wanted) < 5e-3
    assert off(kernels.gram(h, x, seed_of(77), p), h.double().t() @ dropped) < 1e-4


def test_strides_of_transposed_weights_are_followed() -> None:
    from lorafold.train.fast import lora_kernels as kernels

    x, b = random(200, 384), random(384, 8, dtype=torch.float32)
    assert off(kernels.project(x, b.t(), 1.0, None, 0.0), x.double() @ b.to(x.dtype).double()) < 5e-3


@pytest.mark.parametrize("vocabulary", [1000, 151_936])
def test_cross_entropy_rows_equal_float64(vocabulary: int) -> None:
    from lorafold.train.fast.loss_kernels import cross_entropy_rows

    logits = 3 * random(70, vocabulary)
    targets = torch.randint(vocabulary, (70,), device="cuda")
    wide = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    wanted.sum().backward()
    losses, slopes = cross_entropy_rows(logits, targets)
    assert wide.grad is not None
    assert off(losses, wanted.detach()) < 1e-5 and off(slopes, wide.grad) < 5e-3


def test_steps_that_wait_once_are_bitsandbytes_own() -> None:
    import bitsandbytes

    from lorafold.train.optimizers import _waiting_once

    found = []
    for kind in (bitsandbytes.optim.AdamW, _waiting_once(bitsandbytes.optim.AdamW)):
        weights = [random(64, 96, dtype=torch.float32, seed=n).requires_grad_() for n in range(30)]
        optimizer = kind(weights, lr=1e-2, optim_bits=32, is_paged=True)
        for step in range(5):
            for number, weight in enumerate(weights):
                weight.grad = random(64, 96, dtype=torch.float32, seed=100 + 30 * step + number)
            optimizer.step()
        found.append(torch.cat([weight.detach().flatten() for weight in weights]))
    assert torch.equal(found[0], found[1])
