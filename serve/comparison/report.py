"""A comparison as Markdown, as JSON lines, or as one HTML page that needs no network."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.console import sanitize
from lorafold.serve.comparison.result import CompareResult, counted
from lorafold.serve.conversation import LETTERS

if TYPE_CHECKING:
    from lorafold.serve.rows import ModelCard

HERE = Path(__file__).parent
_PARTS = {"/*STYLE*/": "report.css", "/*SCRIPT*/": "report.js"}  # place in report.html -> file
DATA_PLACE, WORDS_PLACE, TITLE_PLACE = "/*DATA*/null", "/*WORDS*/null", "<!--TITLE-->"
_WORDS = "report.words.json"  # what the page says, in each of its languages
# Chinese and Japanese are written without blanks: each character counts as a word, as word processors count.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

# In Markdown; `&` too, or an answer `&lt;` would read as `<`.
_ESCAPES = str.maketrans(
    {char: f"\\{char}" for char in "\\`*_[]|#~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


_LIST = re.compile(r"^(\d*)([-+.)=])")  # what would begin a list or underline a heading


def agreement(first: str, second: str) -> float:
    """How much of two answers' words is equal and in the same order, 0 to 1 (difflib's ratio)."""
    return SequenceMatcher(None, _WORD.findall(first), _WORD.findall(second), autojunk=False).ratio()


def as_markdown(result: CompareResult) -> str:
    """A section for each question, with every model's answer below it; with what stands behind them."""
    lines = [f"# {_inline(title_of([card.name for card in result.models]))}", ""]
    lines += [_model_line(letter, card) for letter, card in zip(LETTERS, result.models, strict=False)]
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    made = f"{result.day}, lorafold {result.version}"
    lines += ["", f"{counted(len(result.rows))} from {_inline(result.prompts)}; {settings}. {made}."]
    for number, row in enumerate(result.rows, 1):
        lines += ["", f"## {number}. {_inline(row.question)}"]
        for letter, card, answer in zip(LETTERS, result.models, row.answers, strict=False):
            ending = f" ({_inline(answer.reason)})" if answer.text.strip() and answer.reason != "stop" else ""
            lines += ["", f"**{letter} {_inline(card.name)}**{ending}", "", _quoted(answer.cell)]
        if row.expected:
            lines += ["", "**expected**", "", _quoted(row.expected)]
    return "\n".join(lines) + "\n"


def title_of(names: Sequence[str]) -> str:
    """What was compared, in a line."""
    return (" against " if len(names) == 2 else ", ").join(names) or "no models"


def _model_line(letter: str, card: ModelCard) -> str:
    facts = [
        card.kind,
        card.quantization,
        f"sha256 {card.sha256}" if card.sha256 else "",
        str(card.origin or ""),
    ]
    return f"- {letter} {_inline(card.name)}: " + ", ".join(_inline(fact) for fact in facts if fact)


def _quoted(text: str) -> str:
    """A text as a quotation, as it was written: no markup in it counts, and no list begins."""
    return "> " + _LIST.sub(r"\1\\\2", _inline(text))


def _inline(text: str) -> str:
    """Text on one line: no markup, nothing a terminal would obey."""
    text = sanitize(text.strip().replace("\r\n", "\n"), keep="\n\t").replace("\t", " ")
    return text.translate(_ESCAPES).replace("\n", "<br>")


def as_jsonl(result: CompareResult) -> str:
    """One line about the models and settings, then one per question."""
    head = {
        "models": [asdict(card) for card in result.models],
        "settings": result.settings,
        "prompts": result.prompts,
        "seconds": round(result.seconds, 3),
        "day": result.day,
        "lorafold": result.version,
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
            "day": result.day,
            "lorafold": result.version,
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
    text = (HERE / "report.html").read_text(encoding="utf-8")
    for place, name in _PARTS.items():
        assert text.count(place) == 1
        text = text.replace(place, (HERE / name).read_text(encoding="utf-8").strip())
    assert text.count(DATA_PLACE) == text.count(WORDS_PLACE) == text.count(TITLE_PLACE) == 1
    words = json.loads((HERE / _WORDS).read_text(encoding="utf-8"))
    title = html.escape(sanitize(title_of([card["name"] for card in data["models"]]), keep=""))
    return (
        text.replace(WORDS_PLACE, _in_script(words))
        .replace(DATA_PLACE, _in_script(data))
        .replace(TITLE_PLACE, title)
    )


def _in_script(value: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    packed = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return packed.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


RENDERERS: Mapping[str, Callable[[CompareResult], str]] = {
    ".html": as_html,
    ".md": as_markdown,
    ".jsonl": as_jsonl,
}
