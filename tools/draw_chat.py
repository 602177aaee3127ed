"""Draw the pictures of docs/chat.md: a real turn of two models with the lens, and the page of a comparison.

python tools/draw_chat.py ORIGINAL TUNED --question "What is your name and where do you live?"
python tools/draw_chat.py --page report.html    (that `lorafold compare` wrote; needs Chromium)
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lorafold.console import Row, rows_as_svg
from lorafold.serve.answers import Request, answer_all
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.conversation import Answer, Turn
from lorafold.serve.engines.digests import Digests
from lorafold.serve.engines.open import opened
from lorafold.serve.lens import look_through
from lorafold.serve.protocol import Cancel
from lorafold.serve.terminal.lens_view import lens_rows
from lorafold.serve.terminal.panes import Panes
from lorafold.serve.terminal.views import heads, pane_headings, summary

WIDTH = 100


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="the original and the tuned one")
    parser.add_argument("--question", default="What is your name and where do you live?")
    parser.add_argument("--page", type=Path, help="draw this page instead of a conversation")
    parser.add_argument("--out", type=Path, help="docs/chat.svg, or docs/compare.png for a page")
    options = parser.parse_args()
    if options.page:
        photograph(options.page, options.out or Path("docs/compare.png"))
        return
    sampling = Sampling(temperature=0, seed=0, max_tokens=64)
    messages = [{"role": "user", "content": options.question}]
    with opened(ChatConfig(models=tuple(options.models))) as engines:
        abouts = [engine.about for engine in engines]
        digests = Digests(abouts)
        digests.wait()
        answers = {0: Answer(), 1: Answer()}
        requests = {index: Request(engine, messages, sampling) for index, engine in enumerate(engines)}
        for happened in answer_all(requests, Cancel()):
            if happened is not None:
                answers[happened[0]].take(happened[1])
        first, second = (engine.scorer for engine in engines)
        assert first is not None and second is not None
        lens = look_through(second, first, messages, answers[1].text, answers[1].ids)
    above = heads(abouts, digests, Turn(options.question, answers, [0, 1]))
    panes = Panes(WIDTH, pane_headings(above, (WIDTH - 3) // 2))
    for index, answer in answers.items():
        panes.feed(index, answer.text)
        panes.end(index, [(summary(answer), "dim")])
    rows: list[Row] = [[("› ", ""), (options.question, "")], *panes.rows(1)[0], [], [("› /lens", "")]]
    rows += lens_rows(lens, abouts[1].name, abouts[0].name, WIDTH)
    out = options.out or Path("docs/chat.svg")
    out.write_text(rows_as_svg(rows, WIDTH, "lorafold chat"), encoding="utf-8")


def photograph(page: Path, out: Path) -> None:
    """Take a picture of a page's beginning, as it looks on light paper."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1240,1180"):
        options.add_argument(flag)
    # Found here, or selenium would ask the network for them.
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.resolve().as_uri())
        driver.save_screenshot(str(out))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
