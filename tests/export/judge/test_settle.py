"""Which of two bases `--fold-into auto` takes: measured, by a hand computation, and what stops it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from adapter_folders import PREFIX, adapter_folder
from gguf import GGMLQuantizationType as Type
from packed_folders import bnb_model
from safetensors.numpy import load_file, save_file
from tuned_models import HIDDEN, LAYERS, SHAPES, tuned_base, tuned_config, with_long_system

from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.inputs import Inputs, open_inputs
from lorafold.export.judge.choice import BaseChoice, BaseDistances
from lorafold.export.judge.measure import conversations
from lorafold.export.judge.settle import settle_base
from lorafold.export.proof.measured import PerToken
from lorafold.models import fingerprint

torch = pytest.importorskip("torch")

GRID = {"quant": ("Q4_0",), "tensor_type": ("token_embd=Q8_0",)}
"""Types that gguf-py can make too; those of the layers have the packed base's grid."""
SIGNS = np.random.default_rng(3).choice([-1, 1], HIDDEN).astype(np.float32)
CARD = "---\nbase_model: org/plain\nbase_model_relation: quantized\n---\n"


def gptq_copy(plain: Path, folder: Path) -> Path:
    """A base in GPTQ whose numbers are just those of Q4_0: both have 16 steps for 32 weights of a row."""
    shutil.copytree(plain, folder)
    tensors: dict[str, Any] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if weight.ndim != 2 or "embed" in name:
            tensors[name] = weight
            continue
        rows, cols = weight.shape
        blocks = gguf.quantize(weight, Type.Q4_0).reshape(rows, cols // 32, 18)
        scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]  # (rows, groups)
        codes = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], -1).reshape(rows, cols)
        places = (4 * np.arange(8, dtype=np.uint32))[:, None]  # eight inputs in one number
        packed = (codes.T.reshape(cols // 8, 8, rows).astype(np.uint32) << places).sum(1, dtype=np.uint32)
        part = name.removesuffix(".weight")
        tensors |= {
            f"{part}.qweight": np.ascontiguousarray(packed).view(np.int32),
            f"{part}.qzeros": np.full((cols // 32, rows // 8), 0x77777777, np.int32),
            f"{part}.scales": np.ascontiguousarray(scales.T),
        }
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(CARD)
    return folder


def plain_base(folder: Path) -> Path:
    """A base in which one direction is in every token, as in trained models."""
    tensors = load_file(tuned_base(folder) / "model.safetensors")
    tensors["model.embed_tokens.weight"] += 0.06 * SIGNS
    save_file(tensors, folder / "model.safetensors")
    return folder


def an_adapter(folder: Path, base: Path | str) -> Path:
    """An adapter that is felt in that direction, and changes each weight by a sixth of a step of the grid."""
    dice = np.random.default_rng(5)
    tensors = {}
    for layer in range(LAYERS):
        for module in ("mlp.up_proj", "mlp.gate_proj", "self_attn.v_proj", "self_attn.q_proj"):
            name = f"{PREFIX}model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = SIGNS[None].copy()
            column = 1e-3 * dice.choice([-1, 1], (SHAPES[module][0], 1))
            tensors[f"{name}.lora_B.weight"] = column.astype(np.float32)
    targets = ["up_proj", "gate_proj", "v_proj", "q_proj"]
    return adapter_folder(
        folder, tensors, r=1, lora_alpha=1, target_modules=targets, base_model_name_or_path=str(base)
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `org/plain`, its packed copy, and an adapter on that; the card's name is found in it."""
    monkeypatch.chdir(tmp_path)
    gptq_copy(plain_base(tmp_path / "org/plain"), tmp_path / "packed")
    an_adapter(tmp_path / "adapter", tmp_path / "packed")
    return tmp_path


def settings(here: Path, **changes: Any) -> ExportConfig:
    config = tuned_config(here / "adapter", here / "packed", here / "out", verify=True)
    return replace(config, **changes)


def settled(config: ExportConfig) -> tuple[Inputs, BaseChoice]:
    inputs, after, choice = settle_base(open_inputs(config), config)
    assert choice is not None and inputs.notes.count(choice.note) == 1
    assert choice.taken == inputs.base.id
    assert after.fold_into == (
        "quantized" if choice.taken == str(inputs.base.folder.parent / "packed") else "original"
    )
    return inputs, choice


def measured(choice: BaseChoice) -> BaseDistances:
    assert isinstance(choice.found, BaseDistances), choice.found
    return choice.found


def log_probabilities(weights: dict[str, Any], base: Path, chats: Any, adapter: Path | None = None) -> Any:
    """What transformers says at the answers' tokens, with PEFT's adapter beside the weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        logits = [model(torch.tensor([each.ids])).logits[0, each.start - 1 : -1] for each in chats]
    return torch.log_softmax(torch.cat(logits).double(), -1).numpy()


def there_and_back(weights: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merged weights as gguf-py rounds them to the types of `GRID`."""
    rounded = dict(weights)
    for name, value in weights.items():
        if value.ndim == 2:
            kind = Type.Q8_0 if "embed" in name else Type.Q4_0
            rounded[name] = gguf.dequantize(gguf.quantize(value + change.get(name, 0), kind), kind)
    return rounded


@pytest.mark.slow
def test_the_figures_are_those_of_a_hand_computation(here: Path) -> None:
    config = settings(here, **GRID)
    _, choice = settled(config)
    plain = load_file(here / "org/plain/model.safetensors")
    packed = {
        name: gguf.dequantize(gguf.quantize(value, Type.Q4_0), Type.Q4_0)
        if value.ndim == 2 and "embed" not in name
        else value
        for name, value in plain.items()
    }
    factors = load_file(here / "adapter/adapter_model.safetensors")
    change = {
        name.removeprefix(PREFIX).replace("lora_B.", ""): factors[name] @ factors[name.replace("_B", "_A")]
        for name in factors
        if "lora_B" in name
    }
    chats = conversations(open_inputs(config), config)[0]
    exact = log_probabilities(packed, here / "org/plain", chats, here / "adapter")
    by_hand = []
    for weights in (packed, plain):
        got = log_probabilities(there_and_back(weights, change), here / "org/plain", chats)
        by_hand.append(float((np.exp(exact) * (exact - got)).sum(-1).mean()))
    found = measured(choice)
    assert [found.trained.mean, found.other.mean] == pytest.approx(by_hand, rel=0.01)
    assert choice.taken == str(here / "org/plain")


@pytest.mark.slow
def test_the_original_is_taken_where_the_grid_wipes_the_adapter_out(here: Path) -> None:
    """The whole command: the files are of the original, and `verify` measures nothing again."""
    made_on = {"fingerprint": fingerprint(here / "packed"), "spec": str(here / "packed")}
    manifest = {"kind": "adapter", "lorafold": "0", "files": {}, "base": made_on}
    (here / "adapter/lorafold.json").write_text(json.dumps(manifest))
    result = export(settings(here, quant=("Q8_0", "Q4_K_M"), base=None, report=True))
    told = json.loads((here / "out/lorafold.json").read_text())
    choice = told["choice of the base"]
    assert choice["taken"] == told["base"]["id"] == choice["other"] == str(here / "org/plain")
    assert choice["type"] == "Q4_K_M, the smallest of the types"
    near, far = (choice["mean KL"][choice[name]] for name in ("other", "trained on"))
    assert near < far / 2
    (note,) = [note for note in result.notes if "was trained on" in note]
    assert f"{far:.4f} nats away from what was trained and the latter {near:.4f}, which is better by" in note
    assert f"({choice['tokens']} tokens of {choice['chats']})" in note
    page = (here / "out/report.html").read_text()
    assert "<h2>Which base</h2>" in page and f"Taken: {here / 'org/plain'}" in page
    checks = {check.name: check.verdict for check in verify(here / "out").checks}
    assert checks["tensors m-Q4_K_M.gguf"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"quant": ("Q8_0",)}, {"format": "folder", "quant": ()}], ids=["Q8_0", "folder"]
)
def test_the_packed_base_is_taken_where_the_type_is_finer_than_its_grid(
    here: Path, changes: dict[str, Any]
) -> None:
    _, choice = settled(settings(here, **changes))
    found = measured(choice)
    assert choice.taken == choice.trained == str(here / "packed")
    assert found.type == ("BF16 and F32" if "format" in changes else "Q8_0")
    assert found.trained.mean < 1e-4 < found.other.mean
    assert "which is worse by" in choice.note


@pytest.mark.slow
def test_against_bitsandbytes_and_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is transformers' model in NF4, as bitsandbytes computes it, with PEFT's adapter."""
    pytest.importorskip("bitsandbytes", reason="the base is packed with it")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    plain = shutil.copytree(tiny_chat.folder(), tmp_path / "org/plain")
    base = shutil.copytree(bnb_model("nf4"), tmp_path / "packed")
    (base / "README.md").write_text(CARD)
    config = ExportConfig(str(tiny_chat.adapter()), out=tmp_path / "out", base=str(base), quant=("F16",))
    _, choice = settled(config)
    found = measured(choice)
    assert choice.taken == str(base) and found.trained.mean < 1e-5
    chats = conversations(open_inputs(config), config)[0]
    answers = []
    for folder in (base, plain):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
        tuned = PeftModel.from_pretrained(model, tiny_chat.adapter())
        with torch.no_grad():
            logits = [tuned(torch.tensor([each.ids])).logits[0, each.start - 1 : -1] for each in chats]
        answers.append(torch.log_softmax(torch.cat(logits).double(), -1))
    exact, got = answers
    by_hand = float((exact.exp() * (exact - got)).sum(-1).mean())
    assert found.other.mean == pytest.approx(by_hand, rel=0.02)


@pytest.mark.slow
def test_an_adapter_of_the_original_is_held_against_that(here: Path) -> None:
    """A packed base that is given by --base is not what was trained on, if the adapter names the original."""
    an_adapter(here / "other", "org/plain")
    config = tuned_config(here / "other", here / "packed", here / "out", quant="Q8_0", verify=True)
    _, choice = settled(config)
    assert choice.taken == choice.trained == str(here / "org/plain")
    assert measured(choice).trained.mean < 1e-4


@pytest.mark.slow
def test_equal_bases_and_the_time_that_is_given(here: Path) -> None:
    """The original is the packed base unpacked: neither is better, however long one asks."""
    tensors = load_file(here / "org/plain/model.safetensors")
    source = open_inputs(settings(here)).source.base
    unpacked = {
        name: source.rows(name, 0, info.rows).reshape(info.shape) for name, info in source.tensors.items()
    }
    save_file(tensors | unpacked, here / "org/plain/model.safetensors")
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{n} and {n}?"},
                {"role": "assistant", "content": "x" * 40},
            ]
        }
        for n in range(60)
    ]
    (here / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = []
    for minutes in (0.0, 5.0):
        config = settings(here, quant="Q4_K_M", chats=here / "chats.jsonl", proof_minutes=minutes)
        _, choice = settled(config)
        found = measured(choice)
        assert found.better == "" and choice.taken == choice.trained
        assert found.trained.mean == found.other.mean and "no difference for sure" in choice.note
        asked.append(len(found.apart.values))
    assert 6 <= asked[0] < asked[1] == 60


def test_without_a_proof_nothing_is_measured(here: Path) -> None:
    _, choice = settled(settings(here, verify=False))
    assert choice.found == "--no-verify leaves out what is measured on answers"
    assert choice.taken == str(here / "packed")
    assert f"{here / 'org/plain'} is on this disk too; it is folded into {here / 'packed'}" in choice.note


def test_a_plan_says_that_it_will_be_measured(here: Path) -> None:
    told = plan_export(settings(here, quant=("F16",), modelfile=False))
    notes = [text for label, text in told if label == "note"]
    assert any(
        "the export measures both and takes the better one, this plan is of " in note for note in notes
    )


def test_a_plan_without_a_proof_does_not_say_so(here: Path) -> None:
    config = settings(here, verify=False)
    _, after, choice = settle_base(open_inputs(config), config, planned=True)
    assert choice is not None and after.fold_into == "quantized"
    assert "the two were not compared: --no-verify" in choice.note


def test_an_original_with_another_tokenizer_is_not_compared(here: Path) -> None:
    path = here / "org/plain/tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    data["model"]["vocab"] = dict(zip(vocabulary, [*list(vocabulary.values())[1:], 0], strict=True))
    path.write_text(json.dumps(data))
    _, choice = settled(settings(here))
    assert choice.taken == str(here / "packed")
    assert choice.found == "their tokenizers make other tokens of a text"
    path.unlink()
    _, choice = settled(settings(here))
    assert choice.found == f"{here / 'org/plain'} has no tokenizer that can be read"


def test_a_plan_knows_what_the_export_cannot_measure(here: Path) -> None:
    """Types that need a matrix of --imatrix-data, and an original that is not whole."""
    (here / "text.txt").write_text("a lamp on a rock\n" * 100)
    config = settings(here, quant=("Q4_0", "IQ2_XXS"), imatrix_data=here / "text.txt")
    for planned in (True, False):
        _, _, choice = settle_base(open_inputs(config), config, planned=planned)
        assert choice is not None
        assert choice.found == "the importance matrix that IQ2_XXS needs is only collected afterwards"
    (here / "org/plain/model.safetensors").unlink()
    told = plan_export(settings(here, quant=("F16",), modelfile=False))
    (note,) = [text for label, text in told if label == "note" and "was trained on" in text]
    assert "the two were not compared: no " in note


def test_whose_chats_were_asked_is_said(here: Path) -> None:
    lines = [{"prompt": f"number {n}", "completion": "yes"} for n in range(3)]
    (here / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = settings(here)
    assert conversations(open_inputs(config), config)[1] == "chats (general chats, --chats takes your own)"
    config = settings(here, chats=here / "chats.jsonl")
    assert conversations(open_inputs(config), config)[1] == "chats (held-out ones and general chats)"


@pytest.mark.slow
def test_a_template_s_long_system_prompt(here: Path) -> None:
    """Such prompts leave room for one conversation in a round, and six are asked all the same."""
    for base in ("org/plain", "packed"):
        with_long_system(here / base)
    _, choice = settled(settings(here, **GRID))
    assert choice.taken == str(here / "org/plain")
    assert len(measured(choice).apart.values) >= 6


def test_an_original_of_other_sizes_is_not_compared(here: Path) -> None:
    """As with tokens that were added to the packed copy."""
    shutil.rmtree(here / "org/plain")
    plain = plain_base(here / "org/plain")
    tensors = load_file(plain / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-3].copy()
    save_file(tensors, plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 3}))
    _, choice = settled(settings(here))
    assert choice.taken == str(here / "packed")
    assert (
        f"model.embed_tokens.weight is (259, {HIDDEN}) in {here / 'packed'} and (256, {HIDDEN}) in "
        in choice.note
    )
    assert choice.as_json()["not measured"].endswith("so they are not one model")


def test_an_original_that_is_not_whole_is_not_compared(here: Path) -> None:
    (here / "org/plain/model.safetensors").unlink()
    _, choice = settled(settings(here))
    assert choice.taken == str(here / "packed")
    assert "the two were not compared: no " in choice.note


@pytest.mark.parametrize(
    "changes",
    [{"fold_into": "quantized"}, {"format": "adapter", "quant": ()}, {"source": "packed", "base": None}],
)
def test_where_there_is_nothing_to_choose(here: Path, changes: dict[str, Any]) -> None:
    config = settings(here, **changes)
    inputs = open_inputs(config)
    assert settle_base(inputs, config) == (inputs, config, None)


def test_with_one_at_hand_the_note_says_which_and_what_it_may_cost(here: Path) -> None:
    shutil.rmtree(here / "org")
    inputs = open_inputs(settings(here))
    assert settle_base(inputs, settings(here))[2] is None
    (note,) = [note for note in inputs.notes if "unpacked weights" in note]
    assert "a 4-bit type may round the adapter's changes away" in note and "with --base org/plain" in note


def test_a_difference_within_its_uncertainty_is_none() -> None:
    values = list(np.random.default_rng(0).random((8, 20)))
    shifted = [each + (0.1, -0.1)[number % 2] for number, each in enumerate(values)]
    alike = BaseDistances(PerToken(values), PerToken(shifted), "", "")
    assert alike.better == ""
    assert (
        BaseDistances(PerToken(values), PerToken([each - 0.05 for each in values]), "", "").better == "other"
    )
    assert (
        BaseDistances(PerToken(values), PerToken([each + 0.05 for each in values]), "", "").better
        == "trained"
    )
    few = values[:5]
    assert BaseDistances(PerToken(few), PerToken([each - 0.05 for each in few]), "", "").better == ""
