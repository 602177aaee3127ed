"""The model computed layer by layer against transformers' own way to load and run it as a whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat
from gguf import GGMLQuantizationType as Type
from peft_models import resized_adapter
from tiny_base import tiny_base, tiny_tokenizer
from tiny_families import FAMILIES, RESAVED, tiny_family

from lorafold.export import ExportConfig
from lorafold.export.inputs import open_inputs
from lorafold.export.outputs.gguf import plan_gguf_output
from lorafold.export.proof.measured import Answers
from lorafold.export.proof.reference import blank
from lorafold.export.proof.reference.answers import LayeredReference, WholeReference
from lorafold.export.proof.reference.layers import LayeredModel
from lorafold.export.proof.reference.rounding import rounded_activations
from lorafold.export.proof.sample import AskedChat
from lorafold.libraries.causal_lm import load_causal_lm
from lorafold.probabilities import log_softmax
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

DELTA = ("qwen3-next", "qwen35")  # delta nets, whose sums in another order differ more
QUICK = ("llama-tied", "qwen2-untied")


def conversations(vocabulary: int, seed: int = 0) -> list[AskedChat]:
    """Three of different lengths, so that two are filled up."""
    dice = np.random.default_rng(seed)
    return [
        AskedChat(dice.integers(3, vocabulary, length).tolist(), start)
        for length, start in ((9, 4), (21, 15), (14, 1))
    ]


def as_a_whole(folder: Path, asked: list[AskedChat]) -> Answers:
    model = load_causal_lm(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([each.ids])).logits[0] for each in asked]
    return [
        log_softmax(found[each.start - 1 : -1].numpy()) for found, each in zip(logits, asked, strict=True)
    ]


def told(family: str, folder: Path) -> tuple[dict[str, Any], Checkpoint, list[AskedChat], Answers]:
    """A tiny model of a family, what it is asked, and what transformers answers."""
    tiny_family(family, folder)
    config = json.loads((folder / "config.json").read_text())
    asked = conversations(config.get("text_config", config)["vocab_size"])
    return config, Checkpoint.open(folder), asked, as_a_whole(folder, asked)


def largest_difference(ours: Answers, theirs: Answers) -> float:
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("family", QUICK)
def test_a_gpu_computes_the_same(family: str, tmp_path: Path) -> None:
    config, source, asked, wanted = told(family, tmp_path / family)
    (ours,) = LayeredModel(config, source.tensors, "cuda").answers(source, asked, wanted[0].shape[1])
    assert largest_difference(ours, wanted) < 1e-4


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
        for family in (*FAMILIES, *RESAVED)
    ],
)
def test_layers_are_the_whole_model(family: str, tmp_path: Path) -> None:
    """Every family: stacked and fused experts, shared keys, per-layer inputs, state spaces, soft caps."""
    config, source, asked, wanted = told(family, tmp_path / family)
    model = LayeredModel(config, source.tensors)
    (ours,) = model.answers(source, asked, wanted[0].shape[1])
    assert largest_difference(ours, wanted) < (1e-4 if family.startswith(DELTA) else 2e-5)
    # What is read at once is a part of it: no gate holds two layers.
    layers = [set(re.findall(r"\.(?:layers|h)\.(\d+)\.", " ".join(gate.names))) for gate in model.gates]
    assert all(len(within) <= 1 for within in layers) and len(set().union(*layers)) > 1
    assert all(parameter.is_meta for parameter in model.blank.model.parameters()), "nothing stays"


@pytest.mark.parametrize("family", ["llama-tied", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_layers_that_are_too_large_come_in_parts(family: str, tmp_path: Path) -> None:
    config, source, asked, wanted = told(family, tmp_path / family)
    model = LayeredModel(config, source.tensors, at_once=1)
    (ours,) = model.answers(source, asked, wanted[0].shape[1])
    assert largest_difference(ours, wanted) < 1e-5
    whole = LayeredModel(config, source.tensors)
    assert model.largest < whole.largest and len(model.gates) > len(whole.gates)


def test_what_a_type_leaves_is_the_same_in_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's weights are transposed in a file, so that their rounding needs whole columns."""
    transformers = pytest.importorskip("transformers")
    shape = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": None, "eos_token_id": None}
    settings = transformers.GPT2Config(**shape, **ends, vocab_size=tiny_tokenizer(tmp_path / "model"))
    transformers.GPT2LMHeadModel(settings).save_pretrained(tmp_path / "model")
    config = ExportConfig(str(tmp_path / "model"), out=tmp_path / "out", quant=("Q8_0",))
    inputs = open_inputs(config)
    (file,) = plan_gguf_output(inputs, config).plan.files
    width = int(inputs.config["vocab_size"])
    asked = conversations(width)
    found = []
    for block in (1, 1 << 19):
        monkeypatch.setattr(blank, "_BLOCK", block)
        reference = LayeredReference(inputs, width, None)
        tuned, _ = reference.answers(asked)
        found.append((tuned, reference.rounded(file.tensors, asked, tuned)))
    (few, one), (many, other) = found
    assert largest_difference(few, many) == 0.0
    assert one.weights_only is not None and other.weights_only is not None
    assert largest_difference(one.weights_only, other.weights_only) == 0.0
    assert largest_difference(one.weights_only, few) > 1e-4, "rounding does something"


def test_a_model_with_a_tensor_missing_is_refused(tmp_path: Path) -> None:
    """transformers itself would go on with random numbers."""
    folder = tiny_family("llama-tied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    source = Checkpoint.open(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    source.tensors = {key: info for key, info in source.tensors.items() if key != name}
    model = LayeredModel(config, source.tensors)
    with pytest.raises(ValueError, match=f"no tensor of the checkpoint becomes {name}"):
        model.answers(source, conversations(config["vocab_size"]), 10)


def both_ways(config: ExportConfig, vocabulary: int) -> tuple[Any, Any, Any, list[AskedChat]]:
    """The two references of an export, its files' tensors, and what is asked."""
    inputs = open_inputs(config)
    output = plan_gguf_output(inputs, config)
    asked = conversations(vocabulary)
    ways = [way(inputs, vocabulary, None) for way in (LayeredReference, WholeReference)]
    return (*ways, [file.tensors for file in output.plan.files], asked)


@pytest.mark.parametrize("method", ["lora", pytest.param("ia3", marks=pytest.mark.slow)])
def test_the_fold_in_layers_is_peft_beside_the_base(method: str, tmp_path: Path) -> None:
    """Base + adapter, the base alone, and both rounded as two files are."""
    config = ExportConfig(str(tiny_chat.adapter(method)), out=tmp_path / "out", quant=("Q8_0", "F16", "F32"))
    layered, whole, files, asked = both_ways(config, 259)
    ours, theirs = layered.answers(asked), whole.answers(asked)
    for mine, its in zip(ours, theirs, strict=True):
        assert largest_difference(mine, its) < 5e-5
    assert largest_difference(ours[0], ours[1]) > 0.01, "the adapter does something"
    for tensors in files:
        mine, its = layered.rounded(tensors, asked, ours[0]), whole.rounded(tensors, asked, theirs[0])
        assert mine.missing == its.missing == 0.0
        assert (mine.weights_only is None) == (its.weights_only is None)
        if mine.weights_only is not None:
            # With (IA)³ PEFT scales the rounding error of the base too; a file holds the rounded product.
            bound = 2e-4 if method == "lora" else 0.1
            assert largest_difference(mine.weights_only, its.weights_only) < bound
            assert largest_difference(mine.weights_only, ours[0]) > 1e-4, "rounding does something"
            assert 1e-5 < largest_difference(mine.weights_only, mine.both) < 1.0
            # A number on the border of a rounding may fall on the other side.
            assert np.mean([np.abs(a - b).mean() for a, b in zip(mine.both, its.both, strict=True)]) < 0.05


def test_tokens_that_the_adapter_adds(tmp_path: Path) -> None:
    """The base alone gets rows for them too, and an untied head its own."""
    adapter = resized_adapter(tmp_path / "adapter", tiny_chat.folder())
    layered, whole, _, asked = both_ways(ExportConfig(str(adapter), out=tmp_path / "out"), 264)
    asked[0].ids[2] = 262
    for mine, its in zip(layered.answers(asked), whole.answers(asked), strict=True):
        assert mine[0].shape[1] == 264 and largest_difference(mine, its) < 5e-5


def test_a_tied_head_rounds_its_input_too(tmp_path: Path) -> None:
    """The head has no tensor of its own, so its type is that of the embedding."""
    base = tiny_base(tmp_path / "base", tie_word_embeddings=True)
    config = ExportConfig(str(base), out=tmp_path / "out", quant=("Q8_0",))
    layered, _, (tensors,), asked = both_ways(config, 259)
    entered: list[Any] = []
    head = layered._model.blank.model.get_output_embeddings()
    head.register_forward_hook(lambda module, arguments, result: entered.append(arguments[0]))
    tuned, _ = layered.answers(asked)
    layered.rounded(tensors, asked, tuned)
    plain, doubled = entered
    assert len(doubled) == 2 * len(plain) == 6
    # What is rounded already stays as it is.
    assert torch.equal(rounded_activations(doubled[3:], Type.Q8_0), doubled[3:])
    assert not torch.equal(rounded_activations(doubled[:3], Type.Q8_0), doubled[:3])
