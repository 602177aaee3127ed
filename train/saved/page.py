"""`loss.html`: the loss of a run, and what the model answered at each evaluation, as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lorafold.pages.page import as_text, html_page, notes_in
from lorafold.train.model.answers import EMPTY
from lorafold.train.saved.curve import Points, curves, smooth

_MOST = 600  # points of a line; of a longer one every n-th is drawn
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 470, 14, 236  # of the axes, in a picture of 480 by 270
_HELD_OUT = "Questions that were not trained on, and the likeliest answers at each evaluation."


def loss_page(records: Sequence[dict[str, Any]], title: str, facts: dict[str, Any]) -> str:
    """The whole page; "" if nothing was logged.

    Args:
        records: of metrics.jsonl.
        title: the adapter's name.
        facts: what goes into lorafold.json.
    """
    found = curves(records)
    if not found:
        return ""
    made = f"trained with lorafold {facts['versions']['lorafold']} on {facts['base']['id']}"
    training = f"{facts['data']['examples']:,} examples, {facts['training']['steps']:,} steps"
    return html_page(
        f"{title}: loss",
        [
            f"<header><h1>{as_text(title)}</h1><p class='soft'>{as_text(made)}; {training}</p></header>",
            f"<div class='panel'>{_picture(found)}</div>",
            *_answers(records),
            *notes_in(facts["notes"]),
        ],
    )


def _picture(found: dict[str, list[tuple[float, float]]]) -> str:
    """Loss per trained token over the steps: each logged step, their moving average, the evaluations."""
    every = [point for points in found.values() for point in points]
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = (point[0] - first) / ((last - first) or 1)
        y = (high - point[1]) / ((high - low) or 1)
        return _LEFT + x * (_RIGHT - _LEFT), _TOP + y * (_BOTTOM - _TOP)

    def line(points: Points, look: str) -> str:
        drawn = [*points[:: 1 + len(points) // _MOST], points[-1]]
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, drawn))
        return f'<polyline class="line" style="{look}" points="{at}"/>'

    def dots(points: Points, colour: str) -> Iterator[str]:
        for point in points:
            x, y = place(point)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:var({colour})">'
            yield f"<title>step {point[0]:.0f}: {point[1]:.4f}</title></circle>"

    parts = [
        '<svg class="curve" viewBox="0 0 480 270" role="img" aria-label="loss over the steps">',
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 6}" y="{_BOTTOM}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_LEFT}" y="{_BOTTOM + 18}">{first:.0f}</text>',
        f'<text x="{_RIGHT}" y="{_BOTTOM + 18}" text-anchor="end">{last:.0f}</text>',
        f'<text x="{(_LEFT + _RIGHT) // 2}" y="{_BOTTOM + 18}" text-anchor="middle">step</text>',
    ]
    if trained := found.get("loss"):
        parts += [line(trained, "opacity:.35"), line(smooth(trained), "")]
        parts += dots(trained, "--bar") if len(trained) == 1 else ()  # which is no line
    if evaluated := found.get("eval_loss"):
        parts += [line(evaluated, "stroke:var(--bad)"), *dots(evaluated, "--bad")]
    legend = "loss per trained token: " + ", ".join(
        f'<b style="color:var({colour})">{name}</b>'
        for name, colour in (("training", "--bar"), ("evaluation", "--bad"))
        if name == "training" or evaluated
    )
    return "".join([*parts, f"</svg><p class='soft'>{legend}</p>"])


def _answers(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For each held-out question its answers, evaluation by evaluation."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for sample in record.get("samples") or ():
            answers = asked.setdefault(sample["question"], [("in the data", sample["expected"])])
            answers.append((f"step {record['step']}", sample["answer"]))
    if asked:
        yield f"<h2>Sample answers</h2><p>{_HELD_OUT}</p>"
    for question, answers in asked.items():
        yield f"<h3>{as_text(question)}</h3><div class='panel'><table>"
        for when, answer in answers:
            yield f"<tr><td class='soft'>{when}</td><td>{as_text(answer) or EMPTY}</td></tr>"
        yield "</table></div>"
