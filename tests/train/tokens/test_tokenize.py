"""Tokens and masks: equal to transformers' chat template on the real tokenizers, and counted when cut."""

from __future__ import annotations

import functools
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shared
from tiny_base import CHATML, tiny_tokenizer

from lorafold.chat.tokenizer import ChatTokenizer, Encoded
from lorafold.errors import InputError
from lorafold.records.layouts import Example
from lorafold.train.tokens.collate import IGNORED, make_batch, plan_epoch
from lorafold.train.tokens.encode_many import encode_all
from lorafold.train.tokens.encode_one import encode_example, end_of_text
from lorafold.train.tokens.tokenize import tokenize

TURNS = (
    {"role": "system", "content": "You are 甄嬛."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am 甄嬛, 17 years old. 🌙"},
    {"role": "user", "content": "  Is that\n\nso?  "},
    {"role": "assistant", "content": "It is."},
)
# Tokenizer, template of ours where the folder has none, what is trained before and after each answer's text,
# and the EOS that we add where the template's end of turn is no token of the vocabulary.
FAMILIES = {
    "qwen2": (None, "", "<|im_end|>", ""),
    "llama2": ("llama-2", "", " </s>", ""),
    "deepseek-llm": ("deepseek-llm", " ", "<｜end▁of▁sentence｜>", ""),
    "llama3": ("chatml", "", "<|im_end|>\n", "<|end_of_text|>"),
}


@functools.cache
def both(name: str) -> tuple[ChatTokenizer, Any]:
    """Our tokenizer of a family and transformers', with the same template; loaded once for all tests."""
    from transformers import AutoTokenizer

    folder = shared(f"tokenizers/{name}")
    ours = ChatTokenizer.from_folder(folder, FAMILIES[name][0])
    theirs = AutoTokenizer.from_pretrained(folder)
    if FAMILIES[name][0] is not None:
        theirs.chat_template = ours.template.source
    return ours, theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_transformers_chat_template(name: str) -> None:
    ours, theirs = both(name)
    _, before, after, added = FAMILIES[name]
    for turns in (TURNS[1:3], TURNS[:3], TURNS, TURNS[1:]):
        expected = theirs.apply_chat_template(list(turns), return_dict=True)["input_ids"]
        whole = tokenize([Example("x", turns)], ours, 4096).sequences[0]
        assert whole.ids == [*expected, *([theirs.convert_tokens_to_ids(added)] if added else [])]
        # The mask covers each assistant's content and the token that ends it, and nothing else.
        spans, current = [], list[int]()
        for token, trained in zip([*whole.ids, -1], [*whole.mask, False], strict=True):
            if trained:
                current.append(token)
            elif current:
                spans.append(theirs.decode(current))
                current = []
        answers = [before + str(turn["content"]) + after for turn in turns if turn["role"] == "assistant"]
        assert spans == [*answers[:-1], answers[-1] + added]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_last_answer_adds_no_end_and_is_not_trained(name: str, blank: str) -> None:
    ours, theirs = both(name)
    last = {"role": "assistant", "content": blank}
    alone = Example("x:1", (TURNS[1], last))
    for turns in (alone.messages, (*TURNS[:4], last)):
        encoded = encode_example(Example("x", turns), ours)
        assert encoded.ids == theirs.apply_chat_template(list(turns), return_dict=True)["input_ids"]
    # What was answered before it is trained as ever, and nothing after it.
    whole = tokenize([Example("x", TURNS[:3])], ours, 4096)
    assert sum(encoded.mask) == whole.trained - bool(FAMILIES[name][3])
    some = tokenize([alone, Example("x:2", TURNS[:3])], ours, 4096)
    assert (some.dropped, some.blank, some.sequences) == (("x:1",), 1, whole.sequences)
    assert some.summary().endswith("nothing left to learn (x:1), 1 of them without an answer to train")
    with pytest.raises(InputError, match="x:1: every answer is empty"):
        tokenize([alone], ours, 4096)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_text_begins_as_transformers_begins_it(name: str) -> None:
    """With BOS for Llama 2 and DeepSeek; Qwen2 has none."""
    ours, theirs = both(name)
    for text in ("Hello world", " 你好 ", "<s>x</s>", ""):
        encoded = encode_example(Example("x", text=text), ours)
        expected = theirs(text, split_special_tokens=True)["input_ids"]
        assert encoded.ids == [*expected, theirs.eos_token_id] and all(encoded.mask)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return ChatTokenizer.from_folder(folder)


def chat(answer: str) -> Example:
    return Example(
        f"d:{answer}", ({"role": "user", "content": "hi"}, {"role": "assistant", "content": answer})
    )


def test_cut_and_dropped_are_counted(tiny: ChatTokenizer) -> None:
    whole = tokenize([chat("abc"), chat("abcdefgh")], tiny, 1024)
    short, long = (len(sequence.ids) for sequence in whole.sequences)
    assert (whole.cut, whole.dropped, whole.lost_tokens) == (0, (), 0)
    assert whole.tokens == short + long
    cut = tokenize([chat("abc"), chat("abcdefgh")], tiny, short)
    assert (cut.cut, cut.dropped, cut.lost_tokens) == (1, (), long - short)
    assert "1 cut at the end" in cut.summary()
    head = short - len("abc") - 2  # the answer, its end of turn, and the newline that the template adds
    few = tokenize([chat("abc"), Example("t", text="plain text of some length")], tiny, head)
    assert few.dropped == ("d:abc",) and few.cut == 0
    assert "1 dropped, nothing left to learn (d:abc)" in few.summary()
    with pytest.raises(InputError, match="no example has a trained token left"):
        tokenize([chat("abc")], tiny, head)


def test_answer_is_trained_with_its_end_of_turn(tiny: ChatTokenizer) -> None:
    sequence = tokenize([chat("abc")], tiny, 1024).sequences[0]
    trained = [token for token, on in zip(sequence.ids, sequence.mask, strict=True) if on]
    assert tiny.decode(trained, skip_special=False) == "abc<|im_end|>"
    assert tiny.pad_id is not None and tiny.pad_id not in trained  # the end is not the padding


def test_control_token_text_stays_text(tiny: ChatTokenizer) -> None:
    sequence = tokenize([chat("x<|im_end|>y")], tiny, 1024).sequences[0]
    end = tiny.tokenizer.token_to_id("<|im_end|>")
    trained = [token for token, on in zip(sequence.ids, sequence.mask, strict=True) if on]
    assert trained.count(end) == 1 and trained[-1] == end


def test_plain_text_is_split_and_ends(tiny: ChatTokenizer) -> None:
    whole = tokenize([Example("t", text="abcdefghij")], tiny, 4)
    ids = [token for sequence in whole.sequences for token in sequence.ids]
    assert ids[-1] == end_of_text(tiny) and len(ids) == 11 and whole.cut == 0
    assert [len(sequence.ids) for sequence in whole.sequences] == [4, 4, 3]


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=200),
    st.integers(1, 9),
    st.integers(0, 5),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_each_example_once(lengths: list[int], size: int, epoch: int, group: bool) -> None:
    plan = plan_epoch(lengths, size, seed=3, epoch=epoch, group=group)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // size) and all(0 < len(batch) <= size for batch in plan)
    assert plan == plan_epoch(lengths, size, seed=3, epoch=epoch, group=group)


def test_grouping_saves_padding_and_epochs_differ() -> None:
    lengths = [(7 * i) % 101 + 1 for i in range(400)]

    def padding(group: bool) -> int:
        plan = plan_epoch(lengths, 8, seed=0, epoch=0, group=group)
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in plan)

    assert padding(True) < padding(False) / 3
    assert plan_epoch(lengths, 8, seed=0, epoch=0, group=True) != plan_epoch(
        lengths, 8, seed=0, epoch=1, group=True
    )


def test_batch_by_hand() -> None:
    batch = make_batch([Encoded([5, 6, 7], [True, False, True]), Encoded([8, 9], [False, True])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[IGNORED, 7, IGNORED], [9, IGNORED, IGNORED]]
    assert (batch.tokens, batch.trained) == (5, 2)


MANY = [
    Example(
        f"d:{i}", ({"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a" * (i % 7)})
    )
    if i % 3
    else Example(f"d:{i}", text=f"text {i} <|im_end|>")
    for i in range(300)
]


def test_processes_give_the_same_in_the_same_order(tmp_path: Path) -> None:
    """Control tokens in text stay text in the child processes too."""
    tiny_tokenizer(tmp_path)
    tokenizer = ChatTokenizer.from_folder(tmp_path)
    seen: list[tuple[float, float | None, str]] = []

    def progress(step: str, done: float, total: float | None, note: str = "") -> None:
        assert step == "tokenize"
        seen.append((done, total, note))

    apart = tokenize(MANY, tokenizer, 1000, progress, processes=3)
    assert apart == tokenize(MANY, tokenizer, 1000, processes=1)
    assert [done for done, _, _ in seen] == [64, 128, 192, 256, 300]
    assert all(total == 300 for _, total, _ in seen)
    assert [note.endswith(" left") for _, _, note in seen] == [True] * 4 + [False]


def test_of_several_wrong_examples_the_first_is_named_by_processes_too(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    picky = tmp_path / "picky.jinja"
    picky.write_text("{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    tokenizer = ChatTokenizer.from_folder(tmp_path, str(picky))
    bad = [Example(f"bad:{i}", ({"role": "user", "content": "bad"}, MANY[1].messages[1])) for i in range(2)]
    with pytest.raises(InputError, match=r"bad:0: .*refuses"):
        tokenize([*MANY[:200], bad[0], *MANY[200:], bad[1]], tokenizer, 1000, processes=2)


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children")
    tiny_tokenizer(tmp_path)
    tokenizer = ChatTokenizer.from_folder(tmp_path)
    expected = list(encode_all(MANY, tokenizer, processes=1))
    before = set(children.read_text().split())
    encoded = encode_all(MANY, tokenizer, processes=2)
    found = [next(encoded)]
    started = set(children.read_text().split()) - before
    assert len(started) == 2
    for pid in started:
        os.kill(int(pid), signal.SIGKILL)
    found += encoded
    assert found == expected
    assert set(children.read_text().split()) == before


@pytest.mark.slow
def test_what_lasts_shows_the_time_left_and_takes_more_processes(tmp_path: Path) -> None:
    """640 texts of some 10 ms each: this process looks at what is left after a second."""
    tiny_tokenizer(tmp_path)
    tokenizer = ChatTokenizer.from_folder(tmp_path)
    notes: list[tuple[float, str]] = []
    texts = [Example(f"d:{i}", text=f"{i} " + "word " * 3000) for i in range(640)]
    whole = tokenize(texts, tokenizer, 1 << 20, lambda step, done, total, note="": notes.append((done, note)))
    assert len(whole.sequences) == 640 and not whole.dropped
    assert notes == sorted(notes, key=lambda row: row[0]) and notes[-1] == (640, "")
    assert all(re.fullmatch(r"\d+:\d\d left", note) for _, note in notes[:-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_only_turns_that_are_marked_are_trained(name: str) -> None:
    ours, theirs = both(name)
    _, before, after, added = FAMILIES[name]
    every = encode_example(Example("x", TURNS), ours)
    for trained in ((False,) * 4 + (True,), (False, False, True, False, False), (False,) * 5):
        marked = encode_example(Example("x", TURNS, trained=trained), ours)
        last = added if trained[-1] else ""
        kept = theirs.decode([token for token, on in zip(marked.ids, marked.mask, strict=True) if on])
        contents = [str(turn["content"]) for turn, on in zip(TURNS, trained, strict=True) if on]
        assert kept == "".join(before + content + after for content in contents) + last
        assert marked.ids == (every.ids if trained[-1] or not added else every.ids[:-1])
    some = tokenize([Example("x", TURNS), Example("y", TURNS, trained=(False,) * 5)], ours, 4096)
    assert (some.dropped, some.blank) == (("y",), 1)


def test_examples_whose_answer_lies_behind_the_cut_are_told_from_those_without_one() -> None:
    ours, _ = both(next(iter(FAMILIES)))

    def asked(place: str, question: str, answer: str) -> Example:
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        return Example(place, turns)

    some = tokenize([asked("a", "q", "a"), asked("b", "q", ""), asked("c", "q " * 300, "a")], ours, 100)
    assert (some.dropped, some.blank, some.beyond) == (("b", "c"), 1, "c")
    note = "1 examples are dropped, since what stands before their answer fills --max-length (first: c)"
    assert some.notes == (note,)
    assert tokenize([asked("a", "q", "a"), asked("b", "q", "")], ours, 100).notes == ()
