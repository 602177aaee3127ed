"""The comparison page in a real browser, where one is installed: search, filter, votes, lens, themes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from lorafold.serve.report import page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOSTILE = "<img src=x onerror=alert(1)></script> \u202egnp.exe \x1b[2J"


def answer(text: str, tokens: int, shift: float) -> dict[str, Any]:
    lens = [[f" {word}", -0.5, -0.5 - shift * (i % 3)] for i, word in enumerate(text.split(" "))]
    return {
        "text": text,
        "reason": "stop",
        "tokens": tokens,
        "seconds": 1.0,
        "tokens_per_second": tokens / 1.0,
        "kl": shift / 4,
        "lens": lens,
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium with its driver is installed")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = BROWSER
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    cards = [
        {"name": name, "source": name, "kind": "llama.cpp", "quantization": "Q8_0", "sha256": "ab" * 32}
        for name in ("base.gguf", "tuned.gguf")
    ]
    rows = [
        {
            "question": question,
            "messages": [{"role": "user", "content": question}],
            "expected": "a lamp" if not number else None,
            "answers": [answer("I am a model", 5, 0.4), answer(reply, 9, 3.0)],
            "agreement": [1.0, 0.4 if reply != "I am a model" else 1.0],
        }
        for number, (question, reply) in enumerate(
            [("Who are you?", "I keep the lighthouse"), ("What now?", "I am a model"), (HOSTILE, HOSTILE)]
        )
    ]
    settings = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 0, "max_tokens": 64}
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page({"models": cards, "rows": rows, "settings": settings, "prompts": "q.txt"}))
    driver.get(path.as_uri())
    yield driver
    assert driver.get_log("browser") == []
    driver.quit()


def texts(browser: Any, selector: str) -> list[str]:
    return [node.text for node in browser.find_elements("css selector", selector)]


def click(browser: Any, selector: str, number: int = 0) -> None:
    browser.execute_script("arguments[0].click()", browser.find_elements("css selector", selector)[number])


@pytest.mark.slow
def test_the_page_works(browser: Any) -> None:
    assert texts(browser, "h1") == ["base.gguf against tuned.gguf"]
    assert len(texts(browser, ".row")) == 3 and len(texts(browser, "#charts svg")) == 3
    assert not browser.find_elements("css selector", "img")  # hostile text stays text
    assert "<U+202E>gnp.exe ␛[2J" in texts(browser, ".row h3")[2]

    search = browser.find_element("id", "search")
    search.send_keys("lighthouse")
    assert len(texts(browser, ".row")) == 1 and texts(browser, "mark") == ["lighthouse"]
    search.send_keys("xyz")
    assert texts(browser, ".row") == [] and "No question fits" in texts(browser, "#rows")[0]
    search.clear()
    browser.execute_script("document.getElementById('search').dispatchEvent(new Event('input'))")

    for value, count in (("same", 1), ("different", 2), ("voted", 0), ("all", 3)):
        script = "const s = document.getElementById('filter'); s.value = arguments[0];"
        browser.execute_script(script + "s.dispatchEvent(new Event('change'))", value)
        assert len(texts(browser, ".row")) == count, value

    click(browser, ".votes button", 1)
    assert "1 won · 100%" in texts(browser, "#vote-chart")[0]
    assert texts(browser, ".answer.won .who") == ["B tuned.gguf"]

    colour = "return getComputedStyle(document.querySelectorAll('.answer')[1].querySelectorAll('.t')[2])"
    shown = browser.execute_script(colour + ".backgroundColor")
    click(browser, "#lens")
    assert browser.execute_script(colour + ".backgroundColor") != shown
    click(browser, "#lens")

    paper = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(paper)
    click(browser, "#theme")
    assert browser.execute_script(paper) != before
    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
