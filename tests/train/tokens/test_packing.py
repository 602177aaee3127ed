"""Packing without leakage, the loss without logits, fused layers: each against the plain way, on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_base import tiny_base

from lorafold.chat.tokenizer import Encoded
from lorafold.errors import UsageError
from lorafold.train import TrainConfig, train
from lorafold.train.fast.check import difference, measure, sample
from lorafold.train.fast.forward import Forward
from lorafold.train.fast.fused_lora import LoraLinear
from lorafold.train.fast.graphs import DecoderGraphs, filled_size, launched_slower
from lorafold.train.fast.head_loss import head_loss
from lorafold.train.saved.curve import read_metrics
from lorafold.train.tokens.batches import StepPlan
from lorafold.train.tokens.collate import IGNORED, make_batch, trained_tokens
from lorafold.train.tokens.packing import make_pack, pack_step
from lorafold.train.workers import Workers

CPU = torch.device("cpu")
# The fused products in plain torch, without dropout: what the kernels compute on a GPU.
PLAIN = SimpleNamespace(
    project=lambda x, a, scale, seed, p: scale * x @ a.t(),
    expand_add=lambda y, h, b, seed, p: y.add_(h @ b.t()),
    gram=lambda h, x, seed, p: h.t() @ x,
)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    capacity=st.integers(1, 120),
    multiple=st.integers(1, 4),
)
def test_packs_hold_every_example_once_and_no_more_than_fits(
    lengths: list[int], capacity: int, multiple: int
) -> None:
    packs = pack_step(range(len(lengths)), lengths, capacity, multiple)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert len(packs) % multiple == 0
    for pack in packs:
        assert len(pack) < 2 or sum(lengths[index] for index in pack) <= capacity
    assert packs == pack_step(range(len(lengths)), lengths, capacity, multiple)


def test_packs_are_about_equally_long() -> None:
    lengths = [7, 9, 30, 12, 18, 25, 3, 14] * 8
    loads = [sum(lengths[i] for i in pack) for pack in pack_step(range(64), lengths, 200, 2)]
    assert len(loads) == 6 and max(loads) - min(loads) <= 7


def test_a_pack_by_hand() -> None:
    pack = make_pack([Encoded([5, 6, 7], [False, True, True]), Encoded([8, 9], [True, True])])
    assert pack.input_ids.tolist() == [[5, 6, 7, 8, 9]] and pack.attention_mask is None
    # Position 2 would predict the next example's first token: it is not trained.
    assert pack.targets.tolist() == [[6, 7, IGNORED, 9, IGNORED]]
    assert pack.position_ids is not None and pack.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert pack.bounds is not None and pack.bounds.tolist() == [0, 3, 5]
    assert (pack.tokens, pack.trained, pack.longest) == (5, 3, 3)


@given(st.integers(1, 40_000))
def test_filling_is_little(tokens: int) -> None:
    size = filled_size(tokens)
    assert 0 <= size - tokens < max(256, tokens / 8) and filled_size(size) == size


def examples(count: int = 9, vocabulary: int = 200, seed: int = 1) -> list[Encoded]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(2, 40, (), generator=draw))
        ids = torch.randint(vocabulary, (length,), generator=draw).tolist()
        found.append(Encoded(ids, [index >= length // 2 for index in range(length)]))
    return found


def adapted(folder: Path, attention: str = "sdpa") -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": 8},
    "Gemma2": {"head_dim": 16, "sliding_window": 8, "pad_token_id": 0},
    "Phi3": {"pad_token_id": 0},
    "Granite": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_of_a_pack_equal_the_padded_ones(
    family: str, attention: str, tmp_path: Path
) -> None:
    if (family, attention) == ("Gemma2", "sdpa"):
        pytest.skip("transformers has no sdpa for a model with softcapping")
    model = adapted(tiny_base(tmp_path / "base", family=family, **FAMILIES[family]), attention)
    sequences = examples()
    padded = measure(Forward(model, CPU), make_batch(sequences, 0))
    packed = measure(Forward(model, CPU, attention=attention), make_pack(sequences))
    assert packed.loss == pytest.approx(padded.loss, rel=1e-5)
    torch.testing.assert_close(packed.gradient, padded.gradient, rtol=1e-3, atol=1e-5)


def test_an_example_does_not_see_its_neighbours(tmp_path: Path) -> None:
    """Other neighbours, same loss, to the last bit of what the example's own arithmetic gives."""
    forward = Forward(adapted(tiny_base(tmp_path / "base")), CPU)
    forward.model.eval()
    first, *others = examples(6)
    silent = [Encoded(other.ids, [False] * len(other.ids)) for other in others]
    changed = [Encoded([(i + 1) % 200 for i in other.ids], other.mask) for other in silent]
    with torch.no_grad():
        one, two = (float(forward.loss(make_pack([*r[:2], first, *r[2:]]))) for r in (silent, changed))
        alone = float(forward.loss(make_pack([first])))
    assert one == two and one == pytest.approx(alone, rel=1e-6)


def test_a_leak_is_found(tmp_path: Path) -> None:
    model = adapted(tiny_base(tmp_path / "base"))
    sequences = examples()
    right = measure(Forward(model, CPU), make_batch(sequences, 0))
    merged = Encoded([i for s in sequences for i in s.ids], [m for s in sequences for m in s.mask])
    assert difference(right, measure(Forward(model, CPU), make_pack([merged])))
    assert not difference(right, measure(Forward(model, CPU), make_pack(sequences)))
    assert difference(right, dataclasses.replace(right, gradient=-right.gradient))


def test_the_check_leaves_the_adapter_as_it_was(tmp_path: Path) -> None:
    model = adapted(tiny_base(tmp_path / "base"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(Forward(model, CPU), make_pack(sample(examples())))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())


def test_a_filled_pack_has_room_for_the_sequences_that_it_can_hold_and_no_more() -> None:
    """Of 250 examples a step a short pack holds a few: FlashAttention pays for each that is not there."""
    sequences = [Encoded([1] * length, [True] * length) for length in range(30, 280)]
    sums = list(itertools.accumulate(range(30, 280)))
    graphs = DecoderGraphs(None, CPU, "", sums, longest=280, budget=0)
    for chosen in (sequences[:7], sequences[-1:], sequences[:30]):
        pack = make_pack(chosen)
        size = filled_size(pack.tokens)
        _, positions, bounds = graphs._filled(pack, size)
        assert positions.shape == (1, size) and bounds[-1] == size
        assert bounds[: len(chosen) + 1].tolist() == list(pack.bounds if pack.bounds is not None else ())
        assert sum(range(30, 30 + len(bounds) - 2)) <= size < sum(range(30, 30 + len(bounds) - 1))


@pytest.mark.parametrize(
    ("hidden", "heads", "pairs", "inner", "expected"),
    [
        (896, 14, 2, 4864, 16_384),
        (1536, 12, 2, 8960, 16_384),
        (2048, 16, 2, 11008, 12_456),
        (4096, 32, 32, 11008, 8_192),
    ],
    ids=["0.5B", "1.5B", "3B", "7B"],
)
def test_packs_of_small_layers_are_captured_longer(
    hidden: int, heads: int, pairs: int, inner: int, expected: int
) -> None:
    """A layer of Qwen2's shapes: what is waited for is launches at 1.5B, and products at 7B."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = {"num_attention_heads": heads, "num_key_value_heads": pairs, "intermediate_size": inner}
    config = Qwen2Config(hidden_size=hidden, num_hidden_layers=1, vocab_size=64, **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert launched_slower(model.model) == expected
    with torch.device("meta"):
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    assert launched_slower(adapted.get_base_model().model) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_the_loss_without_logits_equals_cross_entropy(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In three chunks of the least size, 256 rows."""
    monkeypatch.setattr("lorafold.train.fast.head_loss._CHUNK_BYTES", 1)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 3_000, bias=True, dtype=torch.float64).requires_grad_(trained)
    hidden = torch.randn(2, 700, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(3_000, (2, 700))
    targets[:, ::2] = IGNORED
    wanted = torch.nn.functional.cross_entropy(
        head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    leaves = [hidden, *(head.parameters() if trained else ())]
    exact = torch.autograd.grad(wanted, leaves)
    found = head_loss(hidden, head, targets)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    for one, other in zip(torch.autograd.grad(2 * found, leaves), exact, strict=True):
        torch.testing.assert_close(one, 2 * other, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # an evaluation
        evaluated = head_loss(hidden, head, targets)
    assert float(evaluated) == pytest.approx(float(wanted), rel=1e-6) and not evaluated.requires_grad


def test_a_fused_layer_equals_pefts(tmp_path: Path) -> None:
    model = adapted(tiny_base(tmp_path / "base", family="Qwen2"))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, 11, 64, requires_grad=True)
    pull = torch.randn(3, 11, 64)
    wanted = layer(x)
    exact = torch.autograd.grad((wanted * pull).sum(), (x, a, b))
    scale = layer.scaling["default"]
    found = LoraLinear.apply(x, a, b, layer.get_base_layer(), scale, 0.0, None, PLAIN)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad((found * pull).sum(), (x, a, b)), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([0, 60]))
def test_workers_share_a_step_without_loss(count: int, accumulation: int, capacity: int) -> None:
    sequences = examples(23)
    config = TrainConfig(
        per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, num_train_epochs=1
    )
    shares = [
        StepPlan(config, sequences, sequences, 0, capacity, Workers(rank, count)) for rank in range(count)
    ]
    seen = 0
    for number in range(shares[0].total_steps):
        steps = [plan.step(number) for plan in shares]
        batches = [list(step.batches) for step in steps]
        assert len({len(own) for own in batches}) == 1  # else a collective operation would wait for ever
        assert len({(step.trained, step.tokens) for step in steps}) == 1
        trained = sum(int((batch.targets != IGNORED).sum()) for own in batches for batch in own)
        assert trained == steps[0].trained
        seen += steps[0].trained
    assert seen == trained_tokens(sequences)
    evaluated = [batch for plan in shares for batch in plan.evaluation_step().batches]
    assert sum(int((batch.targets != IGNORED).sum()) for batch in evaluated) == seen


class Walked(list[Encoded]):
    """A list that counts how often it is gone through."""

    walks = 0

    def __iter__(self) -> Iterator[Encoded]:
        self.walks += 1
        return super().__iter__()


@pytest.mark.parametrize("capacity", [0, 60])
def test_a_step_does_not_go_through_the_whole_data_set(capacity: int) -> None:
    sequences, evaluation = Walked(examples(23)), Walked(examples(5, seed=2))
    plan = StepPlan(TrainConfig(per_device_train_batch_size=2), sequences, evaluation, 0, capacity)
    walks = sequences.walks, evaluation.walks
    for _ in range(2):
        assert list(plan.step(0).batches) and list(plan.evaluation_step().batches)
    assert (sequences.walks, evaluation.walks) == walks


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    rows = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(14)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        base=str(tiny_base(tmp_path / "base")),
        data=(str(tmp_path / "d.jsonl"),),
        out=tmp_path / "padded",
        learning_rate=5e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=6,
        eval_split=0.2,
        packing=False,
        max_length=120,
    )


def test_a_packed_run_is_the_padded_run(config: TrainConfig, tmp_path: Path) -> None:
    """Packing changes the speed of training and nothing else: same steps, same losses."""
    packed = dataclasses.replace(config, packing=True, packing_length=150, out=tmp_path / "packed")
    results = [train(config), train(packed)]
    padded, laid = (read_metrics(result.folder / "metrics.jsonl") for result in results)
    assert [row["step"] for row in laid] == [row["step"] for row in padded]
    for one, other in zip(laid, padded, strict=True):
        for key in {"loss", "eval_loss", "grad_norm"} & set(one):
            assert one[key] == pytest.approx(other[key], rel=2e-3), (one["step"], key)
    assert any("float32, packed to 150 tokens" in note and "adamw_torch" in note for note in results[1].notes)


def test_what_cannot_be_packed_is_said(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, packing=True, method="prompt"))
    assert any(
        "padded" in note and "a trained prompt goes before each example" in note for note in result.notes
    )


@pytest.mark.parametrize(
    ("fields", "at"),
    [
        ({"packing_length": 64, "max_length": 120}, "--packing-length"),
        ({"fsdp": True, "method": "full"}, "--fsdp"),
        ({"fsdp": True, "device_map": "auto"}, "--fsdp"),
        ({"fsdp": True}, "--fsdp"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], at: str, config: TrainConfig) -> None:
    with pytest.raises(UsageError) as caught:
        train(dataclasses.replace(config, **fields))
    assert caught.value.at == at
    assert config.out is not None and not config.out.exists()


def test_float16_skips_a_step_that_overflows(config: TrainConfig) -> None:
    """The loss scaling begins high: steps whose gradient is infinite are skipped until it fits."""
    result = train(dataclasses.replace(config, dtype="float16", eval_split=0.0, max_steps=12))
    assert result.loss < result.records[0]["loss"]
