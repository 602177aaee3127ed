"""The fast way of training on a CUDA GPU against the plain one: kernels, layers, packing, whole runs."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_run import Kill, die_at, same_files, steady

from lorafold.chat.tokenizer import Encoded
from lorafold.train import TrainConfig, train
from lorafold.train.fast.attention import VARLEN
from lorafold.train.fast.check import Measured, difference, measure
from lorafold.train.fast.forward import Forward, seed_pass
from lorafold.train.saved.curve import read_metrics
from lorafold.train.tokens.collate import IGNORED, make_batch
from lorafold.train.tokens.packing import make_pack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

SIZES = ((1, 64, 8), (333, 200, 8), (1000, 1536, 16), (257, 8960, 64), (64, 96, 1), (130, 512, 100))


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    draw = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw, device="cuda").to(dtype)


def seed_of(number: int) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.int32, device="cuda")


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


def test_an_evaluation_holds_its_logits_once_and_in_16_bit() -> None:
    from lorafold.train.fast.head_loss import head_loss

    head = torch.nn.Linear(256, 100_000, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden, targets = random(1, 300, 256), torch.randint(100_000, (1, 300))
    wanted = torch.nn.functional.cross_entropy(head(hidden[0]).double(), targets[0].cuda(), reduction="sum")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        found = head_loss(hidden, head, targets)
    assert torch.cuda.max_memory_allocated() - before < 1.2 * 300 * 100_000 * 2
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def examples(count: int = 12, vocabulary: int = 200) -> list[Encoded]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 70, (), generator=draw))
        ids = torch.randint(vocabulary, (length,), generator=draw).tolist()
        found.append(Encoded(ids, [index >= length // 2 for index in range(length)]))
    return found


def adapted(folder: Path, dtype: torch.dtype, attention: str = "sdpa", **lora: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    torch.manual_seed(0)
    settings = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    return get_peft_model(model.cuda(), settings)


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


def test_rows_of_a_table_in_the_cpus_memory(tmp_path: Path) -> None:
    """The embedding that was moved out gives the same rows, also to `generate`, and its memory is free."""
    from transformers import AutoModelForCausalLM

    from lorafold.train.fast.embedding_kernels import move_out

    folder = tiny_base(tmp_path / "base", hidden_size=1100 // 4 * 4, head_dim=64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    ids = torch.randint(200, (3, 17), device="cuda")
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.get_input_embeddings()(ids).detach()
    answer = model.generate(ids, **settings)
    assert not move_out(model), "weights that are trained stay"
    model.requires_grad_(False)
    held = torch.cuda.memory_allocated()
    assert move_out(model) and not move_out(model)
    assert torch.cuda.memory_allocated() <= held - 200 * 1100 * 2
    assert torch.equal(model.get_input_embeddings()(ids), wanted)
    assert model.device.type == "cuda" and torch.equal(model.generate(ids, **settings), answer)


def test_a_tied_embedding_is_not_moved_out(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from lorafold.train.fast.embedding_kernels import move_out

    folder = tiny_base(tmp_path / "base", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder).cuda().requires_grad_(False)
    assert not move_out(model)


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


ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 9) + str(i)} for i in range(24)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.1},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "lora_dropout": 0.1},
        {"gradient_checkpointing": True, "method": "qlora"},
        {"method": "qlora"},
        {"method": "dora"},
        {"method": "full"},
        {"method": "prompt"},
        {"modules_to_save": ("lm_head",)},
        {"dtype": "float16"},
        {"use_liger_kernel": False},
        {"cuda_graphs": False},
        {"torch_compile": True},
    ],
    ids=str,
)
def test_a_whole_run_follows_the_plain_one(options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family="Qwen2", hidden_size=128, intermediate_size=256)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plain = {"packing": False, "use_liger_kernel": False, "fused_kernels": False, "torch_compile": False}
    curves = []
    for name, more in (("fast", {"packing_length": 1024}), ("plain", plain)):
        fields: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 20, **options, **more}
        fields |= {"gradient_accumulation_steps": 2, "eval_split": 0.2}
        config = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / name, **fields)
        result = train(config)
        assert not any("capture failed" in note for note in result.notes), result.notes
        curves.append([row["loss"] for row in read_metrics(result.folder / "metrics.jsonl") if "loss" in row])
    fast, slow = torch.tensor(curves)
    assert (fast - slow).abs().mean() < 0.05 and fast[-1] < fast[0]


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_models_that_keep_examples_apart_are_packed(family: str, tmp_path: Path) -> None:
    """No leak is seen where there is none, in 16 bit and by the kernels that a GPU chooses."""
    base = tiny_base(tmp_path / "base", family=family, hidden_size=128, head_dim=64)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = train(TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "out", max_steps=2))
    assert any("packed to" in note for note in result.notes), result.notes


def test_delta_nets_are_packed(tmp_path: Path) -> None:
    """By our own rule or by kernels that are installed; the losses are those of one example a row."""
    shape: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 64}
    shape |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64}
    shape |= {"linear_value_head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "hidden_size": 128}
    shape |= {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    base = tiny_base(tmp_path / "base", family="Qwen3Next", **shape)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "packed", max_steps=4)
    packed = train(config)
    assert any("packed to" in note and "begin with each" in note for note in packed.notes), packed.notes
    rows = train(dataclasses.replace(config, packing=False, out=tmp_path / "rows"))
    assert packed.loss == pytest.approx(rows.loss, rel=2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "method": "qlora"},
        {"gradient_checkpointing": True, "method": "qlora", "optim": "paged_adamw_32bit"},
        {"cuda_graphs": False},
    ],
    ids=str,
)
def test_a_run_goes_on_bitwise(options: dict[str, Any], tmp_path: Path) -> None:
    """Killed at step 9 of 16 and gone on: the steps that were replayed are launched and captured again."""
    base = tiny_base(tmp_path / "base", family="Qwen2", hidden_size=128, intermediate_size=256)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fields: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 16, "save_steps": 4, "lora_dropout": 0.1}
    fields |= {"gradient_accumulation_steps": 2, **options}
    whole = TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "whole", **fields)
    parted = dataclasses.replace(whole, out=tmp_path / "parted")
    done = train(whole)
    with pytest.raises(Kill):
        train(parted, die_at(9))
    resumed = train(dataclasses.replace(parted, resume=True))
    assert "resumed at step 8" in resumed.notes
    assert steady(resumed.folder) == steady(done.folder)
    assert same_files(done.folder, resumed.folder, ("adapter_model.safetensors",))


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


def test_what_goes_of_a_loaded_model_is_given_back() -> None:
    """A table in the middle of the weights: torch holds no more than what stays, but for a page of 20 MiB."""
    code = """
import torch
from lorafold.train.fast.allocator import growing_segments
with growing_segments(rounded=False):
    whole = torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
    del whole
    parts = [torch.empty(size << 20, dtype=torch.uint8, device="cuda") for size in (100, 200, 100)]
del parts[1]
torch.cuda.empty_cache()
print(torch.cuda.memory_reserved() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 260


def test_torch_leaves_the_last_of_the_gpu_to_cuda() -> None:
    """Memory that torch holds and does not use is given back at its limit, before the GPU is full."""
    code = """
import torch
from lorafold.train.fast.allocator import free_bytes, spare_some
torch.zeros(1, device="cuda")
device = torch.device("cuda", 0)
spare_some(device)
block = torch.empty(free_bytes(device) - (512 << 20), dtype=torch.uint8, device="cuda")
size = block.numel() + (256 << 20)
del block
block = torch.empty(size, dtype=torch.uint8, device="cuda")
try:
    torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print(torch.cuda.mem_get_info()[0] >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 256


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "33 36"), ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "34 34")]
)
def test_blocks_are_rounded_for_the_next_pack(own: dict[str, str], expected: str) -> None:
    """33 MiB of weights take 33, later ones 36, in eighths of 32; 34 both if a user has said how."""
    code = """
import torch
from lorafold.train.fast.allocator import growing_segments
with growing_segments(rounded=False):
    before = torch.empty(33 << 20, dtype=torch.uint8, device="cuda")
    weights = torch.cuda.memory_allocated()
block = torch.empty(33 << 20, dtype=torch.uint8, device="cuda")
print(weights >> 20, torch.cuda.memory_allocated() - weights >> 20)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"


def test_ignored_positions_cost_nothing(tmp_path: Path) -> None:
    """A worker without work trains on a batch that counts nothing: its loss and gradient are zero."""
    from lorafold.train.fast.fused_lora import fuse

    model = adapted(tiny_base(tmp_path / "base"), torch.bfloat16)
    fuse(model)
    batch = make_pack(examples(2))
    batch.targets.fill_(IGNORED)
    found = measure(Forward(model, torch.device("cuda"), direct=True), batch)
    assert found.loss == 0 and not found.gradient.any()
