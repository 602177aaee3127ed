"""The evaluation set: what is left of it, and its conversations as the proof of an export reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_base import tiny_tokenizer

from lorafold.errors import InputError
from lorafold.export.proof.chats import GENERAL, proof_chats
from lorafold.progress import silent
from lorafold.records.layouts import Example
from lorafold.train.config import TrainConfig
from lorafold.train.data.held_out import MOST, write_held_out
from lorafold.train.material import Material, read_material


def example(number: int) -> Example:
    return Example(
        f"d:{number}",
        (
            {"role": "system", "content": "You are 甄嬛."},
            {"role": "user", "content": f'Line\nand "quotes" {number}'},
            {"role": "assistant", "content": f"answer {number}"},
        ),
    )


def test_the_proof_reads_what_training_kept(tmp_path: Path) -> None:
    examples = [example(0), Example("t", text="a plain text"), example(1)]
    assert write_held_out(tmp_path, examples) == 2
    assert proof_chats(None, [tmp_path]) == [list(examples[0].messages), list(examples[2].messages)]


def test_a_large_set_is_taken_evenly(tmp_path: Path) -> None:
    assert write_held_out(tmp_path, [example(number) for number in range(1000)]) == MOST
    asked = [int(str(chat[1]["content"]).rpartition(" ")[2]) for chat in proof_chats(None, [tmp_path])]
    assert asked[0] == 0 and asked[-1] > 850 and asked == sorted(set(asked))


def material(tmp_path: Path, **options: Any) -> Material:
    """Of four conversations to train on and one, too long for 60 tokens, to evaluate on."""
    tiny_tokenizer(tmp_path / "base")
    pairs = [(f"q{i}", "a") for i in range(4)]
    for name, rows in (("d", pairs), ("e", [("q" * 90, "a")])):
        lines = (json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    config = TrainConfig(
        base="x",
        data=(str(tmp_path / "d.jsonl"),),
        eval_data=(str(tmp_path / "e.jsonl"),),
        out=tmp_path / "out",
        max_length=60,
        **options,
    )
    return read_material(config, tmp_path / "base", tmp_path / "work", silent)


def test_a_held_out_example_that_is_too_long_is_dropped_and_said(tmp_path: Path) -> None:
    found = material(tmp_path)
    assert found.held_out_tokens is not None and not found.held_out_tokens.sequences
    assert found.notes[0].startswith("data: 4 prompt; 4 sequences")
    assert found.notes[1].endswith("1 dropped, nothing left to learn (e.jsonl:1)")
    assert found.notes[2].startswith("of the evaluation set no example has a trained token left: nothing is")


@pytest.mark.parametrize("name", ["early_stopping_patience", "load_best_model_at_end"])
def test_a_run_that_goes_by_evaluations_needs_one(name: str, tmp_path: Path) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(InputError, match=rf"e.jsonl:1: of the evaluation set .* \(60\).* leave out --{flag}"):
        material(tmp_path, **{name: True})


def test_a_split_is_counted_apart(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(14)))
    tiny_tokenizer(tmp_path / "base")
    config = TrainConfig(base="x", data=(str(path),), out=tmp_path / "out", eval_split=0.2)
    found = read_material(config, tmp_path / "base", tmp_path / "work", silent)
    assert found.notes[0].startswith("data: 11 prompt; 11 sequences")
    assert found.notes[1].startswith("evaluation: 3 sequences")


def test_nothing_held_out_leaves_no_file(tmp_path: Path) -> None:
    assert write_held_out(tmp_path, [Example("t", text="a plain text")]) == 0
    assert not list(tmp_path.iterdir())
    assert [chat[0]["content"] for chat in proof_chats(None, [tmp_path])] == list(GENERAL)
