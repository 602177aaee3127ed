"""The evaluation set: what says the same stays on one side, and what leaks from another file is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shared

from lorafold.errors import InputError
from lorafold.records.layouts import Example
from lorafold.train.config import TrainConfig
from lorafold.train.data.load import load_splits
from lorafold.train.data.split import content_key, draw_split


def example(text: str, answer: str = "a", system: str | None = None) -> Example:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Example("d", ({"role": "system", "content": system}, *turns) if system else tuple(turns))


def keys_apart(examples: list[Example], share: float, seed: int) -> set[int]:
    held_out, _ = draw_split(examples, share, seed)
    inside = {content_key(examples[index]) for index in held_out}
    assert inside.isdisjoint(content_key(e) for i, e in enumerate(examples) if i not in held_out)
    return held_out


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=40),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_no_content_is_on_both_sides(contents: list[int], share: float, seed: int) -> None:
    examples = [example(f"q{number}") for number in contents]
    if len(set(contents)) == 1:
        with pytest.raises(InputError, match="that all say the same leave nothing to train on"):
            draw_split(examples, share, seed)
        return
    held_out = keys_apart(examples, share, seed)
    assert 0 < len(held_out) < len(examples)
    wanted = max(1, round(len(examples) * share))
    singles = sum(count == 1 for count in Counter(contents).values())
    assert len(held_out) == wanted or singles < wanted  # with enough single examples the share is exact


def test_the_same_in_another_dress_is_a_copy() -> None:
    variants = [
        example("Who  are you?\n", "I AM"),
        example(" who are You?", "i am "),
        example("Ｗｈｏ are you?", "I am"),
        example("Who are you?", "I am", system="be kind"),
    ]
    assert len({content_key(one) for one in variants}) == 1
    assert content_key(example("Who are you?", "I was")) != content_key(variants[0])
    texts = [Example("d", text=text) for text in ("a  b", "A b\n")]
    assert content_key(texts[0]) == content_key(texts[1])
    examples = variants + [example(f"q{number}") for number in range(16)]
    for seed in range(20):
        keys_apart(examples, 0.2, seed)


def test_without_copies_the_draw_is_as_ever() -> None:
    """A split of earlier versions is drawn again, so that a run can be compared with one of then."""
    import random

    examples = [example(str(number)) for number in range(40)]
    held_out, notes = draw_split(examples, 0.2, 7)
    assert held_out == set(random.Random(7).sample(range(40), 8)) and notes == ()


def splits(tmp_path: Path, rows: list[dict[str, str]], **options: Any) -> Any:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows))
    return load_splits(TrainConfig(base="x", data=(str(path),), out=tmp_path / "o", **options))


def test_copies_are_said(tmp_path: Path) -> None:
    rows = [{"prompt": "who?", "completion": "me"}] * 10 + [
        {"prompt": f"q{i}", "completion": "a"} for i in range(20)
    ]
    data, held_out = splits(tmp_path, rows, eval_split=0.2)
    assert (len(data.examples), len(held_out.examples)) == (24, 6)
    note = "9 of 30 examples repeat another: copies stay together, for training or for evaluation"
    assert held_out.notes == (note,)
    _, few = splits(tmp_path, [*rows[:10], *rows[:10], {"prompt": "q", "completion": "a"}], eval_split=0.2)
    assert len(few.examples) == 1 and "1 examples are held out instead of 4" in few.notes[0]


def test_evaluation_data_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(5)]
    path = tmp_path / "e.jsonl"
    path.write_text('{"prompt": "new", "completion": "a"}\n{"prompt": " Q3", "completion": "A"}\n')
    _, held_out = splits(tmp_path, rows, eval_data=(str(path),))
    said = "1 of 2 evaluation examples are trained on too (first: e.jsonl:2)"
    assert held_out.notes[0].startswith(said) and len(held_out.examples) == 2
    path.write_text('{"prompt": "new", "completion": "a"}\n')
    assert splits(tmp_path, rows, eval_data=(str(path),))[1].notes == ()


def test_no_line_of_huanhuan_leaks() -> None:
    """12 of 373 did when the split was drawn by position."""
    path = shared("data/huanhuan.json")
    data, held_out = load_splits(TrainConfig(base="x", data=(str(path),), out=Path("x"), eval_split=0.1))
    assert held_out is not None and len(held_out.examples) == 373
    trained = {json.dumps(list(one.messages)) for one in data.examples}
    assert sum(json.dumps(list(one.messages)) in trained for one in held_out.examples) == 0
