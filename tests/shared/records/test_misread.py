"""Text that was decoded wrongly is told from text that is meant: every script and both tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafold.records.misread import misread_note, reread
from lorafold.train import TrainConfig, describe_data

MEANT = ("小主，皇上今日翻了您的牌子。", "Пушкин", "né à Besançon, âgé", "“quoted” — it’s", "안녕하세요")


@pytest.mark.parametrize("text", MEANT)
@pytest.mark.parametrize("table", ["latin-1", "cp1252"])
def test_damaged_text_is_noticed(text: str, table: str) -> None:
    try:
        damaged = text.encode("utf-8").decode(table)
    except UnicodeDecodeError:
        pytest.skip("five bytes have no character in Windows-1252")
    found = reread(damaged)
    assert found is not None and found[1] in text and found[0] in damaged


@pytest.mark.parametrize(
    "text",
    [
        *MEANT,
        "plain ASCII",
        "„Spaß“ und „groß“, sagte er, und „Fuß“: größer wird's nicht",
        "«CAFÉ» à côté, ÉTÉ»",
        "3 °C ± 0.5, £§, ½ × ¾",
        "une seule: Ã© ",
        "naïve façade, Ünïcödé",
    ],
)
def test_text_that_is_meant_is_left_alone(text: str) -> None:
    assert reread(text) is None


@given(
    st.text(
        alphabet=st.characters(min_codepoint=0x80, max_codepoint=0xFFFF, exclude_categories=["Cs"]),
        min_size=2,
    )
)
def test_what_was_meant_is_had_back(text: str) -> None:
    found = reread(text.encode("utf-8").decode("latin-1"))
    assert found is not None and found[1] == text


def test_the_note_of_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = [{"instruction": "你是谁", "output": "家父是大理寺少卿"}, {"instruction": "who", "output": "I"}]
    bad = [{key: text.encode().decode("latin-1") for key, text in row.items()} for row in good]
    path.write_text("".join(json.dumps(row) + "\n" for row in good))
    assert not any("UTF-8" in note for note in describe_data(TrainConfig(data=(str(path),))).notes)
    path.write_text("".join(json.dumps(row) + "\n" for row in (*good, *bad)))
    (note,) = [note for note in describe_data(TrainConfig(data=(str(path),))).notes if "UTF-8" in note]
    assert note.startswith("2 texts look like UTF-8 read as Latin-1, the first at d.jsonl:3 (")
    assert " → 你是谁" in note
    assert misread_note([("a:1", "plain")]) is None
