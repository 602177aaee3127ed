"""The fields of a record -> turns, each with whether it is trained: one function for each kind of layout.

A function takes (record, name of the field that asks, of the one that answers or "", place).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.turns import is_parts, list_of, read_turns, text_of, void

Turns = list[tuple[Message, bool]]
INPUT_FIELDS = ("input", "context")  # what an instruction is about
SYSTEM_FIELDS = ("system", "system_prompt")


def of_objects(value: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in value)


def first_text(fields: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    """The text of the first of some fields that has one."""
    name = next((name for name in names if not void(fields.get(name))), "")
    return text_of(fields[name], name, place) if name else ""


def _said(value: Any, field: str, role: str, place: str, *, trained: bool) -> Turns:
    """A text as a turn of its own, or a list of turns (TRL writes both)."""
    if isinstance(value, Mapping) and {"role", "from"} & set(value):  # LLaMA-Factory writes one turn so
        value = [value]
    if not (isinstance(value, list | tuple) and value and of_objects(value)) or is_parts(value):
        return [({"role": role, "content": text_of(value, field, place)}, trained)]
    return [(message, marked and trained) for message, marked in read_turns(value, field, place)]


def conversation(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    turns = read_turns(fields[question], question, place)
    if answer and turns and turns[-1][0]["role"] == "user":
        turns += _said(fields[answer], answer, "assistant", place, trained=True)
    return turns


def _history(fields: Mapping[str, Any], place: str) -> Turns:
    """Earlier turns: pairs of texts, or objects as in a conversation."""
    history = list_of(fields["history"], "history", place) if fields.get("history") else []
    if history and of_objects(history):
        return read_turns(history, "history", place)
    turns: Turns = []
    for index, pair in enumerate(history):
        turn = list_of(pair, f"history[{index}]", place)
        if len(turn) != 2:
            problem = f"history[{index}]: expected [user, answer], got {len(turn)} entries"
            raise InputError(problem, at=place, fix="write pairs")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            message: Message = {"role": role, "content": text_of(content, f"history[{index}]", place)}
            turns.append((message, role == "assistant"))
    return turns


def instruction(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    parts = (text_of(fields[question], question, place), first_text(fields, INPUT_FIELDS, place))
    asked: Message = {"role": "user", "content": "\n".join(part for part in parts if part)}
    turns = [*_history(fields, place), (asked, False)]
    return turns + (_said(fields[answer], answer, "assistant", place, trained=True) if answer else [])


def question_and_answer(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    return [*_history(fields, place), *_asked(fields, question, answer, place)]


def prompt_and_completion(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    """Only the completion is trained, also if there are answers before it."""
    before = [(message, False) for message, _ in _history(fields, place)]
    return [*before, *_asked(fields, question, answer, place)]


def _asked(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    turns = _said(fields[question], question, "user", place, trained=False)
    return turns + (_said(fields[answer], answer, "assistant", place, trained=True) if answer else [])


def preferred(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    """The chosen answer, which may be a whole conversation itself; only its last turn is trained."""
    chosen = _said(fields["chosen"], "chosen", "assistant", place, trained=True)
    if chosen[0][0]["role"] == "assistant":
        if question == "chosen":
            raise InputError("chosen: no question stands before it", at=place, fix="add a prompt")
        build = instruction if question == "instruction" else prompt_and_completion
        chosen = [*build(fields, question, "", place), *chosen]
    return [
        (message, trained and index == len(chosen) - 1) for index, (message, trained) in enumerate(chosen)
    ]
