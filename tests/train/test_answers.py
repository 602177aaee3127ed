"""Sample answers at each evaluation: the likeliest tokens, kept, and no bit of the training changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_run import same_files, steady, tiny_run

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.records.layouts import Example
from lorafold.train import TrainConfig, train
from lorafold.train.model.answers import EMPTY, MOST_TOKENS, SampleAnswer, answer_all, choose_questions
from lorafold.train.saved.card import model_card


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


def test_answers_are_kept_and_change_no_bit_of_the_training(config: TrainConfig, tmp_path: Path) -> None:
    asked = dataclasses.replace(config, eval_split=0.2, eval_steps=3)  # 3 is no step with a checkpoint
    said: list[str] = []
    result = train(asked, say=said.append)
    rows = [row for row in steady(result.folder) if "samples" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]
    held_out = [json.loads(line) for line in (result.folder / "heldout.jsonl").read_text().splitlines()]
    for row in rows:
        for sample, chat in zip(row["samples"], held_out, strict=True):
            assert sample["question"] == chat["messages"][-2]["content"]
            assert sample["expected"] == chat["messages"][-1]["content"]
    assert sum("evaluation loss" in line and "→" in line for line in said) == 3
    shown = [text for label, text in result.lines() if label == "asked"]
    assert shown == [sample["question"] for sample in rows[-1]["samples"]]
    assert "## Sample answers" in (result.folder / "README.md").read_text()
    silent = train(dataclasses.replace(asked, out=tmp_path / "silent", sample_answers=0))
    assert not any("samples" in row for row in silent.records)
    assert same_files(result.folder, silent.folder, ("adapter_model.safetensors",))


def test_an_answer_is_the_likeliest_token_each_time(config: TrainConfig) -> None:
    """Against a loop without cache, padding or transformers' `generate`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    tokenizer = ChatTokenizer.from_folder(Path(config.base))
    examples = [
        Example(str(n), ({"role": "user", "content": text}, {"role": "assistant", "content": "yes"}))
        for n, text in enumerate(("Who?", "Where does the old keeper live in winter?"))
    ]
    questions = choose_questions([examples[0], *examples], tokenizer, 3, 1024)  # the copy is not asked
    assert [question.text for question in questions] == [e.messages[0]["content"] for e in examples]
    found = answer_all(model, tokenizer, questions)
    assert model.training
    model.eval()
    for question, answer in zip(questions, found, strict=True):
        ids = list(question.ids)
        for _ in range(MOST_TOKENS):
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in tokenizer.eos_ids:
                break
            ids.append(token)
        assert answer.answer == tokenizer.decode(ids[len(question.ids) :]).strip()


@pytest.mark.slow
def test_answers_compile_nothing(config: TrainConfig) -> None:
    """Layers that torch has compiled for training are not compiled once more for a cache that grows."""
    from torch._dynamo.utils import counters
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    tokenizer = ChatTokenizer.from_folder(Path(config.base))
    chat = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "yes"})
    questions = choose_questions([Example("0", chat)], tokenizer, 1, 1024)
    wanted = answer_all(model, tokenizer, questions)
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend="eager")
    before = counters["stats"]["unique_graphs"]
    assert answer_all(model, tokenizer, questions) == wanted
    assert counters["stats"]["unique_graphs"] == before
    model(input_ids=torch.tensor([questions[0].ids]))
    assert counters["stats"]["unique_graphs"] > before, "or nothing would have been seen"


def test_what_asks_nothing_is_left_out(config: TrainConfig) -> None:
    tokenizer = ChatTokenizer.from_folder(Path(config.base))
    chat = ({"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "yes"})
    examples = [Example("0", text="plain"), Example("1", chat[:1]), Example("2", chat)]
    assert len(choose_questions(examples, tokenizer, 3, 1024)) == 1
    assert choose_questions(examples, tokenizer, 3, 16) == ()
    assert choose_questions(examples, tokenizer, 0, 1024) == ()


def test_an_answer_cannot_change_the_card(config: TrainConfig) -> None:
    facts = {
        "base": {"id": "base"},
        "versions": {"lorafold": "1"},
        "data": {"examples": 3},
        "training": {"steps": 2, "loss": None, "eval_loss": None},
    }
    odd = "a | b\n<script>x</script> [y](z) \x1b[31m"
    row = {"question": odd, "answer": "", "expected": odd}
    card = model_card(config, facts, "t", curve=False, samples=[row])
    (line,) = [line for line in card.splitlines() if "script" in line]
    assert "<script" not in line.replace("\\<", "") and "\x1b" not in line
    assert line.replace("\\|", "").count("|") == 4 and "](" not in line


def test_an_empty_answer_is_said() -> None:
    assert SampleAnswer("Who?", "Silas", " ").line() == f"Who? → {EMPTY}"
