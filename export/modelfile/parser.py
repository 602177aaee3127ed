"""Ollama's Modelfile: its commands, written so that Ollama's parser reads back what was meant.

The rules are those of Ollama's `parser/parser.go` (0.33):
- a command is a word, blanks and a value; `#` begins a comment line; `PARAMETER` has a name before its value;
- a value ends at a line break unless a quote is open; quotes are `"` or three of them, without escapes;
- runes that Go calls not printable are dropped outside of blanks and line breaks, without a word;
- a value in three quotes ends where three quotes stand before a line break.
So a value is written in the first form that parses back to itself, and refused where none does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorafold.errors import InputError

Parameter = int | float | bool

_COMMANDS = frozenset(
    (
        *("adapter", "draft", "from", "license", "message", "parameter", "parser", "renderer"),
        *("requires", "system", "template", "capability"),
    )
)
_ROLES = frozenset(("system", "user", "assistant"))

# Ollama's `api.Options` and `api.Runner`: what PARAMETER takes, and as what; other names are errors there.
PARAMETERS: Mapping[str, type] = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed"), int),
    **dict.fromkeys(("num_predict", "top_k", "repeat_last_n"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repeat_penalty"), float),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), float),
    "use_mmap": bool,
}


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says.

    Args:
        model: FROM: a path or a model's name.
        parts: further FROM lines: the other files of a split GGUF, which Ollama 0.30 and later put together.
        adapter: ADAPTER: a path, or None.
        template: TEMPLATE: a Go template, or None where the GGUF's own Jinja counts.
        system: SYSTEM, or None.
        stops: PARAMETER stop, one each.
        parameters: the other PARAMETERs.
        parser: PARSER: who reads the answer, or None. With any, Ollama renders the prompt by the TEMPLATE.
        renderer: RENDERER: a prompt that is built into Ollama, or None.
        requires: REQUIRES: the oldest Ollama version that can run this, or None. Ollama shows it and runs the
            model all the same.
        comments: lines at the top, without their `#`.
    """

    model: str
    adapter: str | None = None
    template: str | None = None
    system: str | None = None
    stops: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    parser: str | None = None
    renderer: str | None = None
    requires: str | None = None
    comments: tuple[str, ...] = field(default=(), compare=False)

    def render(self) -> str:
        """The file's text.

        Returns:
            Text that `parse` reads back to this object.

        Raises:
            InputError: a value cannot be written, or a parameter is not one of Ollama's.
        """
        lines = [f"# {line}".rstrip() for comment in self.comments for line in comment.splitlines()]
        lines += [_command("FROM", name) for name in (self.model, *self.parts)]
        if self.adapter is not None:
            lines.append(_command("ADAPTER", self.adapter))
        if self.requires is not None:
            lines.append(_command("REQUIRES", self.requires))
        if self.renderer is not None:
            lines.append(_command("RENDERER", self.renderer))
        if self.parser is not None:
            lines.append(_command("PARSER", self.parser))
        if self.template is not None:
            lines.append(_command("TEMPLATE", self.template))
        if self.system is not None:
            lines.append(_command("SYSTEM", self.system))
        lines += [_command("PARAMETER stop", stop) for stop in self.stops]
        for name, value in self.parameters.items():
            kind = PARAMETERS.get(name)
            if kind is None:
                raise InputError(
                    f"Ollama has no parameter {name!r}",
                    at="Modelfile",
                    fix=f"use one of {', '.join(PARAMETERS)}",
                )
            lines.append(f"PARAMETER {name} {_number(kind, value)}")
        text = "\n".join(lines) + "\n"
        assert parse(text) == self, "the Modelfile does not read back"
        return text


def expressible(value: str) -> bool:
    """Whether a value survives Ollama's parser in some spelling."""
    return _spelled(value) is not None


def printed(character: str) -> bool:
    """Go's strconv.IsPrint: letters, marks, numbers, punctuation, symbols, and the ASCII space."""
    return character == " " or unicodedata.category(character)[0] in "LMNPS"


def _number(kind: type, value: Parameter) -> str:
    if kind is bool:
        return "true" if value else "false"
    return str(int(value)) if kind is int else repr(float(value))


def _spelled(value: str) -> str | None:
    """The first spelling of a value that parses back to it."""
    plain = value and "\n" not in value and value[0] not in '"#' and value.strip() == value
    for spelling in ([value] if plain else []) + [f'"{value}"'] * ("\n" not in value) + [f'"""{value}"""']:
        try:
            if commands(f"SYSTEM {spelling}\nFROM x\n")[0] == ("system", value):
                return spelling
        except InputError:
            continue
    return None


def _command(name: str, value: str) -> str:
    spelling = _spelled(value)
    if spelling is None:
        lost = sorted(
            {character for character in value if not printed(character) and character not in "\t\r\n"}
        )
        why = (
            f"Ollama drops {', '.join(f'U+{ord(c):04X}' for c in lost)}"
            if lost
            else "it contains the quotation marks that end a quote"
        )
        raise InputError(
            f"{name} cannot be written in a Modelfile: {why}",
            at="Modelfile",
            fix="use other characters" if name != "FROM" else "rename the file",
        )
    return f"{name} {spelling}"


def parse(text: str) -> Modelfile:
    """Read a Modelfile as Ollama does.

    Args:
        text: the file.

    Returns:
        What it says; MESSAGE, LICENSE, CAPABILITY and DRAFT are not kept.

    Raises:
        InputError: Ollama would refuse it.
    """
    single: dict[str, str] = {}
    models: list[str] = []
    stops: list[str] = []
    parameters: dict[str, Parameter] = {}
    for name, value in commands(text):
        if name == "stop":
            stops.append(value)
        elif name == "from":
            models.append(value)
        elif name in _COMMANDS:
            single[name] = value
        elif name in PARAMETERS:
            parameters[name] = _parameter(name, value)
        else:
            raise InputError(f"unknown parameter {name!r}", at="Modelfile", fix="remove it")
    return Modelfile(
        model=models[0],
        parts=tuple(models[1:]),
        adapter=single.get("adapter"),
        template=single.get("template"),
        system=single.get("system"),
        stops=tuple(stops),
        parameters=parameters,
        parser=single.get("parser"),
        renderer=single.get("renderer"),
        requires=single.get("requires"),
    )


def _parameter(name: str, value: str) -> Parameter:
    kind = PARAMETERS[name]
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        number: Parameter = kind(value)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"PARAMETER {name} wants a value of type {kind.__name__}, got {value!r}",
            at="Modelfile",
            fix="correct it",
        ) from error
    return number


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile in order, by Ollama's rules.

    Args:
        text: the file.

    Returns:
        (name in lower case, value); a parameter has its own name.

    Raises:
        InputError: Ollama would refuse it.
    """
    found: list[tuple[str, str]] = []
    state, name, buffer, line, role = "none", "", "", 1, ""

    def wrong(problem: str) -> InputError:
        return InputError(problem, at=f"Modelfile:{line}", fix="correct that line")

    def finish(value: str) -> None:
        nonlocal role
        found.append((name, f"{role}: {value}" if role else value))
        role = ""

    for character in text.removeprefix("\ufeff"):
        newline, blank = character in "\r\n", character in " \t"
        line += newline
        if state == "none":
            if character == "#":
                state = "comment"
            elif not newline and not blank:
                state, buffer = "name", character if printed(character) else ""
        elif state == "comment":
            state = "none" if newline else state
        elif state == "name":
            if blank:
                name = buffer.lower()
                if name not in _COMMANDS:
                    raise wrong(f"unknown command {buffer!r}")
                state, buffer = {"parameter": "parameter", "message": "role"}.get(name, "value"), ""
            elif character.isascii() and character.isalpha():
                buffer += character
            else:
                raise wrong(f"unexpected {character!r} in a command")
        elif state in ("parameter", "role"):
            if blank:
                if state == "role" and buffer not in _ROLES:
                    raise wrong(f"unknown role {buffer!r}")
                name, role = (buffer, "") if state == "parameter" else (name, buffer)
                state, buffer = "value", ""
            elif character.isascii() and (character.isalnum() or character == "_"):
                buffer += character
            else:
                raise wrong(f"unexpected {character!r} in a name")
        elif newline or blank:
            value = _unquoted(buffer)
            if value is None or blank:
                buffer += character
            else:
                finish(value)
                state, buffer = "none", ""
        elif printed(character):
            buffer += character
    if state == "value":
        value = _unquoted(buffer)
        if value is None:
            raise wrong("a quote is not closed")
        finish(value)
    elif state not in ("none", "comment"):
        raise wrong("a command without a value")
    if not any(command == "from" for command, _ in found):
        raise wrong("there is no FROM")
    return found


def _unquoted(buffer: str) -> str | None:
    """A value without its quotes, or None where they are not closed yet."""
    value = buffer.strip()
    for quote in ('"' * 3, '"'):
        if value.startswith(quote):
            closed = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if closed else None
    return value
