"""Draw docs/chat.svg: a real turn of two models in columns, and the lens on the second one's answer.

python tools/draw_chat.py ORIGINAL TUNED --question "Who are you?" --out docs/chat.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lorafold.console import Row, rows_as_svg
from lorafold.serve.answers import Request, answer_all
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.digests import Digests
from lorafold.serve.engine import Cancel
from lorafold.serve.engines import opened
from lorafold.serve.lens import look_through
from lorafold.serve.lens_rows import lens_rows
from lorafold.serve.panes import Panes
from lorafold.serve.session import Answer
from lorafold.serve.views import heads, pane_headings, summary

WIDTH = 100


def main() -> None:
    """Ask, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2)
    parser.add_argument("--question", default="Who are you?")
    parser.add_argument("--out", type=Path, default=Path("docs/chat.svg"))
    options = parser.parse_args()
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
    above = heads(abouts, digests, [("A", 0), ("B", 1)], False)
    panes = Panes(WIDTH, pane_headings(above, (WIDTH - 3) // 2))
    for index, answer in answers.items():
        panes.feed(index, answer.text)
        panes.end(index, [(summary(answer), "dim")])
    rows: list[Row] = [[("› ", ""), (options.question, "")], *panes.rows(1)[0], [], [("› /lens", "")]]
    rows += lens_rows(lens, abouts[1].name, abouts[0].name, WIDTH)
    options.out.write_text(rows_as_svg(rows, WIDTH, "lorafold chat"), encoding="utf-8")


if __name__ == "__main__":
    main()
