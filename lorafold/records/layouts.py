"""Records -> examples: the layouts of data, one row each, and the checks that each field needs.

| layout        | the question                    | the answer         | also read              |
|---------------|---------------------------------|--------------------|------------------------|
| messages      | messages: [{role, content}]     | (within)           | system, tools          |
| conversations | conversations: [{from, value}]  | (within)           | system, tools          |
| instruction   | instruction                     | output, response   | input, system, history |
| prompt        | prompt, a text or turns         | completion, response | system, tools        |
| question      | question, query, user           | answer, response,  | system                 |
|               |                                 | assistant          |                        |
| text          | text                            | none: all of it is trained |                |

Training needs an answer. Who only asks (`compare`, the proof of an export) takes records without one, and
knows further names of it. A field that is not in the table is named by `unread`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafold.chat.dialogue import Dialogue, calls_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.tools import DEFINED, defines, linked, read_tools
from lorafold.records.turns import is_parts, kind, list_of, read_turns, text_of, unread_of_turn, void

# Fields with the expected answer, which a comparison shows beside the models' answers; `chosen` is that of
# preference data. An answer field of a new layout belongs here too.
EXPECTED = ("expected", "completion", "response", "output", "answer", "assistant", "chosen")


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


Turns = list[tuple[Message, bool]]


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
    if layout != "auto":
        return LAYOUTS[layout]
    said = {name for name, value in fields.items() if not void(value)}
    # First by what has a value: tables have every column in every record.
    for names in (said, set(fields)):
        for row in LAYOUTS.values():
            if names.intersection(row.question) and (
                not answered or not row.answer or names.intersection(row.answer)
            ):
                return row
    for row in LAYOUTS.values():  # the question or the answer is missing: say which
        if any(name in fields for name in (*row.question, *row.answer)):
            return row
    known = "; ".join(
        f"{row.name}: {', '.join((row.question[0], *row.answer[:1]))}" for row in LAYOUTS.values()
    )
    raise InputError(
        f"no known layout has the fields {', '.join(map(repr, fields)) or '(none)'} (known: {known})",
        at=place,
        fix="rename the fields",
    )


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
    question = _present(fields, layout.question) or _missing(fields, layout, layout.question[0], place)
    if answered:
        answer = _present(fields, layout.answer)
        if layout.answer and not answer:
            _missing(fields, layout, layout.answer[0], place)
        _refuse_nul({name: value for name, value in fields.items() if name in layout.fields}, place)
    else:
        answer = next((name for name in EXPECTED if _answers(fields.get(name))), "")
    if layout.name == "text" and not (answer and not answered):
        return Example(place, text=text_of(fields[question], question, place), layout=layout.name)
    turns = layout.build(fields, question, answer, place)
    _check_order(turns, question, place, answered=answered)
    own = _optional(fields, "system", place) if "system" in layout.further else ""
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
            for turn in value:
                if isinstance(turn, Mapping) and not is_parts(value):
                    yield from (f"{name}[].{key}" for key in unread_of_turn(turn))


def _present(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of some names that has a value, else the first that is there, else ""."""
    there = [name for name in names if name in fields]
    return next((name for name in there if not void(fields[name])), there[0] if there else "")


def _missing(fields: Mapping[str, Any], layout: RecordLayout, name: str, place: str) -> str:
    got = ", ".join(map(repr, fields))
    problem = f"the field {name!r} is missing (layout {layout.name}, got {got})"
    raise InputError(problem, at=place, fix="add it")


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
    """A field's name as the table has it: headers of tables come as "Instruction" or " output"."""
    lower = name.strip().lower() if isinstance(name, str) else name
    return lower if lower in _FIELDS else name


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
    return not void(value) and (isinstance(value, str) or (isinstance(value, list) and _of_objects(value)))


def _of_objects(value: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in value)


def _optional(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    return "" if value is None else text_of(value, name, place)


def _said(value: Any, field: str, role: str, place: str, *, trained: bool) -> Turns:
    """A text as a turn of its own, or a list of turns (TRL writes both)."""
    if not (isinstance(value, list | tuple) and value and _of_objects(value)) or is_parts(value):
        return [({"role": role, "content": text_of(value, field, place)}, trained)]
    return [(message, marked and trained) for message, marked in read_turns(value, field, place)]


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


def _conversation(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    turns = read_turns(fields[question], question, place)
    if answer and turns and turns[-1][0]["role"] == "user":
        turns += _said(fields[answer], answer, "assistant", place, trained=True)
    return turns


def _instruction(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    turns: Turns = []
    history = fields.get("history")
    for index, pair in enumerate(list_of(history, "history", place) if history else []):
        turn = list_of(pair, f"history[{index}]", place)
        if len(turn) != 2:
            problem = f"history[{index}]: expected [user, answer], got {len(turn)} entries"
            raise InputError(problem, at=place, fix="write pairs")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            message: Message = {"role": role, "content": text_of(content, f"history[{index}]", place)}
            turns.append((message, role == "assistant"))
    parts = (text_of(fields[question], question, place), _optional(fields, "input", place))
    turns.append(({"role": "user", "content": "\n".join(part for part in parts if part)}, False))
    return turns + (_said(fields[answer], answer, "assistant", place, trained=True) if answer else [])


def _prompt(fields: Mapping[str, Any], question: str, answer: str, place: str) -> Turns:
    """Only the completion is trained, also if the prompt is a conversation with answers in it."""
    turns = _said(fields[question], question, "user", place, trained=False)
    return turns + (_said(fields[answer], answer, "assistant", place, trained=True) if answer else [])


_BESIDE = ("system", *DEFINED)  # what may stand beside a conversation
LAYOUTS = {
    row.name: row
    for row in (
        RecordLayout("messages", ("messages",), (), _BESIDE, _conversation),
        RecordLayout("conversations", ("conversations", "conversation"), (), _BESIDE, _conversation),
        RecordLayout(
            "instruction",
            ("instruction",),
            ("output", "response"),
            ("input", "system", "history"),
            _instruction,
        ),
        RecordLayout("prompt", ("prompt",), ("completion", "response"), _BESIDE, _prompt),
        RecordLayout(
            "question",
            ("question", "query", "user"),
            ("answer", "response", "assistant"),
            ("system",),
            _prompt,
        ),
        RecordLayout("text", ("text",), (), (), _prompt),
    )
}
_FIELDS = frozenset(name for row in LAYOUTS.values() for name in row.fields) | frozenset(EXPECTED)
