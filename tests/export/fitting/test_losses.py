"""What types are predicted to cost: against autograd of a whole model, and against the true KL."""

from __future__ import annotations

import json
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tuned_models import MODULES, tuned_adapter, tuned_base, tuned_config

from lorafold.export import arch
from lorafold.export.fitting.losses import Losses
from lorafold.export.fitting.model import MeasuredModel
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.inputs import Inputs, open_inputs
from lorafold.export.proof.sample import AskedChat

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KINDS = [Type.Q4_0, Type.Q8_0]
CHATS = [AskedChat([5, 9, 20, 33, 40, 41], 2), AskedChat([7, 8, 90, 12], 1)]
PLACES = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "granite": {  # it scales what its output head gives
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "logits_scaling": 0.25,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def inputs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Inputs:
    folder = tmp_path_factory.mktemp("losses")
    adapter = tuned_adapter(folder / "adapter", MODULES, 5e-3)
    base = tuned_base(folder / "base")
    config = json.loads((base / "config.json").read_text()) | FAMILIES[request.param]
    (base / "config.json").write_text(json.dumps(config))
    return open_inputs(tuned_config(adapter, base, folder / "out"))


@pytest.fixture(scope="module")
def whole(inputs: Inputs) -> Any:
    """transformers' own model with the fold's weights."""
    config = transformers.AutoConfig.from_pretrained(inputs.base.folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, info in inputs.source.tensors.items():
            values = torch.from_numpy(inputs.source.rows(name, 0, info.rows))
            own[name].copy_(values.reshape(own[name].shape))
    return model


def predicted(inputs: Inputs) -> dict[str, dict[Type, float]]:
    tensors = {tensor.name: tensor for tensor in arch.map_tensors(inputs.config, inputs.source.tensors)}
    kinds: dict[str, tuple[MappedTensor, list[Type]]] = {
        name: (tensor, KINDS) for name, tensor in tensors.items() if len(tensor.shape) == 2
    }
    measured = MeasuredModel(inputs)
    losses = Losses(kinds, inputs.source, measured.exact, len(CHATS))
    tokens = measured.gradients(CHATS, losses.watch)
    assert tokens == len(PLACES)
    return losses.found(tokens)


def test_they_are_the_squares_of_autograd_and_gguf_py(inputs: Inputs, whole: Any) -> None:
    """½ · Σ over rows and conversations of ⟨gradient, error⟩², for each token; errors as gguf-py rounds."""
    found = predicted(inputs)
    longest = max(len(chat.ids) for chat in CHATS)
    ids = torch.tensor([chat.ids + [0] * (longest - len(chat.ids)) for chat in CHATS])
    said = torch.log_softmax(whole(input_ids=ids).logits, -1)
    asked = torch.stack([said[row, place] for row, place in PLACES])
    dice = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(asked.detach().exp(), 1, generator=dice)[:, 0]
    for tensor, parameter in (
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
        (
            "blk.0.attn_q.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ),  # its rows are permuted in the file
    ):
        weights = dict(whole.named_parameters())[parameter]
        values = weights.detach().numpy()
        for kind in KINDS:
            rounded = gguf.dequantize(gguf.quantize(values, kind), kind).reshape(values.shape)
            squares = 0.0
            for row in range(len(CHATS)):
                mine = [number for number, place in enumerate(PLACES) if place[0] == row]
                total = asked[mine, drawn[mine]].sum()
                (gradient,) = torch.autograd.grad(total, weights, retain_graph=True)
                parts = (gradient.numpy().astype(np.float64) * (rounded - values)).sum(1)
                squares += float(np.square(parts).sum())
            assert found[tensor][kind] == pytest.approx(squares / 2 / len(PLACES), rel=2e-3), (tensor, kind)


def test_embedding_and_tied_head_count_both(inputs: Inputs) -> None:
    found = predicted(inputs)
    assert set(found["token_embd.weight"]) == set(KINDS)
    assert found["token_embd.weight"][Type.Q4_0] > found["token_embd.weight"][Type.Q8_0] > 0


def test_chats_are_told_apart_by_what_they_are(inputs: Inputs) -> None:
    """Not by an address, which the next list may have as well."""
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    model = [(tensor, Type.Q4_0 if len(tensor.shape) == 2 else Type.F32) for tensor in tensors]
    asked = MeasuredModel(inputs)
    held: list[Any] = []
    first = CHATS[:1]
    address = id(first)
    asked.distance(model, first)
    del first
    while id(second := CHATS[1:]) != address and len(held) < 10_000:
        held.append(second)
    assert asked.distance(model, second) == MeasuredModel(inputs).distance(model, CHATS[1:])


@pytest.mark.parametrize("inputs", ["llama"], indirect=True)
def test_a_part_of_the_rows_tells_about_all(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = predicted(inputs)
    monkeypatch.setattr("lorafold.export.fitting.losses._WEIGHTS", 1 << 14)  # a quarter of most tensors
    sampled = predicted(inputs)
    names = [name for name in exact if "blk" in name]
    totals = [sum(each[name][Type.Q4_0] for name in names) for each in (exact, sampled)]
    assert sampled != exact and 0.5 < totals[1] / totals[0] < 2
