"""The texts that a model is calibrated on: two parts without a chat in common, and no outliers by length."""

from __future__ import annotations

import json
from pathlib import Path

from tuned_models import MODULES, tuned_adapter, tuned_base, tuned_config, with_long_system

from lorafold.export.imatrix.calibration import LONGEST_PROMPT, Calibration, calibration
from lorafold.export.inputs import open_inputs
from lorafold.tokenizer.loading import load_tokenizer


def texts(folder: Path, lines: list[dict[str, str]], tokens: int) -> Calibration:
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    adapter = tuned_adapter(folder / "adapter", MODULES, 5e-3)
    return calibration(
        open_inputs(tuned_config(adapter, tuned_base(folder / "base"), folder / "out")), data, tokens
    )


def test_the_few_longest_are_left_out(tmp_path: Path) -> None:
    """A batch is as wide as its longest conversation, so one of them would double the work."""
    lines = [
        {"prompt": f"number {n}", "completion": "good day" + " to you" * 12 * (n % 20 == 7)}
        for n in range(60)
    ]
    found = texts(tmp_path, lines, 2000)
    asked = [*found.measured, *found.checked]
    tokenizer = load_tokenizer(tmp_path / "base/tokenizer.json")
    told = [tokenizer.decode(chat.ids[chat.start :]) for chat in asked]
    assert sum("good day" in each for each in told) > 10
    assert not any("to you" in each for each in told)
    assert found.words == "chats.jsonl and general chats"


def test_what_is_learnt_from_tests_nothing(tmp_path: Path) -> None:
    found = texts(tmp_path, [{"prompt": f"number {n}", "completion": "yes"} for n in range(60)], 2000)
    parts = [{tuple(chat.ids) for chat in part} for part in (found.measured, found.checked)]
    assert len(parts[0]) > 10 and len(parts[1]) > 10 and not parts[0] & parts[1]
    sizes = [sum(len(chat.ids) for chat in part) for part in (found.measured, found.checked)]
    assert 0.7 < sizes[0] / sizes[1] < 1.4


def test_a_template_s_own_system_prompt_makes_no_chat_too_long(tmp_path: Path) -> None:
    base = with_long_system(tuned_base(tmp_path / "base"))
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 5e-3)
    found = calibration(open_inputs(tuned_config(adapter, base, tmp_path / "out")), None, 4000)
    asked = [*found.measured, *found.checked]
    assert len(asked) >= 6 and all(chat.start > LONGEST_PROMPT for chat in asked)


def test_chats_that_are_all_too_long_are_not_said_to_be_asked(tmp_path: Path) -> None:
    found = texts(tmp_path, [{"prompt": "word " * 100, "completion": "yes"} for _ in range(8)], 2000)
    assert found.words == "general chats; those in chats.jsonl are too long"
