"""Models in which packed examples reach each other are not packed: each one is found, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_classes import drawn_example, write_tiny
from tiny_run import packed_run

from lorafold.train import TrainConfig, train
from lorafold.train.fast.check import leaks
from lorafold.train.fast.forward import Forward
from lorafold.train.fast.speed import choose
from lorafold.train.fast.state import stateful_layers
from lorafold.train.methods import METHODS
from lorafold.train.tokens.collate import make_batch
from lorafold.train.tokens.packing import make_pack

CPU = torch.device("cpu")
STATEFUL = {
    "Qwen3NextForCausalLM": "Qwen3NextGatedDeltaNet",
    "Qwen3_5ForCausalLM": "Qwen3_5GatedDeltaNet",
    "GraniteMoeHybridForCausalLM": "GraniteMoeHybridMambaLayer",
    "NemotronHForCausalLM": "NemotronHMamba2Mixer",
    "FalconH1ForCausalLM": "FalconH1Mixer",
    "Lfm2MoeForCausalLM": "Lfm2MoeShortConv",
    "MambaForCausalLM": "MambaMixer",
    "Mamba2ForCausalLM": "Mamba2Mixer",
    "RecurrentGemmaForCausalLM": "RecurrentGemmaRecurrentBlock",
}
# Told of the bounds they are packed (`test_delta_net.py`); here nobody tells them.
BOUNDED = ("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM")
# Masks without positions, so that attention does not know of examples; a state without a convolution.
BLIND = ("GptOssForCausalLM", "AfmoeForCausalLM", "MiniMaxForCausalLM")
STATELESS = ("LlamaForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel")


def _model(name: str, folder: Path) -> Any:
    import transformers

    write_tiny(name, folder, "float32")
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STATEFUL, *BLIND, *STATELESS])
def test_what_leaks_in_a_pack_is_not_packed(name: str, tmp_path: Path) -> None:
    """An example behind one of two others: its loss depends on which exactly if the model is not packed."""
    model = _model(name, tmp_path)
    forward = Forward(model, CPU, attention=model.config._attn_implementation)
    example, *others = (drawn_example(13, 1, True), drawn_example(9, 2, False), drawn_example(9, 3, False))
    with torch.no_grad():
        alone = float(forward.loss(make_batch([example], 0)))
        behind = [float(forward.loss(make_pack([other, example]))) for other in others]
        padded = float(forward.loss(make_batch([example, drawn_example(21, 4, False)], 0)))
    assert padded == pytest.approx(alone, rel=1e-5)  # a row each: nothing leaks, whatever the model
    leaking = max(abs(loss / alone - 1) for loss in behind) > 1e-5
    assert leaking == (name not in STATELESS), (alone, behind)
    assert leaks(forward, [others[0], example]) == leaks(forward, [example]) == leaking
    speed = choose(TrainConfig(packing=True), METHODS["lora"], model, CPU)
    apart = name in STATEFUL and name not in BOUNDED
    assert speed.packing == (not apart) and speed.bounded == (name in BOUNDED)
    assert any("one example a row" in reason for reason in speed.reasons) == speed.slowed == apart


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_the_layer_is_named(name: str, tmp_path: Path) -> None:
    assert [layer.__name__ for layer in stateful_layers(_model(name, tmp_path))] == [STATEFUL[name]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_a_run_says_that_it_is_not_packed(family: str, shape: dict[str, Any], tmp_path: Path) -> None:
    """Asked to pack, it trains as it does without, and says why."""
    base = tiny_base(tmp_path / "base", family=family, **shape)
    config = packed_run(tmp_path / "packed", base)
    packed = train(config)
    assert any("padded" in note and "one example a row" in note for note in packed.notes), packed.notes
    plain = train(replace(config, packing=False, out=tmp_path / "plain"))
    assert packed.loss == pytest.approx(plain.loss, rel=1e-5)
