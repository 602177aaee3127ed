"""Records -> examples: the layouts of data, one row each, and the checks that each field needs.

| layout        | the question                    | the answer           | also read              |
|---------------|---------------------------------|----------------------|------------------------|
| messages      | messages: [{role, content}]     | (within)             | system                 |
| conversations | conversations: [{from, value}]  | (within)             | system                 |
| instruction   | instruction                     | output, response     | input, system, history |
| prompt        | prompt, a text or turns         | completion, response | system, history        |
| question      | question, query, user, input    | answer, response, …  | system, history        |
| text          | text                            | none: all of it is trained |                  |
| chosen        | any of these but text           | chosen               | system, input, history |

Messages, conversations and prompts may have `tools`. `chosen` is preference data, used if it is asked for.
Training needs an answer. Who only asks (`compare`, the proof of an export) takes records without one, and
knows further names of it. A field that is not in the table is named by `unread`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, NoReturn

from lorafold.chat.dialogue import Dialogue, calls_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.building import (
    INPUT_FIELDS,
    SYSTEM_FIELDS,
    Turns,
    conversation,
    first_text,
    instruction,
    of_objects,
    preferred,
    prompt_and_completion,
    question_and_answer,
)
from lorafold.records.packed import kind_of
from lorafold.records.preferences import refuse_preferences, refuse_unwanted
from lorafold.records.spellings import FIELD_WORDS, respelled
from lorafold.records.tools import DEFINED, defines, linked, read_tools
from lorafold.records.turns import (
    ROLES,
    is_parts,
    kind,
    text_of,
    unread_of_turn,
    void,
)

# Fields with the expected answer, which a comparison shows beside the models' answers; `chosen` is that of
# preference data. An answer field of a new layout belongs here too.
EXPECTED = (
    "expected",
    "completion",
    "response",
    "output",
    "answer",
    "assistant",
    "bot",
    "solution",
    "chosen",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a conversation, or a plain text.

    Attributes:
        place: where it was read ("data.jsonl:12").
        messages: the conversation (a `Dialogue` if there are tools), empty for a plain text.
        text: the plain text, None for a conversation.
        layout: name of the row that it was built by.
        trained: for each message whether it is trained; () for every assistant's turn.
    """

    place: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    layout: str = ""
    trained: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        assert not self.trained or len(self.trained) == len(self.messages)

    @property
    def marks(self) -> tuple[bool, ...]:
        """For each message whether it is trained."""
        return self.trained or tuple(message["role"] == "assistant" for message in self.messages)


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """A row of the table.

    Attributes:
        name: what `--layout` calls it.
        question: names of the field that asks, the first that a record has.
        answer: names of the field that answers; () if the answer stands in the question's field.
        further: other fields that are read.
        build: (record, name of the question's field, of the answer's or "", place) -> turns.
    """

    name: str
    question: tuple[str, ...]
    answer: tuple[str, ...]
    further: tuple[str, ...]
    build: Callable[[Mapping[str, Any], str, str, str], Turns]

    @property
    def fields(self) -> tuple[str, ...]:
        """All that it reads."""
        return (*self.question, *self.answer, *self.further)


def recognise(record: Any, place: str, layout: str = "auto", *, answered: bool = True) -> RecordLayout:
    """Choose the layout of a source by its first record.

    Args:
        record: as it was read.
        place: where.
        layout: a name of `LAYOUTS`, or "auto".
        answered: the record must have an answer.

    Raises:
        InputError: the record fits no layout.
    """
    fields = _object(record, place)
    _refuse_columns(fields, place)
    if layout != "auto":
        return LAYOUTS[layout]
    said = {name for name, value in fields.items() if not void(value)}
    rows = [row for row in LAYOUTS.values() if row is not _CHOSEN]
    # First by what has a value: tables have every column in every record.
    for names in (said, set(fields)):
        for row in rows:
            # An instruction that is empty is one all the same, if its input says something.
            asks = names.intersection(row.question) or (
                names.intersection(INPUT_FIELDS).intersection(row.further)
                and set(fields).intersection(row.question)
            )
            if asks and (not answered or not row.answer or names.intersection(row.answer)):
                _check_spelling(fields, row, place)
                return row
    if answered:
        asking = next((row for row in rows if said.intersection(row.question)), None)
        refuse_preferences(fields, asking.answer[0] if asking and asking.answer else "", place)
    for row in rows:  # the question or the answer is missing: say which
        if any(name in fields for name in (*row.question, *row.answer)):
            return row
    known = "; ".join(f"{row.name}: {', '.join((row.question[0], *row.answer[:1]))}" for row in rows)
    raise InputError(
        f"no known layout has the fields {', '.join(map(repr, fields)) or '(none)'} (known: {known})"[:600],
        at=place,
        fix=_renaming(fields, place),
    )


def _renaming(fields: Mapping[str, Any], place: str) -> str:
    """What to do with a record whose fields nobody knows."""
    if {"role", "from"} & set(fields) and {"content", "value"} & set(fields):
        return 'this is a turn alone: write {"messages": [turns]} as a record'
    kind, _ = kind_of(place.rpartition(":")[0])
    if kind not in (".csv", ".tsv") or not 1 <= len(fields) <= 3:
        return "rename the fields"
    header = ("text", "question,answer", "instruction,input,output")[len(fields) - 1]
    if kind == ".tsv":
        header = header.replace(",", "\t")
    above = f"write this line above it: {header}"
    if any(_is_said(name) for name in fields):
        return f"the first line is no header but data: {above}"
    return f"rename the columns; if the first line is no header, {above}"


def _is_said(name: str) -> bool:
    """Whether a column's name is rather something that somebody says."""
    return len(name) > 40 or name.rstrip().endswith((".", "?", "!", "。", "？", "！", "…"))


def build_example(
    record: Any, place: str, layout: RecordLayout, system: str | None = None, *, answered: bool = True
) -> Example:
    """Turn a record into an example.

    Args:
        record: as it was read.
        place: where ("data.jsonl:12").
        layout: of its source.
        system: system message for a conversation that has none.
        answered: it is for training: it must have an answer, and no character that a model never sees.

    Raises:
        InputError: a field is missing or of the wrong type, a role is unknown or in the wrong place.
    """
    fields = _object(record, place)
    question = _present(fields, layout.question)
    if not question:
        _missing(fields, layout, layout.question[0], place)
    if answered:
        answer = _present(fields, layout.answer)
        if layout.answer and not answer:
            _missing(fields, layout, layout.answer[0], place)
        _refuse_nul({name: value for name, value in fields.items() if name in layout.fields}, place)
    else:
        answer = next((name for name in EXPECTED if _answers(fields.get(name))), "")
    if layout.name == "text" and not (answer and not answered):
        return Example(place, text=text_of(fields[question], question, place), layout=layout.name)
    if answered:
        refuse_unwanted(fields, place)
    turns = layout.build(fields, question, answer, place)
    if answered and (not turns or turns[-1][0]["role"] == "user"):
        refuse_preferences(fields, "", place)
    _check_order(turns, question, place, answered=answered)
    own = first_text(fields, SYSTEM_FIELDS, place) if SYSTEM_FIELDS[0] in layout.further else ""
    if own and turns[0][0]["role"] == "system" and turns[0][0]["content"] != own:
        problem = f"system: {question} begins with another system message"
        raise InputError(problem, at=place, fix="keep one of the two")
    if (own or system) and turns[0][0]["role"] != "system":
        turns.insert(0, ({"role": "system", "content": own or system}, False))
    tools = read_tools(fields, place) if DEFINED[0] in layout.further else ()
    messages = Dialogue(linked([message for message, _ in turns], question, place), tools)
    found = Example(place, messages, layout=layout.name)
    marks = tuple(trained for _, trained in turns)
    return found if marks == found.marks else replace(found, trained=marks)


def unread(record: Mapping[str, Any], layout: RecordLayout) -> Iterator[str]:
    """Names of the fields of a record that its layout does not read; those without a value are passed over.

    A turn's own are named as "messages[].name".
    """
    known = layout.fields
    for name, value in record.items():
        spelled = _spelled(name)
        if spelled not in known or (spelled in DEFINED and not defines(value)):
            if not void(value):
                yield name
        elif spelled in DEFINED:
            continue
        elif isinstance(value, list | tuple):
            for turn in () if is_parts(value) else respelled(value, ROLES):
                if isinstance(turn, Mapping):
                    yield from (f"{name}[].{key}" for key in unread_of_turn(turn))


def _present(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of some names that has a value, else the first that is there, else ""."""
    there = [name for name in names if name in fields]
    return next((name for name in there if not void(fields[name])), there[0] if there else "")


def _missing(fields: Mapping[str, Any], layout: RecordLayout, name: str, place: str) -> NoReturn:
    got = ", ".join(map(repr, fields))
    problem = f"the field {name!r} is missing (layout {layout.name}, got {got})"
    fix = "add it"
    with contextlib.suppress(InputError):
        if (other := recognise(fields, place)).name != layout.name and _present(fields, other.question):
            fix = f"put records of the layout {other.name} into a file of their own"
    raise InputError(problem, at=place, fix=fix)


def _object(record: Any, place: str) -> Mapping[str, Any]:
    """A record with the table's own spelling of its fields, whatever their case."""
    if not isinstance(record, Mapping):
        problem = f"expected an object, got {kind(record)}"
        raise InputError(problem, at=place, fix="one record is one JSON object")
    spelled = {name: _spelled(name) for name in record}
    if all(name == known for name, known in spelled.items()) or len(set(spelled.values())) < len(record):
        return record
    return {spelled[name]: value for name, value in record.items()}


def _spelled(name: Any) -> Any:
    """A field's name as the table has it: headers of tables come as "Instruction", " output" or "回答"."""
    lower = name.strip().lower() if isinstance(name, str) else name
    lower = FIELD_WORDS.get(lower, lower)
    return lower if lower in _FIELDS else name


def _refuse_columns(fields: Mapping[str, Any], place: str) -> None:
    """Look whether a record is a whole table, written column by column (pandas' `to_json` does that)."""
    columns = [tuple(value) for value in fields.values() if isinstance(value, Mapping) and value]
    if len(columns) < 2 or len(columns) < len(fields) or len(set(columns)) > 1:
        return
    if all(str(key).isdecimal() for key in columns[0]):
        problem = f"a table written column by column: {', '.join(map(repr, fields))}"[:300]
        fix = 'write one record a line: to_json(orient="records", lines=True)'
        raise InputError(problem, at=place, fix=fix)


def _refuse_nul(value: Any, place: str, field: str = "") -> None:
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{field}: holds a NUL character", at=place, fix="remove it")
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_nul(item, place, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_nul(item, place, f"{field}[{index}]")


def _answers(value: Any) -> bool:
    """Whether a value can be an answer: a text, or turns or parts; `output` may also be a table's number."""
    return not void(value) and (isinstance(value, str) or (isinstance(value, list) and of_objects(value)))


# Which turns may follow one of a role; a turn that calls tools is one of its own kind.
_FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant", "call"),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant", "call"),
}


def _check_order(turns: Turns, field: str, place: str, *, answered: bool) -> None:
    """A system message first if any, then user and assistant in turn, and between them calls and results."""
    roles = [message["role"] for message, _ in turns]
    if answered and "assistant" not in roles:
        problem = f"{field}: no assistant turn, so there is nothing to learn"
        raise InputError(problem, at=place, fix="add an answer or remove the record")
    if not answered and "user" not in roles:
        problem = f"{field}: no user turn, so there is no question"
        raise InputError(problem, at=place, fix="add one or remove the record")
    before = ""
    for index, (message, _) in enumerate(turns):
        role = "call" if calls_of(message) else message["role"]
        if role not in _FOLLOWING[before]:
            expected = _FOLLOWING[before][-1 if before == "" else 0]
            problem = f"{field}[{index}]: wrong order: expected {expected}, got {message['role']}"
            behind = {"call": "the results of a call behind it", "tool": "an answer behind results"}
            fix = behind.get(before, "a turn of the user before each of the assistant")
            raise InputError(problem, at=place, fix=f"write {fix}")
        before = role


_CHOSEN = RecordLayout(
    "chosen",
    ("prompt", "instruction", "question", "query", "messages", "conversations", "chosen"),
    ("chosen",),
    (*SYSTEM_FIELDS, *INPUT_FIELDS, *DEFINED, "history"),
    preferred,
)
LAYOUTS = {
    row.name: row
    for row in (
        RecordLayout("messages", ("messages", "contents"), (), (*SYSTEM_FIELDS, *DEFINED), conversation),
        RecordLayout(
            "conversations",
            ("conversations", "conversation", "dialogue", "dialog"),
            (),
            (*SYSTEM_FIELDS, *DEFINED),
            conversation,
        ),
        RecordLayout(
            "instruction",
            ("instruction",),
            ("output", "response"),
            (*SYSTEM_FIELDS, *INPUT_FIELDS, "history"),
            instruction,
        ),
        RecordLayout(
            "prompt",
            ("prompt",),
            ("completion", "response"),
            (*SYSTEM_FIELDS, *DEFINED, "history"),
            prompt_and_completion,
        ),
        RecordLayout(
            "question",
            ("question", "query", "user", "human", "problem", "input"),
            ("answer", "response", "assistant", "bot", "solution", "output"),
            (*SYSTEM_FIELDS, "history"),
            question_and_answer,
        ),
        RecordLayout("text", ("text",), (), (), prompt_and_completion),
        _CHOSEN,
    )
}
_NEAR = 0.86  # difflib's likeness: one letter in eight
_FIELDS = frozenset(name for row in LAYOUTS.values() for name in row.fields) | frozenset(EXPECTED)


def _check_spelling(fields: Mapping[str, Any], layout: RecordLayout, place: str) -> None:
    """Look whether a record that only has an input has an instruction with a slip in its name."""
    if _present(fields, layout.question) != "input":
        return
    for name, value in fields.items():
        if (
            name not in _FIELDS
            and not void(value)
            and get_close_matches(str(name), ["instruction"], 1, _NEAR)
        ):
            problem = f"the field {name!r} is not known; 'instruction' is"
            raise InputError(problem, at=place, fix="rename it")
