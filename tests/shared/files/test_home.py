"""`~` in paths: filled in if there is such a user, and no traceback if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafold.cli import main
from lorafold.files.home import expanded

NOBODY = "~nosuchuser/x"


def test_a_home_is_filled_in_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("~/models/a") == Path("/home/someone/models/a")
    assert expanded("models/~a") == Path("models/~a")
    assert expanded(NOBODY) == Path(NOBODY)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["export", NOBODY, "--out", "out"], 3),
        (["inspect", NOBODY], 3),
        (["train", "--base", NOBODY, "--data", "data.jsonl", "--out", "out"], 3),
        (["train", "--recipe", NOBODY, "--out", "out"], 3),
        (["compare", NOBODY, NOBODY, "--prompts", "prompts.txt", "--out", "page.jsonl"], 3),
        (["chat", NOBODY], 3),
    ],
)
def test_every_command_takes_it_for_a_name_that_is_not_there(
    argv: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"text": "a"}\n')
    Path("prompts.txt").write_text("a\n")
    assert main(argv) == code
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "; fix: " in said and NOBODY in said
