"""loss.html: what it draws of metrics.jsonl, what it shows of answers, and that no text of a model acts."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from lorafold.train.saved.page import loss_page

FACTS = {
    "versions": {"lorafold": "1.2"},
    "base": {"id": "org/base"},
    "data": {"examples": 1200},
    "training": {"steps": 4},
    "notes": [],
}


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, **more}


def asked(answer: str) -> list[dict[str, str]]:
    return [{"question": "Who?", "expected": "Silas", "answer": answer}]


def picture(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_losses_evaluations_and_answers_step_by_step() -> None:
    records = [
        row(1, loss=4.0),
        row(2, loss=3.0),
        row(2, eval_loss=3.5, samples=asked("An AI")),
        row(4, loss=2.0),
        row(4, eval_loss=2.5, samples=asked("Silas, shipmate")),
    ]
    page = loss_page(records, "keeper", FACTS)
    assert "trained with lorafold 1.2 on org/base; 1,200 examples, 4 steps" in page
    drawn = picture(page)
    lines = [line.get("points", "") for line in drawn.iter("polyline")]
    # By hand: steps 1 to 4 over 46 to 470, losses 4 to 2 over 14 to 236.
    assert lines[0] == "46.0,14.0 187.3,125.0 470.0,236.0 470.0,236.0"
    dots = [dot[0].text for dot in drawn.iter("circle")]
    assert len(lines) == 3 and dots == ["step 2: 3.5000", "step 4: 2.5000"]
    cells = re.findall(r"<tr><td class='soft'>(.*?)</td><td>(.*?)</td>", page)
    assert cells == [("in the data", "Silas"), ("step 2", "An AI"), ("step 4", "Silas, shipmate")]


def test_one_point_is_seen_and_nothing_makes_no_page() -> None:
    drawn = picture(loss_page([row(1, loss=3.25)], "a", FACTS))
    assert [dot[0].text for dot in drawn.iter("circle")] == ["step 1: 3.2500"]
    assert loss_page([], "a", FACTS) == ""


def test_a_long_run_is_drawn_with_fewer_points() -> None:
    drawn = picture(loss_page([row(step, loss=1 / step) for step in range(1, 5001)], "a", FACTS))
    points = next(drawn.iter("polyline")).get("points", "").split()
    assert 300 < len(points) <= 602 and points[-1].startswith("470.0")


def test_text_of_a_model_is_text() -> None:
    page = loss_page([row(1, eval_loss=1.0, samples=asked("<script>x</script>\x1b[2J"))], "<b>", FACTS)
    assert "<script>" not in page and "<h1>&lt;b&gt;" in page and "\x1b" not in page
