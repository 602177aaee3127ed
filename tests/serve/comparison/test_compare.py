"""Comparisons: every kind of question file, every output, and going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat
from model_servers import part, refused, server, streamed

from lorafold.errors import InputError, UsageError
from lorafold.serve import CompareConfig, CompareResult, compare
from lorafold.serve.comparison.report import agreement, as_html, as_markdown, page
from lorafold.serve.lens import look_through
from lorafold.serve.rows import QuestionRow


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
    assert str(result).startswith("compared") and "two | <b>" in str(result)
    assert "<b>" not in result._repr_html_() and str(outs[0]) in result._repr_html_()
    assert all(answer.tokens <= 6 for row in result.rows for answer in row.answers)
    assert "\n## 2. two \\| &lt;b&gt;\n\n**A " in outs[0].read_text()
    lines = [json.loads(line) for line in outs[1].read_text().splitlines()]
    assert [len(card["sha256"]) for card in lines[0]["models"]] == [64, 64]
    assert lines[1]["answers"][1]["kl"] > 0 and len(lines[1]["answers"][1]["lens"]) > 0
    html = outs[2].read_text()
    assert (
        "https://" not in html and "http://www.w3.org/2000/svg" in html and "<b>" not in html.split("DATA")[1]
    )
    assert told[-1][:3] == ("compare", 3, 3)
    assert not list(tmp_path.glob(".*.journal"))


def test_a_printed_result_shows_the_beginning_of_each_text() -> None:
    """Also of one without spaces, as Chinese is written; no control character of it reaches the terminal."""
    asked = ["灯塔" * 200, "\x1b[31mred\x07\n  two"]
    rows = [QuestionRow(question, [], None, []) for question in asked]
    said = str(CompareResult([], rows, {}, "q.txt", 1.0, 0, [])).splitlines()
    assert said[1] == "question  " + "灯塔" * 149 + "灯…"
    assert said[0].endswith("2 questions in 1.0 s")
    alone = str(CompareResult([], rows[:1], {}, "q.txt", 1.0, 0, []))
    assert alone.startswith("compared  1 question in 1.0 s\n")
    assert said[2].endswith("two") and "\x1b" not in said[2] and "\x07" not in said[2]


def test_seeds_repeat(questions: Path) -> None:
    warm: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "lens": False}
    first = compare(config([], questions, seed=1, **warm)).table
    assert compare(config([], questions, seed=1, **warm)).table == first
    assert compare(config([], questions, seed=2, **warm)).table != first


def interrupt(settings: CompareConfig, asked: int) -> str:
    """Interrupt a comparison after so many questions; returns what the exception says."""

    def stop(step: str, done: float, total: float | None, note: str = "") -> None:
        if step == "compare" and done == asked:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        compare(settings, stop)
    return str(caught.value)


def test_an_interrupted_comparison_goes_on(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    said = interrupt(config([out], questions), 2)
    assert said == "2 of 3 questions asked; the same command goes on at question 3"
    (journal,) = tmp_path.glob(".*.journal")
    with open(journal, "a") as file:
        file.write('{"question": "cut sho')  # as a power loss may leave it
    assert not out.exists()
    result = compare(config([out], questions))
    assert result.resumed == 2 and len(result.rows) == 3 and not journal.exists()
    whole = compare(config([], questions))
    assert [row.answers[0].text for row in result.rows] == [row.answers[0].text for row in whole.rows]


@pytest.mark.parametrize(
    "other", [{"seed": 9}, {"chat_template": "other.jinja"}, {"context": 128}, {"lens": False}], ids=str
)
def test_a_journal_of_other_settings_is_not_gone_on_with(
    other: dict[str, Any], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    out = tmp_path / "r.jsonl"
    interrupt(config([out], questions), 1)
    assert compare(config([out], questions, **other)).resumed == 0


def test_a_changed_template_is_another_one(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, template = tmp_path / "r.jsonl", Path("my.jinja")
    for said, resumed in (("Q", 1), ("another ", 0)):
        template.write_text("Q{% for m in messages %}{{ m.content }}{% endfor %}")
        interrupt(config([out], questions, chat_template="my.jinja", force=True), 1)
        template.write_text(said + "{% for m in messages %}{{ m.content }}{% endfor %}")
        assert compare(config([out], questions, chat_template="my.jinja", force=True)).resumed == resumed


def test_questions_that_failed_are_asked_again(questions: Path, tmp_path: Path) -> None:
    """A server that is down for the second question, and up again when the comparison goes on."""
    out, down = tmp_path / "r.jsonl", {"two | <b>"}
    asked: list[str] = []
    fine = streamed([part("fine"), part(None, "stop"), b"[DONE]"], sse=True)

    def reply(handler: Any, body: Any) -> None:
        asked.append(body["messages"][-1]["content"])
        (refused(500, {"error": "broken"}) if asked[-1] in down else fine)(handler, body)

    models = {"/v1/models": {"object": "list", "data": [{"id": "m"}]}}
    with server(models, {"/v1/chat/completions": reply}) as (url, _):
        settings = CompareConfig(
            models=(url, str(tiny_chat.gguf())), prompts=questions, out=(out,), threads=1
        )
        settings = replace(settings, max_tokens=4)
        said = interrupt(settings, 2)
        assert said == (
            "2 of 3 questions asked; "
            "the same command goes on at question 3 and asks 1 question that failed again"
        )
        asked.clear()
        result = compare(settings)
        assert set(asked) == {"two | <b>", "three"} and [failure.count for failure in result.failures] == [1]
        assert result.notes[-1] == "with --force the same command asks 1 question that failed again"
        down.clear()
        asked.clear()
        result = compare(replace(settings, force=True))
    assert asked == ["two | <b>"] and not list(tmp_path.glob(".*.journal"))
    assert result.resumed == 2 and result.failures == []
    assert [row.question for row in result.rows] == ["one", "two | <b>", "three"]
    assert [row.answers[0].text for row in result.rows] == ["fine"] * 3
    assert "4 answers taken over from an earlier run; 1 question that failed asked again" in result.notes


@pytest.mark.parametrize("line", ["{", "[1]", '{"number": 1}', '{"number": 1, "row": {"answers": [3]}}'])
def test_a_damaged_journal_counts_up_to_the_damage(line: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    interrupt(config([out], questions), 1)
    with open(tmp_path / ".r.jsonl.journal", "a") as file:
        file.write(line + "\n")
    assert compare(config([out], questions)).resumed == 1


@pytest.mark.parametrize("fault", ["missing model", "at the first question"])
def test_a_failed_start_leaves_nothing(fault: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "r.html"
    settings = config([out], questions)
    if fault == "missing model":
        with pytest.raises(InputError, match="no such file"):
            compare(replace(settings, models=("none.gguf",)))
    else:
        assert interrupt(settings, 0) == ""
    assert list(tmp_path.iterdir()) == [questions]
    interrupt(settings, 1)
    assert [path.name for path in out.parent.iterdir()] == [".r.html.journal"]


def test_outputs_that_must_not_be(questions: Path, tmp_path: Path) -> None:
    for out, said in ((tmp_path / "r.pdf", "unknown format"), (questions, "unknown format")):
        with pytest.raises(UsageError, match=said):
            compare(config([out], questions))
    with pytest.raises(UsageError, match="a part of the path is a file"):
        compare(config([tmp_path / "r.html", questions / "r.md"], questions))
    (tmp_path / "r.md").write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        compare(config([tmp_path / "r.md"], questions))
    assert (tmp_path / "r.md").read_text() == "mine"
    compare(config([tmp_path / "r.md"], questions, force=True))
    assert "one" in (tmp_path / "r.md").read_text()


def test_one_failing_model_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 400}) + "\n" + json.dumps({"prompt": "short"}) + "\n")
    result = compare(config([], path, context=128))
    rows = result.rows
    assert "shorten it" in rows[0].answers[0].error and rows[0].answers[0].text == ""
    assert rows[1].answers[0].tokens > 0
    assert re.match(r"\(failed: the message has .* shorten it", result.table[0][1])
    assert [(failure.count, failure.asked, failure.whole) for failure in result.failures] == [
        (1, 2, False),
        (1, 2, False),
    ]
    # A failure is no disagreement: it stays out of the means.
    data = json.loads(as_html(result).split("const DATA = ")[1].split(";\n")[0])
    assert data["rows"][0]["agreement"] == [None, None] and data["rows"][1]["agreement"][0] == 1


def test_messages_that_did_not_fit_are_told(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    turns = [{"role": role, "content": "x" * 60} for role in ("user", "assistant") * 6]
    path.write_text(json.dumps({"messages": [*turns, {"role": "user", "content": "last"}]}) + "\nshort\n")
    path.write_text(path.read_text().replace("short", '"short"'))
    result = compare(config([], path, context=400))
    long, short = (row.answers[0] for row in result.rows)
    assert long.dropped > 0 and short.dropped == 0
    told = f"({long.dropped} earlier messages left out: the context was full)"
    assert told in result.table[0][1] and as_markdown(result).count(told) == 2
    assert "left out" not in result.table[1][1]


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


def saying(text: str, questions: Path) -> CompareResult:
    """A comparison in which the first answer is a text."""
    result = compare(config([], questions, limit=1, lens=False))
    row = result.rows[0]
    first = dataclasses.replace(row.answers[0], text=text)
    return dataclasses.replace(result, rows=[dataclasses.replace(row, answers=[first, *row.answers[1:]])])


def test_markdown_shows_control_characters(questions: Path) -> None:
    text = as_markdown(saying("a\x1b[2Jb\nc\u202ed", questions))
    assert "a␛\\[2Jb<br>c&lt;U+202E&gt;d" in text


def test_markdown_shows_markup_as_it_was_written(questions: Path) -> None:
    text = as_markdown(saying("&lt; & <br> *a* ![x](y)", questions))
    assert "&amp;lt; &amp; &lt;br&gt; \\*a\\* !\\[x\\](y)" in text
