"""The comparison page in a real browser, where one is installed: search, filters, votes, lens, themes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorafold.serve.comparison.report import page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOSTILE = "<img src=x onerror=alert(1)></script> \u202egnp.exe \x1b[2J"
pytestmark = pytest.mark.slow


def answer(text: str, tokens: int, shift: float, **more: Any) -> dict[str, Any]:
    words = [word if not i else f" {word}" for i, word in enumerate(text.split(" "))]
    lens = [[word, -0.5, -0.5 - shift * (i % 3)] for i, word in enumerate(words)]
    return {
        "text": text,
        "reason": "stop",
        "tokens": tokens,
        "seconds": 1.0,
        "tokens_per_second": tokens / 1.0,
        "dropped": 0,
        "kl": shift / 4,
        "lens": lens,
        **more,
    }


NOT_ASKED = {"text": "", "reason": "not asked", "tokens": 0, "seconds": 0.0}
PLAIN = answer("I am a model", 5, 0.4)


def row(question: str, first: Any, second: Any, share: float | None, **more: Any) -> dict[str, Any]:
    return {
        "question": question,
        "messages": [{"role": "user", "content": question}],
        "expected": None,
        "answers": [first, second],
        "agreement": [None if share is None else 1.0, share],
        **more,
    }


ROWS = [
    row("Who are you?", PLAIN, answer("I keep the lighthouse", 9, 3.0), 0.4, expected="a lamp"),
    row("What now?", PLAIN, answer("I am a model", 9, 3.0), 1.0),
    row(HOSTILE, PLAIN, answer(HOSTILE, 9, 3.0), 0.4),
]
# One was cut, one failed, one asked B alone (as `/only b` does), one had a long conversation before it.
SEVERAL = [
    row("cut", PLAIN, answer("I am a long story", 99, 0.2, reason="length"), 0.7),
    row("failed", PLAIN, answer("", 0, 0.0, reason="failed", error="no memory", kl=None, lens=[]), None),
    row("alone", NOT_ASKED, answer("nobody else", 4, 0.1), None),
    row("long", PLAIN, answer("yes", 2, 9.0, dropped=3), 0.1, vote=1),
]
SEVERAL[3]["messages"] = [
    {"role": "user", "content": "before"},
    {"role": "assistant", "content": "so"},
    *ROWS[0]["messages"],
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with its driver is installed")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = BROWSER
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    assert driver.get_log("browser") == []
    driver.quit()


def visit(browser: Any, folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Open a page of two models."""
    cards = [
        {"name": name, "source": name, "kind": "llama.cpp", "quantization": "Q8_0", "sha256": "ab" * 32}
        for name in ("base.gguf", "tuned.gguf")
    ]
    cards[1]["origin"] = {"made": "base + adapter", "checks": 9, "passed": 9}
    settings = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 0, "max_tokens": 64}
    path = folder / "report.html"
    made = {"prompts": "q.txt", "day": "2026-01-31", "lorafold": "1.2"}
    path.write_text(page({"models": cards, "rows": list(rows), "settings": settings, **made}))
    browser.get(path.as_uri())


def texts(browser: Any, selector: str) -> list[str]:
    return [node.text for node in browser.find_elements("css selector", selector)]


def click(browser: Any, selector: str, number: int = 0) -> None:
    browser.execute_script("arguments[0].click()", browser.find_elements("css selector", selector)[number])


def choose(browser: Any, menu: str, value: str) -> None:
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    browser.execute_script(script + "s.dispatchEvent(new Event('change'))", menu, value)


def look_for(browser: Any, text: str) -> None:
    script = "const s = document.getElementById('search'); s.value = arguments[0];"
    browser.execute_script(script + "s.dispatchEvent(new Event('input'))", text)


def questions(browser: Any) -> list[str]:
    return texts(browser, ".row .asked")


def waiting(browser: Any, script: str) -> None:
    """Wait until a script returns true: what an observer does comes with the next frame."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(script))


def test_the_page_works(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, ROWS)
    assert texts(browser, "h1") == ["base.gguf against tuned.gguf"]
    assert len(texts(browser, ".row")) == 3 and len(texts(browser, "#charts svg")) == 3
    assert not browser.find_elements("css selector", "img")  # hostile text stays text
    assert "<U+202E>gnp.exe ␛[2J" in texts(browser, ".row h3")[2]

    search = browser.find_element("id", "search")
    search.send_keys("lighthouse")
    assert len(texts(browser, ".row")) == 1 and texts(browser, "mark") == ["lighthouse"]
    search.send_keys("xyz")
    assert texts(browser, ".row") == [] and "No question fits" in texts(browser, "#rows")[0]
    look_for(browser, "")

    for value, count in (("same", 1), ("different", 2), ("voted", 0), ("all", 3)):
        choose(browser, "filter", value)
        assert len(texts(browser, ".row")) == count, value

    click(browser, ".votes button", 1)
    assert "1 won · 100%" in texts(browser, "#vote-chart")[0]
    assert texts(browser, ".answer.won .who") == ["B tuned.gguf"]

    colour = "return getComputedStyle(document.querySelectorAll('.answer')[1].querySelectorAll('.t')[2])"
    shown = browser.execute_script(colour + ".backgroundColor")
    click(browser, "#lens")
    assert browser.execute_script(colour + ".backgroundColor") != shown
    click(browser, "#lens")

    # The scrollbar and the menus follow the theme, whatever the system's own is.
    paper = "return getComputedStyle(document.body).backgroundColor"
    scheme = "return getComputedStyle(document.documentElement).colorScheme"
    before = browser.execute_script(paper)
    for name in ("dark", "light"):
        click(browser, "#theme")
        assert (browser.execute_script(paper) == before) == (name == "light")
        assert browser.execute_script(scheme) == name
    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.set_window_size(1200, 900)


def test_sorting_and_filters(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, SEVERAL)
    for order, first in (
        ("agreement", ["long", "cut", "failed", "alone"]),
        ("kl", ["long", "cut", "failed", "alone"]),
        ("length", ["cut", "failed", "long", "alone"]),
        ("order", ["cut", "failed", "alone", "long"]),
    ):
        choose(browser, "sort", order)
        assert questions(browser) == first, order
    for name, found in (
        ("cut", ["cut", "failed"]),
        ("voted", ["long"]),
        ("open", ["cut", "failed"]),  # nobody can vote where one model alone was asked
        ("different", ["cut", "long"]),
        ("same", []),
    ):
        choose(browser, "filter", name)
        assert questions(browser) == found, name
    assert "0 of 4" in texts(browser, "#count")


def test_who_was_not_asked_is_left_out(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, SEVERAL)
    row = browser.find_element("id", "q2")
    assert "not asked" in row.text and "\n0 tokens" not in row.text
    assert not row.find_elements("css selector", ".votes")
    tiles = texts(browser, ".tile")
    assert "40%\nwords in agreement" in tiles  # (70 + 10) / 2: a failure is no disagreement either
    assert "1\nquestions with a failure" in tiles
    assert "no two answers" in browser.execute_script(
        "return document.querySelectorAll('.bar title')[2].textContent"
    )


def test_messages_left_out_are_told(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, SEVERAL)
    assert [3 if "3 earlier messages left out" in fact else 0 for fact in texts(browser, ".facts")] == [
        0
    ] * 6 + [3]


def test_the_tooltip_says_probabilities(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    visit(browser, tmp_path, ROWS)
    token = browser.find_elements("css selector", "#q0 .answer:nth-child(2) .t")[2]
    ActionChains(browser).move_to_element(token).perform()
    assert texts(browser, "#tip") == ["61% likely to its own model, 0.2% to the other; log ratio 6.00"]
    ActionChains(browser).move_to_element(browser.find_element("id", "title")).perform()
    assert texts(browser, "#tip") == [""]


def test_votes_stay_and_belong_to_their_page(browser: Any, tmp_path: Path) -> None:
    won = "return [...document.querySelectorAll('.won')].map(node => node.closest('.row').id)"
    visit(browser, tmp_path, SEVERAL)
    assert browser.execute_script(won) == ["q3"]  # it came with the page
    click(browser, "#q0 .votes button")
    click(browser, "#q3 .votes button", 1)  # taken back
    assert browser.execute_script(won) == ["q0"]
    browser.refresh()
    assert browser.execute_script(won) == ["q0"] and "1 vote," in texts(browser, "#vote-chart")[0]
    choose(browser, "filter", "open")
    assert questions(browser) == ["failed", "long"]
    other = [{**SEVERAL[0], "question": "another"}, *SEVERAL[1:3], {**SEVERAL[3], "vote": None}]
    visit(browser, tmp_path, other)
    assert browser.execute_script(won) == []
    visit(browser, tmp_path, SEVERAL)
    assert browser.execute_script(won) == ["q0"]


def test_a_vote_changes_its_row_only(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, [*ROWS, SEVERAL[3]])
    browser.execute_script(
        "for (const node of document.querySelectorAll('.row, .row .t')) node.known = true;"
        "for (const node of document.querySelectorAll('details')) node.open = true"
    )
    button = browser.find_elements("css selector", "#q0 .votes button")[1]
    button.send_keys("\n")
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.switch_to.active_element == button
    button.send_keys("\n")
    assert button.get_attribute("aria-pressed") == "false"
    assert browser.execute_script(
        "return [...document.querySelectorAll('.row, .row .t')].every(n => n.known)"
    )
    look_for(browser, "a")
    choose(browser, "sort", "agreement")
    assert (
        browser.execute_script("return [...document.querySelectorAll('details')].map(n => n.open)")
        == [True] * 2
    )
    # A row that a vote takes out of the filter goes, and the keyboard is at the next one.
    look_for(browser, "")
    choose(browser, "sort", "order")
    choose(browser, "filter", "open")
    assert len(questions(browser)) == 3
    button.send_keys("\n")
    assert questions(browser)[0] == "What now?" and len(questions(browser)) == 2
    following = browser.find_elements("css selector", "#q1 .votes button")[1]
    assert browser.switch_to.active_element == following


def test_searching_keeps_the_lens(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, ROWS)
    tokens = len(texts(browser, "#q0 .t"))
    look_for(browser, "EP THE Light")
    assert questions(browser) == ["Who are you?"] and len(texts(browser, "#q0 .t")) == tokens
    marks = "return [...document.querySelectorAll('mark')].map(node => node.textContent).join('|')"
    assert browser.execute_script(marks) == "ep| |the| |light"  # through three tokens and the blanks between
    text = browser.find_elements("css selector", "#q0 .text")[1]
    assert text.get_attribute("textContent") == "I keep the lighthouse"
    for query, marked in ((".", ""), ("(", "(|("), ("]", ""), ("you?", "you?"), ("gnp.e", "gnp.e|gnp.e")):
        look_for(browser, query)
        assert browser.execute_script(marks) == marked or query == ".", query


def test_hundreds_of_questions(browser: Any, tmp_path: Path) -> None:
    """Rows far away are plain until somebody comes there."""
    many = [
        row(f"number {i} of many", PLAIN, answer("I keep the lighthouse " * 40, 9, 3.0), 0.4)
        for i in range(200)
    ]
    visit(browser, tmp_path, many)
    far = "return document.querySelectorAll('#q190 .t').length"
    assert browser.execute_script(far) == 0 and len(texts(browser, "#q0 .t")) > 100
    bars = browser.find_elements("css selector", ".bar")
    bars[190].click()
    waiting(browser, far + " > 100")
    top = "return document.getElementById('q190').getBoundingClientRect().top"
    before = browser.execute_script(top)
    assert 0 <= before < 300
    click(browser, "#q190 .votes button")
    assert abs(browser.execute_script(top) - before) < 2
    look_for(browser, "many")
    assert browser.execute_script("return document.querySelectorAll('.row').length") == 200
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('.row .asked mark').length") == 200


WRITTEN = (
    "# Title\n\nSome **bold** and *slanted* words, `a < b`, 2 * 3 * 4.\n\n- one\n- two\n\n1. first\n"
    "2. second\n\n```python\nprint('**x**')\n```\n<img src=x onerror=alert(1)> [link](javascript:alert(1))"
)


def test_markdown_is_shown_as_elements_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, [row("Markdown?", answer(WRITTEN, 9, 0.2), PLAIN, 0.1)])
    box = ".row .text"
    assert "**bold**" in texts(browser, box)[0] and "lens" in classes(browser)
    click(browser, "#markdown")
    shown = browser.find_elements("css selector", box)[0]
    tags = [node.tag_name for node in shown.find_elements("css selector", "*")]
    assert tags == ["h4", "p", "strong", "em", "code", "ul", "li", "li", "ol", "li", "li", "pre", "code", "p"]
    assert "2 * 3 * 4." in shown.text and "print('**x**')" in shown.text
    assert "<img src=x onerror=alert(1)> [link](javascript:alert(1))" in shown.text
    assert "lens" not in classes(browser)  # which colours the text as it was written
    look_for(browser, "second")
    assert texts(browser, f"{box} mark") == ["second"]
    look_for(browser, "")
    click(browser, "#lens")
    assert "**bold**" in texts(browser, box)[0] and "lens" in classes(browser)


def classes(browser: Any) -> str:
    return str(browser.find_element("id", "rows").get_attribute("class"))


def test_votes_of_several_people_are_counted(browser: Any, tmp_path: Path) -> None:
    visit(browser, tmp_path, [*ROWS, row("votes", PLAIN, PLAIN, 1.0)])  # a page of its own
    click(browser, ".votes button", 1)
    digest = browser.execute_script("return DATA.digest")
    assert "1 won · 100%" in texts(browser, "#vote-chart")[0]
    ours = {"format": "lorafold-votes-1", "digest": digest, "votes": {"0": 0, "1": "tie", "2": 7, "9": 1}}
    files = {"anna.json": ours, "old.json": {**ours, "digest": "0"}, "text.json": ["votes"]}
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    paths = "\n".join(str(tmp_path / name) for name in files)
    browser.find_element("id", "vote-files").send_keys(paths)
    waiting(browser, "return document.querySelector('#vote-chart h2').textContent == 'Votes of 2 people'")
    shown = texts(browser, "#vote-chart")[0]
    assert "3 votes, 1 tie" in shown and "1 won · 50%" in shown  # what names no model or question is left out
    assert "old.json: votes for another comparison; text.json: not a file of votes" in shown
    browser.refresh()
    assert "3 votes, 1 tie" in texts(browser, "#vote-chart")[0]
    click(browser, ".vote-tools button", 2)
    assert "1 vote, 0 ties" in texts(browser, "#vote-chart")[0]


def test_what_was_compared_is_said(browser: Any, tmp_path: Path) -> None:
    thought = answer("4", 1, 0.1, reasoning="two and two", reason="content_filter")
    visit(browser, tmp_path, [row("2 + 2?", thought, PLAIN, 0.1)])
    assert "<title>base.gguf against tuned.gguf</title>" in (tmp_path / "report.html").read_text()
    assert "2026-01-31, lorafold 1.2" in texts(browser, "#subtitle")[0]
    assert "exported from base + adapter; proof passed" in texts(browser, ".model")[1]
    assert texts(browser, "#nats")[0].startswith("Divergence, in nats: how far apart")
    assert "ended by the server: content_filter" in texts(browser, ".facts")[0]
    click(browser, ".answer summary")
    assert "two and two" in texts(browser, ".answer details")[0]


def test_the_page_speaks_chinese(browser: Any, tmp_path: Path) -> None:
    """All of it: what is left in Latin letters are names, units, and what models and files said."""
    visit(browser, tmp_path, [*SEVERAL, row("no more", PLAIN, PLAIN, 1.0)])  # a page of its own
    assert texts(browser, "#language") == ["中文"]
    click(browser, "#language")
    assert browser.execute_script("return document.documentElement.lang") == "zh"
    assert browser.execute_script("return document.title") == "base.gguf 对比 tuned.gguf"
    said = browser.execute_script(
        "const told = n => [n.ariaLabel, n.title, n.placeholder].filter(Boolean).join(' ');"
        "const nodes = [...document.querySelectorAll('[aria-label], [title], [placeholder]')];"
        "return [document.body.innerText, ...nodes.map(told)].join(' ')"
    )
    names = "A B English Markdown KL nat sha256 base gguf tuned llama cpp Q8_0 q txt lorafold token"
    known = set(names.split()) | {"abababababababab"}
    data = json.dumps(SEVERAL) + "no more, base + adapter"
    assert "由 base + adapter 导出；验证通过" in texts(browser, ".model")[1]
    words = set(re.findall(r"[A-Za-z]\w*", said)) - known
    assert not [word for word in words if not re.search(rf"\b{word}\b", data)]
    click(browser, "#q0 .votes button")
    assert "2 票，其中平局 0；平局各算一半" in texts(browser, "#vote-chart")[0]
    browser.refresh()  # the choice stays
    assert texts(browser, "#language") == ["English"]
    look_for(browser, "nowhere")
    assert texts(browser, "#rows") == ["没有符合的问题。请清空搜索，或换一个筛选条件。"]
    click(browser, "#language")
    assert (
        texts(browser, "h1") == ["base.gguf against tuned.gguf"] and len(texts(browser, "#charts svg")) == 4
    )
