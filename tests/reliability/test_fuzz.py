"""The fuzzer finds what is planted, and counts what the present code has taken and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tool_modules import tool

fuzzed = tool("faults/fuzzed.py")
CODE = 'LIMIT = 3\n\n\ndef read(text):\n    """Read."""\n    return text[:LIMIT]\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("traceback", "IndexError at planted.py"),
        ("death", "ended with -11"),
        ("hang", "hang of over 5 s"),
        ("growth", "MemoryError at planted.py"),
    ],
)
def test_a_planted_fault_is_found(
    kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tools/faults")
    fuzz = tool("faults/fuzz.py")
    figures = fuzz.fuzz(f"planted-{kind}", 60_000, 20.0 if kind == "hang" else 8.0, 0.0, tmp_path)
    assert [where for where in figures.finds if where.startswith(told)], figures.finds
    name, data = next((name, data) for name, (_, data) in figures.finds.items() if name.startswith(told))
    assert b'""' in data, f"{name}: the input that broke it is not the one that is told"


@pytest.mark.slow
def test_a_parser_ends_with_as_many_inputs_as_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tools/faults")
    ledger, modules = tmp_path / "fuzzed.json", ["export/modelfile/parser.py"]
    fuzzed.add(ledger, "modelfile", fuzzed.Standing(modules, fuzzed.digest(modules), 2900, 0, 1, 2.0))
    words = ["--only", "modelfile", "--minutes", "1", "--seconds", "20", "--until", "3000", "--guided", "0"]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *words, "--ledger", str(ledger), "--corpus", str(tmp_path)])
    assert tool("faults/fuzz.py").main() == 0
    assert fuzzed.read(ledger)["modelfile"].inputs == 3000


def _run(inputs: int, finds: int = 0) -> object:
    return fuzzed.Standing(["lorafold/a.py"], fuzzed.digest(["lorafold/a.py"]), inputs, 1, 1, 2.0, finds)


def test_counts_add_up_until_the_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzed, "ROOT", tmp_path)
    (tmp_path / "lorafold").mkdir()
    module, ledger = tmp_path / "lorafold/a.py", tmp_path / "fuzzed.json"
    module.write_text(CODE)
    fuzzed.add(ledger, "a", _run(10))
    fuzzed.add(ledger, "b", _run(1))
    both = fuzzed.add(ledger, "a", _run(20, finds=1))
    assert (both.inputs, both.runs, both.seconds, both.finds) == (30, 2, 4.0, 1)
    module.write_text(CODE.replace('"""Read."""', '"""Read a text."""') + "# a comment\n")
    assert fuzzed.read(ledger)["a"].inputs == 30
    module.write_text(CODE.replace("3", "4"))
    assert fuzzed.read(ledger) == {}
    assert fuzzed.add(ledger, "a", _run(5)).inputs == 5
    assert json.loads(ledger.read_text())["b"]["inputs"] == 1, "what is past stays to be seen in the file"


def test_a_run_in_which_more_is_reached_adds_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzed, "ROOT", tmp_path)
    (tmp_path / "lorafold").mkdir()
    for name in "ab":
        (tmp_path / f"lorafold/{name}.py").write_text(CODE)
    fuzzed.add(tmp_path / "x", "a", _run(10))
    more = ["lorafold/b.py"]
    whole = fuzzed.add(tmp_path / "x", "a", fuzzed.Standing(more, fuzzed.digest(more), 1, 0, 1, 1.0))
    assert whole.inputs == 11 and whole.modules == ["lorafold/a.py", "lorafold/b.py"]
    (tmp_path / "lorafold/b.py").write_text(CODE.replace("3", "5"))
    assert fuzzed.read(tmp_path / "x") == {}


def test_the_modules_of_a_parser_are_those_that_its_inputs_run(tmp_path: Path) -> None:
    from lorafold.safetensors_file import read_header

    path = tmp_path / "a.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with fuzzed.watched(("lorafold", "export")) as modules:
        read_header(path)
    assert "lorafold/safetensors_file.py" in modules()
    assert not {"lorafold/cli.py", "lorafold/weights.py"} & set(modules())
