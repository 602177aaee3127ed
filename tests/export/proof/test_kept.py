"""Answers of the reference that are kept for the next proof: taken again only if nothing has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from lorafold.export import ExportConfig, ExportResult, export
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.kept import KeptAnswers, KeptReference, own_code
from lorafold.export.proof.sample import AskedChat, ChatTokens

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def proven(adapter: Path, out: Path, quant: str) -> tuple[ExportResult, dict[str, Any]]:
    """An export, and the figures of its file."""
    config = ExportConfig(str(adapter), out=out, quant=(quant,), name="tiny", base=str(tiny_chat.folder()))
    result = export(config)
    checks = {check.name: check for check in result.proof.checks}
    assert checks[f"logits tiny-{quant}.gguf"].verdict == "passed"
    return result, dict(checks[f"logits tiny-{quant}.gguf"].figures)


def reused(result: ExportResult) -> bool:
    (check,) = (check for check in result.proof.checks if check.name.startswith("logits"))
    return bool(check.figures["answers of an earlier proof"])


def test_another_type_is_held_against_the_same_answers(cache: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    first, _ = proven(adapter, tmp_path / "first", "F32")
    assert not reused(first)
    again, _ = proven(adapter, tmp_path / "again", "Q8_0")
    assert reused(again)


SPOILS: dict[str, Callable[[Path], object]] = {
    "none of the base": lambda kept: (kept / "base.npy").unlink(),
    "another shape": lambda kept: np.save(kept / "tuned.npy", np.zeros((3, 4), np.float32)),
}


@pytest.mark.parametrize("how", SPOILS)
def test_what_is_not_whole_is_computed_anew_with_the_same_figures(
    cache: Path, tmp_path: Path, how: str
) -> None:
    adapter = shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    _, first = proven(adapter, tmp_path / "first", "Q8_0")
    (kept,) = (cache / "references").iterdir()
    SPOILS[how](kept)
    anew, figures = proven(adapter, tmp_path / "anew", "Q8_0")
    assert not reused(anew)
    for name in ("mean KL", "mean KL of the type itself", "KL of the adapter"):
        assert figures[name] == pytest.approx(first[name], rel=1e-3)


def test_another_adapter_in_the_same_place_is_asked_itself(cache: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    proven(adapter, tmp_path / "first", "F32")
    shutil.copy(tiny_chat.adapter(seed=2) / "adapter_model.safetensors", adapter)
    result, _ = proven(adapter, tmp_path / "second", "F32")
    assert not reused(result) and len(list((cache / "references").iterdir())) == 2


def answers(seed: int) -> KeptAnswers:
    dice = np.random.default_rng(seed)
    chats = [AskedChat([1, 2, 3, 4], 2), AskedChat([5, 6], 1)]
    return KeptAnswers(chats, *([dice.random((n, 7), np.float32) for n in (2, 1)] for _ in range(2)))


def test_what_is_kept_comes_back_and_the_oldest_goes(tmp_path: Path) -> None:
    inputs = open_inputs(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "out"))
    kept = KeptReference(inputs, tmp_path / "home", most=1100)
    asked = [[ChatTokens([number, 2]), ChatTokens([5], [6])] for number in range(3)]
    for number, each in enumerate(asked):
        assert kept.find(each) is None
        kept.keep(each, answers(number))
        folder = max((tmp_path / "home").iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(folder, (number, number))
    found = kept.find(asked[2])
    assert found is not None and found.chats == answers(2).chats
    for mine, its in ((found.tuned, answers(2).tuned), (found.base, answers(2).base)):
        assert mine is not None and its is not None
        assert all(np.array_equal(a, b) for a, b in zip(mine, its, strict=True))
    assert [each.ids + each.answer for each in found.asked] == [each.ids for each in found.chats]
    assert kept.find(asked[0]) is None, "there was no room for three"
    assert kept.find([*asked[2], ChatTokens([9])]) is None
    assert json.loads(next((tmp_path / "home").iterdir()).joinpath("chats.json").read_text())


def test_no_more_than_a_few_are_kept(tmp_path: Path) -> None:
    inputs = open_inputs(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "out"))
    kept = KeptReference(inputs, tmp_path / "home")
    for number in range(40):
        kept.keep([ChatTokens([number])], answers(0))
    assert len(list((tmp_path / "home").iterdir())) == 32
    assert kept.find([ChatTokens([39])]) is not None


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path) -> None:
    inputs = open_inputs(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "out"))
    (tmp_path / "home").write_text("a file")
    kept = KeptReference(inputs, tmp_path / "home")
    kept.keep([ChatTokens([1])], answers(0))
    assert kept.find([ChatTokens([1])]) is None


def test_answers_depend_on_every_module_that_makes_them() -> None:
    made_by = {"folded.py", "logits.py", "layers.py", "answers.py", "mlx.py", "bnb.py", "weights.py"}
    assert made_by <= {path.name for path in own_code()}
