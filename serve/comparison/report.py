"""A comparison as a Markdown table, as JSON lines, or as one HTML page that needs no network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.console import sanitize

if TYPE_CHECKING:
    from lorafold.serve.comparison.result import CompareResult

HERE = Path(__file__).parent
PARTS = {"/*STYLE*/": "report.css", "/*SCRIPT*/": "report.js"}  # place in report.html -> file
DATA_PLACE = "/*DATA*/null"
# Chinese and Japanese are written without blanks: each character counts as a word, as word processors count.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

# In a Markdown cell; `&` too, or an answer `&lt;` would read as `<`.
_ESCAPES = str.maketrans(
    {char: f"\\{char}" for char in "\\`*_[]|#~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


def agreement(first: str, second: str) -> float:
    """How much of two answers' words is equal and in the same order, 0 to 1 (difflib's ratio)."""
    return SequenceMatcher(None, _WORD.findall(first), _WORD.findall(second), autojunk=False).ratio()


def as_markdown(result: CompareResult) -> str:
    """The table that tutorials show: question, original, tuned; with what stands behind it."""
    lines = ["| " + " | ".join(map(_cell, result.columns)) + " |", "|" + " --- |" * len(result.columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in result.table]
    lines += ["", *(_model_line(asdict(card)) for card in result.models)]
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    lines += ["", f"{len(result.rows)} questions from {_cell(result.prompts)}; {settings}."]
    return "\n".join(lines) + "\n"


def _model_line(card: Mapping[str, Any]) -> str:
    facts = [card["kind"], card["quantization"], f"sha256 {card['sha256']}" if card["sha256"] else ""]
    return f"- {_cell(card['name'])}: " + ", ".join(fact for fact in facts if fact)


def _cell(text: str) -> str:
    """Text inside a table's cell: no row ends, no markup, nothing a terminal would obey."""
    text = sanitize(text.strip().replace("\r\n", "\n"), keep="\n\t").replace("\t", " ")
    return text.translate(_ESCAPES).replace("\n", "<br>")


def as_jsonl(result: CompareResult) -> str:
    """One line about the models and settings, then one per question."""
    head = {
        "models": [asdict(card) for card in result.models],
        "settings": result.settings,
        "prompts": result.prompts,
        "seconds": round(result.seconds, 3),
    }
    return "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in (head, *(row.as_json() for row in result.rows))
    )


def _share(first: str | None, second: str | None) -> float | None:
    """Agreement, or None if there are no two answers: a failure is no disagreement."""
    return None if first is None or second is None else round(agreement(first, second), 4)


def as_html(result: CompareResult) -> str:
    """One page with everything in it: styles, script, data."""
    rows = []
    for row in result.rows:
        texts = [answer.text if answer.comparable else None for answer in row.answers]
        rows.append({**row.as_json(), "agreement": [_share(texts[0], text) for text in texts]})
    return page(
        {
            "models": [asdict(card) for card in result.models],
            "settings": result.settings,
            "prompts": result.prompts,
            "rows": rows,
        }
    )


def page(data: Mapping[str, Any]) -> str:
    """Put data into the page, with a digest of it under which the browser keeps this page's votes.

    `<` is escaped, so that no text in it can end the script.
    """
    said = [[row["question"], [answer["text"] for answer in row.get("answers", ())]] for row in data["rows"]]
    known = json.dumps([data["models"], data["settings"], said], sort_keys=True).encode()
    data = {**data, "digest": hashlib.sha256(known).hexdigest()}
    packed = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    packed = packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    text = (HERE / "report.html").read_text(encoding="utf-8")
    for place, name in PARTS.items():
        assert text.count(place) == 1
        text = text.replace(place, (HERE / name).read_text(encoding="utf-8").strip())
    assert text.count(DATA_PLACE) == 1
    return text.replace(DATA_PLACE, packed)


RENDERERS: Mapping[str, Callable[[CompareResult], str]] = {
    ".html": as_html,
    ".md": as_markdown,
    ".jsonl": as_jsonl,
}
