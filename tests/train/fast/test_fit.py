"""How many tokens fit: the measuring passes, on a card of which only torch's account of memory is made up."""

from __future__ import annotations

import pytest
import torch
from tiny_base import tiny_base
from transformers import AutoModelForCausalLM

from lorafold.chat.tokenizer import Encoded
from lorafold.train.fast import allocator, memory
from lorafold.train.fast.forward import Forward
from lorafold.train.model.adapter import trainable
from lorafold.train.workers import Workers

WEIGHTS, FIXED, EACH = 10_000_000, 2_000_000, 5_000  # bytes on the card, of any pass, and of a token of it
SEQUENCES = [Encoded(list(range(3, 43)), [False] * 20 + [True] * 20)] * 8


class Card:
    """A GPU of so many bytes, asked by torch's names; runs out of them as torch does."""

    def __init__(self, total: int) -> None:
        self.total, self.peak, self.passes = total, WEIGHTS, []

    def compute(self, tokens: int) -> None:
        self.passes.append(tokens)
        self.peak = WEIGHTS + FIXED + EACH * tokens
        if self.peak > self.total:
            raise torch.OutOfMemoryError

    def mem_get_info(self, device: object) -> tuple[int, int]:
        return self.total - WEIGHTS + allocator._SPARED, self.total + allocator._SPARED

    def memory_allocated(self, device: object) -> int:
        return WEIGHTS

    memory_reserved = memory_allocated

    def max_memory_allocated(self, device: object) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: object) -> None:
        self.peak = WEIGHTS

    def empty_cache(self) -> None: ...


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Forward:
    folder = tiny_base(tmp_path_factory.mktemp("fit") / "base", num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Forward(model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("total", "passes", "fits"),
    [
        (10**9, 2, "measured"),
        # A pass of 3,072 tokens would run out: it is not tried, and nothing is known of the fixed part.
        (WEIGHTS + FIXED + EACH * 2000, 1, "proportional"),
        (WEIGHTS + FIXED + EACH * 500, 1, "nothing"),
    ],
)
def test_tokens_that_fit(
    total: int, passes: int, fits: str, forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(total)
    for name in vars(Card):
        if not name.startswith("_") and hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    decoder = forward.model.model
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: card.compute(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        found = memory.tokens_that_fit(forward, SEQUENCES, Workers())
    finally:
        hook.remove()
    assert len(card.passes) == passes
    assert all(value.grad is None for value in forward.model.parameters())
    free, state = total - WEIGHTS, 12 * sum(value.numel() for value in trainable(forward.model).values())
    first = card.passes[0]
    each = {"measured": EACH, "proportional": (FIXED + EACH * first) / first}.get(fits)
    fixed = FIXED if fits == "measured" else 0
    assert found == (int((0.85 * free - state - fixed) / each) if each else 0)
