"""Layers whose weights come into two rooms in turn compute what whole ones do.

Several workers do so in `test_workers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base

from lorafold.chat.tokenizer import Encoded
from lorafold.train.config import TrainConfig
from lorafold.train.fast.check import Measured, measure
from lorafold.train.fast.forward import Forward
from lorafold.train.fast.sharded import ShardedLayers, choose_sharing
from lorafold.train.tokens.collate import make_batch
from lorafold.train.workers import Workers

CPU = torch.device("cpu")
SEQUENCES = [Encoded([3 + i, 7, 11 * i + 1, 5, 9], [False, False, True, True, True]) for i in range(4)]
BATCH = make_batch(SEQUENCES, 0)


@pytest.fixture(scope="module", autouse=True)
def _one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone: all of a layer is its part, and the rooms are shared all the same."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model(folder: Path, layers: int, **lora: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_base(folder, family="Qwen2", num_hidden_layers=layers) if not folder.exists() else folder
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM", **lora
    )
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)


def sharded(folder: Path, layers: int, **lora: Any) -> Any:
    found = model(folder, layers, **lora)
    ShardedLayers(found.get_base_model().base_model, Workers(), CPU)
    return found


def measured(of: Any) -> Measured:
    return measure(Forward(of, CPU), BATCH)


def equal(one: Measured, other: Measured) -> None:
    assert one.loss == other.loss
    assert torch.equal(one.gradient, other.gradient)


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_loss_and_gradient_are_the_same(
    layers: int, checkpointing: bool, lora: dict[str, Any], tmp_path: Path
) -> None:
    whole, parts = model(tmp_path / "base", layers, **lora), sharded(tmp_path / "base", layers, **lora)
    if checkpointing:
        parts.get_base_model().gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    for _ in range(2):  # the second pass finds the rooms as the first has left them
        equal(measured(parts), measured(whole))
    with torch.no_grad():  # a pass that does not turn leaves them otherwise
        assert torch.equal(parts(BATCH.input_ids).logits, whole(BATCH.input_ids).logits)
    equal(measured(parts), measured(whole))


def test_an_adapter_on_the_last_layers_only(tmp_path: Path) -> None:
    lora = {"layers_to_transform": [3, 4]}
    equal(measured(sharded(tmp_path / "base", 5, **lora)), measured(model(tmp_path / "base", 5, **lora)))


def test_two_rooms_are_all_that_is_held(tmp_path: Path) -> None:
    parts = sharded(tmp_path / "base", 6)
    layers = parts.get_base_model().base_model.layers
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in layers.parameters()
        if not value.requires_grad
    }
    one = sum(value.nbytes for value in layers[0].parameters() if not value.requires_grad)
    assert len(held) == 2 and sum(held.values()) < 2.1 * one


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_packed_weights(bits: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = tiny_base(tmp_path / "base", family="Qwen2", num_hidden_layers=3)
    settings = BitsAndBytesConfig(**{bits: True})
    # In evaluation mode bitsandbytes would pack 4-bit weights for the CPU, in places of their own.
    whole, parts = (
        AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, device_map="cpu").train()
        for _ in range(2)
    )
    ShardedLayers(parts.requires_grad_(False).base_model, Workers(), CPU)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(parts(BATCH.input_ids).logits, whole(BATCH.input_ids).logits)
    layers = [each for each in parts.base_model.layers.modules() if isinstance(each, torch.nn.Linear)]
    # An 8-bit layer computes with what its state shows, a 4-bit one with its weight.
    read = [each.state.CB if hasattr(each, "state") else each.weight for each in layers]
    assert len({weight.untyped_storage().data_ptr() for weight in read}) == 2


@pytest.mark.parametrize(
    ("fields", "needed", "shared"),
    [
        ({}, 9, False),
        ({}, 11, True),
        ({"fsdp": False}, 30, False),
        ({"fsdp": True}, 1, True),
        ({"method": "full"}, 30, False),
        ({"device_map": "auto"}, 30, False),
    ],
    ids=str,
)
def test_weights_that_would_take_half_of_a_gpu_are_shared(
    fields: dict[str, Any], needed: int, shared: bool
) -> None:
    found, why = choose_sharing(TrainConfig(**fields), needed << 30, 20 << 30, 2)
    assert found is shared and f"{needed}.0 of 20.0 GiB" in why
    assert ("--no-fsdp" if shared else "--fsdp") in why
