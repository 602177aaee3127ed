"""What the comparison page says stands in one table, whole in each of its languages."""

from __future__ import annotations

import json
import re

from lorafold.serve.comparison import report

WORDS: dict[str, dict[str, str]] = json.loads((report.HERE / "report.words.json").read_text(encoding="utf-8"))
SCRIPT = (report.HERE / "report.js").read_text(encoding="utf-8")
PAGE = (report.HERE / "report.html").read_text(encoding="utf-8")


def places(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_each_language_says_the_same_things() -> None:
    """English has a form for one thing beside that for several, Chinese needs none."""
    assert list(WORDS) == ["en", "zh"]
    english, chinese = WORDS["en"], WORDS["zh"]
    assert {key for key in english if not key.endswith(".one")} == set(chinese)
    for key, text in english.items():
        other = chinese[key.removesuffix(".one")]
        assert places(text) == places(other) - ({"count"} if key.endswith(".one") else set()), key
        assert text.strip() and other.strip()
    same = {key for key in chinese if chinese[key] == english[key]}
    assert not same, "not translated"


def test_every_text_is_used_and_every_used_text_is_there() -> None:
    keys = set(WORDS["zh"])
    quoted = set(re.findall(r'"([a-z_.]+)"', SCRIPT + PAGE))
    assert keys <= quoted, keys - quoted
    asked = set(re.findall(r'say\("([^"]+)"', SCRIPT)) | set(
        re.findall(r'data-(?:say|label|title)="([^"]+)"', PAGE)
    )
    assert asked <= keys, asked - keys


def test_nothing_is_said_beside_the_table() -> None:
    body = re.sub(r"<script>.*?</script>|<!--.*?-->", "", PAGE.partition("<body>")[2], flags=re.S)
    assert re.sub(r"<[^>]*>", " ", body).split() == ["Markdown"]  # a name
    assert not re.findall(r'\s(?:placeholder|aria-label|title)="', body)
