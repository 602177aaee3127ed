"""Conversations asked in rounds: what is left out is said, and more time asks more, with the same figures."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.export import ExportConfig
from lorafold.export.inputs import open_inputs
from lorafold.export.outputs.gguf import plan_gguf_output
from lorafold.export.proof import llama
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import runner, vocabulary
from lorafold.export.proof.logits import Effort, WrittenModel, check_logits
from lorafold.export.proof.reference.answers import LayeredReference
from lorafold.export.proof.sample import ANSWER_TOKENS
from lorafold.libraries.causal_lm import load_causal_lm
from lorafold.progress import silent

pytest.importorskip("torch")
pytest.importorskip("peft")

QUESTIONS = [[{"role": "user", "content": "Who are you" + "?" * number}] for number in range(6)]


def checks(tmp_path: Path, **effort: Any) -> dict[str, Check]:
    """The checks of the answers of one small export."""
    config = ExportConfig(str(tiny_chat.adapter()), out=tmp_path / "out", quant=("Q8_0",), name="tiny")
    inputs = open_inputs(config)
    output = plan_gguf_output(inputs, config)
    folder = tmp_path / "written"
    if not folder.exists():
        folder.mkdir()
        output.write(folder, silent)
    (file,) = output.plan.files
    models = [WrittenModel(file.recipe, folder / file.name, file.tensors)]
    tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
    found = check_logits(models, inputs, tokenizer, QUESTIONS, effort=Effort(**effort))
    return {check.name: check for check in found}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFOLD_CACHE", str(tmp_path / "cache"))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    found = checks(tmp_path, tokens=1)
    assert found["logits tiny-Q8_0.gguf"].figures["chats"] == 3, "as few as say something"
    assert found["sample"].verdict == "note"
    assert found["sample"].meaning.startswith("3 of 6 held-out chats were asked")
    assert "--proof-minutes asks more" in found["sample"].meaning


def test_more_time_asks_round_after_round(tmp_path: Path) -> None:
    """Rounds of three give what one round of six gives."""
    rounds, whole = checks(tmp_path, tokens=1, minutes=10), checks(tmp_path)
    assert "sample" not in rounds and "sample" not in whole
    few, all_ = rounds["logits tiny-Q8_0.gguf"].figures, whole["logits tiny-Q8_0.gguf"].figures
    assert few["chats"] == all_["chats"] == 6 and few["tokens"] == all_["tokens"]
    for name in ("mean KL", "99th percentile KL", "mean KL of the type itself", "KL of the adapter"):
        assert few[name] == pytest.approx(all_[name], rel=0.02), name
    low, high = all_["mean KL, 95% interval"]
    assert low < all_["mean KL"] < high
    assert all_["median KL"] < all_["99th percentile KL"] <= all_["largest KL"]
    assert len(all_["KL by position"]) == 32


def test_greedy_answers_are_those_of_peft_and_llama_cpp(tmp_path: Path) -> None:
    """Both models answer by themselves, token by token; where they part is what the check says."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    found = checks(tmp_path)["logits tiny-Q8_0.gguf"]
    (path,) = (tmp_path / "written").glob("*.gguf")
    adapter = peft.PeftConfig.from_pretrained(tiny_chat.adapter())
    base = load_causal_lm(Path(adapter.base_model_name_or_path), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tiny_chat.adapter()).eval()
    tokenizer = ChatTokenizer.from_folder(tiny_chat.folder())
    parted = []
    with runner(path, 512) as judge, vocabulary(path) as words, torch.inference_mode():
        for question, said in zip(QUESTIONS, found.figures["greedy answers"], strict=True):
            prompt = tokenizer.encode_chat(question, add_generation_prompt=True).ids
            theirs, _ = judge.answer(prompt, ANSWER_TOKENS, frozenset(tokenizer.eos_ids))
            ours = list[int]()
            while len(ours) < len(theirs):
                logits = model(input_ids=torch.tensor([prompt + ours])).logits[0, -1]
                ours.append(int(logits.argmax()))
            same = next(
                (at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None
            )
            assert said["tokens"] == (len(theirs) if same is None else same)
            assert said["both say"] == words.text(theirs[: said["tokens"]])
            assert said["the reference goes on"] == (None if same is None else words.text([ours[same]]))
            assert said["the file goes on"] == (None if same is None else words.text([theirs[same]]))
            parted += [] if same is None else [same]
    assert found.figures["chats that part"] == len(parted)
    assert found.figures["earliest differing token"] == (min(parted) + 1 if parted else None)
    assert ("no greedy answer of 6 differs" in found.meaning) == (not parted)


def test_a_file_of_which_little_is_in_memory_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks(tmp_path)
    (path,) = (tmp_path / "written").glob("*.gguf")
    said = []
    for most in (0, mmap.PAGESIZE):
        monkeypatch.setattr(llama, "_MOST_MAPPED", most)
        with runner(path, 128) as judge:
            said.append([judge.answer(list(range(first, first + 9)), 16, frozenset()) for first in range(3)])
    assert all(
        one[0] == other[0] and np.array_equal(one[1], other[1]) for one, other in zip(*said, strict=True)
    )


def test_no_time_is_no_second_round(tmp_path: Path) -> None:
    found = checks(tmp_path, tokens=1, minutes=1e-9)
    assert found["logits tiny-Q8_0.gguf"].figures["chats"] == 3


def test_the_whole_model_with_peft_beside_it_says_the_same(tmp_path: Path) -> None:
    layers, peft = checks(tmp_path, way="layers"), checks(tmp_path, way="peft")
    assert "reference" not in layers and "reference" not in peft
    name = "logits tiny-Q8_0.gguf"
    assert layers[name].verdict == peft[name].verdict == "passed"
    for figure in ("mean KL", "KL of the adapter", "perplexity of the reference"):
        assert layers[name].figures[figure] == pytest.approx(peft[name].figures[figure], rel=1e-3)


def test_what_cannot_be_imported_ahead_of_time_is_told_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may refuse config.json there; a thread's end is nothing that a user should see."""

    def refused(inputs: object) -> None:
        raise OSError(5, "Input/output error", "config.json")

    unhandled: list[object] = []
    monkeypatch.setattr("threading.excepthook", unhandled.append)
    monkeypatch.setattr(LayeredReference, "prepare", staticmethod(refused))
    assert checks(tmp_path)["logits tiny-Q8_0.gguf"].verdict == "passed"
    assert not unhandled
