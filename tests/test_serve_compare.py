"""Comparisons: every kind of question file, every output, and going on after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from lorafold.errors import InputError, UsageError
from lorafold.serve import CompareConfig, CompareResult, compare
from lorafold.serve.lens import look_through
from lorafold.serve.prompts import read_prompts
from lorafold.serve.report import agreement, as_markdown, page


def config(out: Sequence[Path], prompts: Path, **options: Any) -> CompareConfig:
    models = (str(tiny_chat.gguf()), str(tiny_chat.gguf(1)))
    return CompareConfig(models=models, prompts=prompts, out=tuple(out), max_tokens=6, threads=1, **options)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "q.txt"
    path.write_text("one\n\ntwo | <b>\nthree\n", encoding="utf-8")
    return path


def test_all_outputs(questions: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "r.md", tmp_path / "r.jsonl", tmp_path / "r.html"]
    told = []
    result = compare(config(outs, questions), lambda *step: told.append(step))
    assert isinstance(result, CompareResult) and result.saved == outs
    assert [row[0] for row in result.table] == ["one", "two | <b>", "three"]
    assert all(answer["tokens"] <= 6 for row in result.rows for answer in row["answers"])
    table = outs[0].read_text().split("\n")
    assert table[0].count("|") == 4 and "two \\| &lt;b&gt;" in table[3]
    lines = [json.loads(line) for line in outs[1].read_text().splitlines()]
    assert [len(card["sha256"]) for card in lines[0]["models"]] == [64, 64]
    assert lines[1]["answers"][1]["kl"] > 0 and len(lines[1]["answers"][1]["lens"]) > 0
    html = outs[2].read_text()
    assert (
        "https://" not in html and "http://www.w3.org/2000/svg" in html and "<b>" not in html.split("DATA")[1]
    )
    assert told[-1][:3] == ("compare", 3, 3)
    assert not list(tmp_path.glob(".*.journal"))


def test_seeds_repeat(questions: Path) -> None:
    warm: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "lens": False}
    first = compare(config([], questions, seed=1, **warm)).table
    assert compare(config([], questions, seed=1, **warm)).table == first
    assert compare(config([], questions, seed=2, **warm)).table != first


def test_an_interrupted_comparison_goes_on(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"

    def stop(step: str, done: float, total: float | None, note: str = "") -> None:
        if step == "compare" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(config([out], questions), stop)
    (journal,) = tmp_path.glob(".*.journal")
    with open(journal, "a") as file:
        file.write('{"question": "cut sho')  # as a power loss may leave it
    assert not out.exists()
    result = compare(config([out], questions))
    assert result.resumed == 2 and len(result.rows) == 3 and not journal.exists()
    whole = compare(config([], questions))
    assert [row["answers"][0]["text"] for row in result.rows] == [
        row["answers"][0]["text"] for row in whole.rows
    ]


def test_a_journal_of_other_settings_is_not_gone_on_with(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"

    def stop(step: str, done: float, total: float | None, note: str = "") -> None:
        if step == "compare" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(config([out], questions), stop)
    assert compare(config([out], questions, seed=9)).resumed == 0


def test_outputs_that_must_not_be(questions: Path, tmp_path: Path) -> None:
    for out, said in ((tmp_path / "r.pdf", "unknown format"), (questions, "unknown format")):
        with pytest.raises(UsageError, match=said):
            compare(config([out], questions))
    (tmp_path / "r.md").write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        compare(config([tmp_path / "r.md"], questions))
    assert (tmp_path / "r.md").read_text() == "mine"
    compare(config([tmp_path / "r.md"], questions, force=True))
    assert "one" in (tmp_path / "r.md").read_text()


def test_one_failing_model_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 400}) + "\n" + json.dumps({"prompt": "short"}) + "\n")
    rows = compare(config([], path, context=128)).rows
    assert "shorten it" in rows[0]["answers"][0]["error"] and rows[0]["answers"][0]["text"] == ""
    assert rows[1]["answers"][0]["tokens"] > 0


QUESTIONS = {
    "a.jsonl": '{"prompt": "one", "completion": "1"}\n\n{"question": "two"}\n',
    "b.jsonl": '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]}\n'
    '{"conversations": [{"from": "human", "value": "two"}]}\n',
    "c.json": '[{"instruction": "one", "input": "", "output": "1"}, "two"]',
    "d.csv": 'id,question,expected\n7,one,1\n8,"two",\n',
    "e.txt": "\ufeffone\r\n\r\ntwo\n",
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(QUESTIONS[name], encoding="utf-8", newline="")
    prompts = read_prompts(path, system="be kind")
    assert [prompt.question for prompt in prompts] == ["one", "two"]
    assert prompts[0].expected == (None if name == "e.txt" else "1")
    assert prompts[1].messages[0] == {"role": "system", "content": "be kind"}
    assert len(read_prompts(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", b"\n\n", "no question in it"),
        ("a.txt", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"colour": "x"}', "a.jsonl:1: no question"),
        ("a.jsonl", b"3", "expected an object, got int"),
        ("a.jsonl", b'{"messages": [{"role": "judge", "content": "x"}]}', "without a known role"),
        ("a.jsonl", b'{"messages": [{"role": "system", "content": "x"}]}', "no question at its end"),
        ("a.json", b"[", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.jsonl", b'{"messages":' + b"[" * 100_000, "a.jsonl:1: not JSON"),
        ("a.jsonl", b'{"prompt": "a\\ud800"}', "a.jsonl:1: half of a character"),
        ("a.csv", b"a,b\n1,2\n", "no column of questions among a, b"),
        ("a.csv", b'"prompt\nx', "a.csv:1: not CSV"),
    ],
)
def test_question_files_that_are_wrong(name: str, text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(InputError, match=said):
        read_prompts(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none")


@dataclass
class Fixed:
    """A scorer over letters with the same distribution at every place."""

    vocabulary: str
    alphabet: str
    weights: list[float]

    def tokenize(self, text: str) -> list[int]:
        return [self.alphabet.index(char) for char in text]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return [self.alphabet[token].encode() for token in ids]

    def log_probabilities(self, messages: Any, answer: Sequence[int]) -> Iterator[Any]:
        for _ in answer:
            yield np.log(np.array(self.weights, np.float32))


@dataclass
class Pairs(Fixed):
    """The same, but its tokens are two letters long."""

    def tokenize(self, text: str) -> list[int]:
        return [0] * (len(text) // 2)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return [b"ab" for _ in ids]


def test_the_lens_by_hand() -> None:
    own, other = Fixed("v", "ab", [0.5, 0.5]), Fixed("v", "ab", [0.9, 0.1])
    lens = look_through(own, other, [], "ab")
    assert [token.text for token in lens.tokens] == ["a", "b"]
    assert [token.ratio for token in lens.tokens] == pytest.approx([math.log(0.5 / 0.9), math.log(5)])
    assert lens.kl == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert look_through(own, own, [], "ab").kl == pytest.approx(0)
    assert look_through(own, other, [], "").tokens == []


def test_the_lens_joins_what_vocabularies_cut_differently() -> None:
    own, other = Fixed("v", "ab", [0.5, 0.5]), Pairs("w", "", [0.2, 0.8])
    lens = look_through(own, other, [], "abab")
    assert [token.text for token in lens.tokens] == ["ab", "ab"] and lens.kl is None
    assert lens.tokens[0].own == pytest.approx(2 * math.log(0.5))
    assert lens.tokens[0].other == pytest.approx(math.log(0.2))


def test_agreement_counts_words_in_order() -> None:
    assert agreement("a b c d", "a b x d") == 0.75  # difflib: 2 * 3 equal words / 8
    assert agreement("", "") == 1 and agreement("a", "b") == 0
    assert agreement("我是灯塔", "我在灯塔") == 0.75  # each character is a word


def test_no_text_can_leave_its_place() -> None:
    hostile = "</script><script>alert(1)</script><!-- \u2028"
    html = page({"models": [], "rows": [{"question": hostile}], "settings": {}, "prompts": ""})
    assert hostile not in html and html.count("</script>") == 1
    assert json.loads(html.split("const DATA = ")[1].split(";\n")[0])["rows"][0]["question"] == hostile


def test_markdown_shows_control_characters(questions: Path) -> None:
    result = compare(config([], questions, limit=1, lens=False))
    result.rows[0]["answers"][0]["text"] = "a\x1b[2Jb\nc\u202ed"
    text = as_markdown(result)
    assert "a␛\\[2Jb<br>c&lt;U+202E&gt;d" in text
