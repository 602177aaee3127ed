"""Reasoning beside an answer: trained where the template writes it, and counted where it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chats import TOKENS, all_templates
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shared

from lorafold.chat.fragments import Cut, cut_conversation
from lorafold.chat.template import ChatTemplate
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError

CONTROLS = frozenset(("<|im_start|>", "<|im_end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"))
QWEN3 = "Qwen-Qwen3-0.6B.jinja"
R1 = "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja"


def template(name: str) -> ChatTemplate:
    return ChatTemplate((shared("templates") / name).read_text(), {}, CONTROLS, name)


def chat(*answers: dict[str, str]) -> list[dict[str, str]]:
    """Each answer behind a question."""
    return [
        turn
        for answer in answers
        for turn in ({"role": "user", "content": "q?"}, {"role": "assistant", **answer})
    ]


def trained(cut: Cut) -> list[str]:
    """Trained stretches, neighbours joined."""
    runs, before = list[str](), False
    for piece in cut.fragments:
        if piece.trained:
            runs[-1:] = [runs[-1] + piece.text] if before else [*runs[-1:], piece.text]
        before = piece.trained
    return runs


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_that_the_template_writes_is_trained_with_its_answer(name: str) -> None:
    """The ids' oracle is transformers, below; here the span, with the marks around the thoughts."""
    messages = chat({"content": "Two.", name: "one and one"})
    cut = cut_conversation(template(QWEN3), messages)
    assert trained(cut) == ["<think>\none and one\n</think>\n\nTwo.<|im_end|>"]
    assert cut.left_out == []
    assert trained(cut_conversation(template(QWEN3), messages, trained=[False, False])) == []


def test_reasoning_that_the_template_drops_is_told_word_for_word() -> None:
    """Qwen3 writes it behind the last question only, R1 never; both cut it out of a content too."""
    thoughts = ("one and one", "2 + 2")
    answers = ("Two.", "Four.")
    pairs = list(zip(thoughts, answers, strict=True))
    fields = chat(*({"content": answer, "thinking": thought} for thought, answer in pairs))
    assert cut_conversation(template(QWEN3), fields).left_out == ["one and one"]
    assert cut_conversation(template(R1), fields).left_out == ["one and one", "2 + 2"]
    inside = chat(*({"content": f"<think>\n{thought}\n</think>\n\n{answer}"} for thought, answer in pairs))
    (lost,) = cut_conversation(template(QWEN3), inside).left_out
    assert "one and one" in lost and "Two." not in lost
    for thought, lost in zip(thoughts, cut_conversation(template(R1), inside).left_out, strict=True):
        assert thought in lost


def test_the_same_words_elsewhere_do_not_hide_what_is_left_out() -> None:
    messages = chat({"content": "Two, that is one and one.", "reasoning": "one and one"})
    assert cut_conversation(template(R1), messages).left_out == ["one and one"]


def test_control_tokens_in_thoughts_stay_text() -> None:
    cut = cut_conversation(template(QWEN3), chat({"content": "a", "thinking": "<|im_end|> ends it"}))
    assert sum(piece.special for piece in cut.fragments) == 4
    assert trained(cut) == ["<think>\n<|im_end|> ends it\n</think>\n\na<|im_end|>"]
    lost = cut_conversation(template(R1), chat({"content": "a", "thinking": "<|im_end|> ends it"})).left_out
    assert lost == ["<|im_end|> ends it"]


words = st.text(st.sampled_from(list("ab \n<>/漢")), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.sampled_from([QWEN3, R1]))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_not_said_to_be_left_out(turns: list[tuple[str, str]], name: str) -> None:
    """A thought is in the rendering or told, and an ordinary content is never told."""
    messages = chat(*({"content": content, "reasoning_content": thought} for content, thought in turns))
    cut = cut_conversation(template(name), messages)
    text = "".join(piece.text for piece in cut.fragments)
    assert text == template(name).render(messages)
    thoughts = [thought for _, thought in turns]
    assert cut.left_out == (thoughts[:-1] if name == QWEN3 else thoughts)
    plain = cut_conversation(template(name), chat(*({"content": content} for content, _ in turns)))
    assert not any(content in plain.left_out for content, _ in turns if "</think>" not in content)


def thinking_tokenizer(folder: Path, name: str) -> tuple[ChatTokenizer, Any]:
    """Qwen2's tokenizer with the template and the unmarked <think> tokens of a reasoning model."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(shared("tokenizers/qwen2"))
    theirs.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    theirs.chat_template = (shared("templates") / name).read_text()
    theirs.save_pretrained(folder)
    return ChatTokenizer.from_folder(folder), theirs


@pytest.mark.slow
def test_ids_equal_transformers_with_reasoning(tmp_path: Path) -> None:
    ours, theirs = thinking_tokenizer(tmp_path, QWEN3)
    messages = chat(
        {"content": "Two.", "reasoning_content": "x"}, {"content": "甲", "reasoning_content": "hm\n乙"}
    )
    encoded = ours.encode_chat(messages)
    assert encoded.ids == theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert encoded.left_out == len(ours.tokenize("x", False))
    kept = [token for token, on in zip(encoded.ids, encoded.mask, strict=True) if on]
    assert theirs.decode(kept) == "Two.<|im_end|><think>\nhm\n乙\n</think>\n\n甲<|im_end|>"


@pytest.mark.slow
def test_every_template_trains_a_thought_or_tells_that_it_is_left_out() -> None:
    """Also the templates that write it in a way of their own."""
    written = told = 0
    for name, source in all_templates().items():
        known = ChatTemplate(source, TOKENS, frozenset(("<s>", "</s>", "<|im_end|>")), name)
        messages = chat({"content": "Two."}, {"content": "Four.", "reasoning_content": "Zthought7"})
        try:
            cut = cut_conversation(known, messages)
        except InputError:
            continue
        shown = "Zthought7" in "".join(piece.text for piece in cut.fragments)
        assert ("Zthought7" in cut.left_out) != shown, name
        assert any("Zthought7" in run for run in trained(cut)) == shown, name
        written, told = written + shown, told + (not shown)
    assert written > 8 and told > 8
