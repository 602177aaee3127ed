"""Where a file comes from is told only of the file that was proven."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_chat

from lorafold.artifacts import MANIFEST, sha256_file
from lorafold.serve.comparison.compare import compare
from lorafold.serve.config import ChatConfig, CompareConfig, Sampling
from lorafold.serve.conversation import Conversation
from lorafold.serve.loaded import load
from lorafold.serve.origin import origin_of, system_message
from lorafold.serve.terminal.chat import chat


@pytest.fixture
def export(tmp_path: Path) -> Path:
    shutil.copy(tiny_chat.gguf(), tmp_path / "m.gguf")
    return tmp_path


def note(folder: Path, **facts: Any) -> None:
    entry = {"sha256": sha256_file(folder / "m.gguf"), "size": 1}
    manifest = {
        "kind": "export",
        "files": {"m.gguf": entry},
        "base": {"id": "org/base"},
        "adapters": [{"folder": "/somewhere/tuned", "weight": 1.0}],
        "proof": [{"name": "files", "verdict": "passed"}, {"name": "logits", "verdict": "passed"}],
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def told(folder: Path) -> str:
    return str(origin_of(str(folder), sha256_file(folder / "m.gguf") + "+" + "0" * 64) or "")


def test_an_export_tells_what_it_is(export: Path) -> None:
    assert told(export) == ""
    note(export)
    assert told(export) == "exported from org/base + tuned; proof passed"
    note(export, proof=[{"verdict": "passed"}, {"verdict": "not checked"}], adapters=[])
    assert told(export) == "exported from org/base; 1 of 2 checks passed"
    note(export, proof=[{"verdict": "passed"}, {"verdict": "note"}], adapters=[])
    assert told(export) == "exported from org/base; proof passed"
    for left_out in ([], [{"name": "proof", "verdict": "not checked"}]):
        note(export, proof=left_out)
        assert told(export) == "exported from org/base + tuned; not proven"


def test_another_file_of_that_name_is_not_vouched_for(export: Path) -> None:
    note(export)
    shutil.copy(tiny_chat.gguf(1), export / "m.gguf")
    assert told(export) == ""


@pytest.mark.parametrize("facts", [{"files": {"m.gguf": 3}}, {"kind": "train"}, {"base": 1, "adapters": 2}])
def test_odd_manifests(export: Path, facts: dict[str, Any]) -> None:
    note(export, **facts)
    assert told(export) in ("", "exported from ; proof passed")
    (export / MANIFEST).write_text("{")
    assert told(export) == ""


PERSONA = "You keep a lighthouse."


def asked(model: str, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[str, int]:
    """What is said on standard error of one question, and how many tokens its prompt has."""
    assert chat(ChatConfig((model,), prompt=("Hi",), json=True, max_tokens=1, **options)) == 0
    told = capsys.readouterr()
    return told.err, json.loads(told.out)["answers"][0]["prompt_tokens"]


def test_an_export_is_asked_under_its_own_system_message(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, plain = asked(str(export), capsys)
    note(export, config={"system": PERSONA})
    said, own = asked(str(export), capsys)
    assert f"the system message of m.gguf is used: {PERSONA!r}; --system '' leaves it out" in said
    assert own - plain == len(f"system\n{PERSONA}\n") + 2  # a token for each letter, and two that control
    assert asked(str(export), capsys, system="") == ("", plain)
    said, other = asked(str(export), capsys, system="Another.")
    assert PERSONA not in said and plain < other < own


def test_from_python_too(export: Path) -> None:
    note(export, config={"system": PERSONA})

    def answer(**options: Any) -> str:
        with load(export, **options) as model:
            return model.ask("Hi", temperature=0, max_tokens=8)

    assert answer() == answer(system=PERSONA) != answer(system="")
    (export / MANIFEST).unlink()
    assert answer() == answer(system="")


def test_a_session_goes_on_under_its_own(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Conversation(["m.gguf"], Sampling()).save(tmp_path / "s.json")
    _, plain = asked(str(export), capsys)
    note(export, config={"system": PERSONA})
    assert asked(str(export), capsys, session=tmp_path / "s.json") == ("", plain)


def test_all_models_are_asked_under_the_message_of_one(export: Path, tmp_path: Path) -> None:
    note(export, config={"system": PERSONA})
    questions, page = tmp_path / "q.txt", tmp_path / "r.jsonl"
    questions.write_text("Hi\n")
    models = (str(tiny_chat.gguf()), str(export))
    result = compare(CompareConfig(models, prompts=questions, out=(page,), max_tokens=1))
    assert any(PERSONA in said for said in result.notes)
    assert result.rows[0].messages[0] == {"role": "system", "content": PERSONA}


def test_an_adapter_brings_the_message_that_it_was_trained_under(tmp_path: Path) -> None:
    manifest = {"kind": "adapter", "files": {}, "config": {"system": PERSONA}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert system_message(["demo", f"demo+{tmp_path}"]) == (
        PERSONA,
        f"the system message of {tmp_path.name} is used: {PERSONA!r}; --system '' leaves it out",
    )
    (tmp_path / MANIFEST).write_text("{")
    assert system_message([f"demo+{tmp_path}", "ollama:m", "http://x"]) is None
