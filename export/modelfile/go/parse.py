"""A Go text/template parsed: the subset that `template.py` writes, and nothing that Go would not accept.

Language: https://pkg.go.dev/text/template. Within: text with trim markers, comments, pipelines, `if`/`else
if`/`else`, `range` over a list, `define`, `template`, variables, and constants of strings, integers and
booleans. Everything else is an error, so that what passes here means the same in Go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafold.export.modelfile.go.nodes import (
    Action,
    Assign,
    Call,
    Constant,
    Dot,
    GoTemplateError,
    If,
    Include,
    Node,
    Operand,
    Pipeline,
    Range,
    Text,
    Variable,
)

FUNCTIONS = frozenset(
    ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "len", "slice", "print", "currentDate")
)

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+) | (?P<string>"(?:[^"\\\n]|\\.)*") | (?P<raw>`[^`]*`) |
    (?P<number>[0-9]+|-[0-9]+) | (?P<variable>\$\w*) | (?P<field>\.[^\W\d]\w*) | (?P<dot>\.) |
    (?P<word>[^\W\d]\w*) | (?P<mark>:=|=|\||,|\(|\))""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_AFTER = {"field", "variable", "word"}  # kinds that Go wants a terminator after


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def parse(source: str) -> tuple[tuple[Node, ...], Mapping[str, tuple[Node, ...]]]:
    """Parse a template.

    Args:
        source: its text.

    Returns:
        The main template's nodes, and those of each defined template.

    Raises:
        GoTemplateError: it is not a template of the subset.
    """
    reader = _Reader(_pieces(source))
    nodes, _ = reader.nodes(("",), {""}, True)
    for names in reader.included:
        if names not in reader.defined:
            raise GoTemplateError(f"template {names!r} is not defined")
    return nodes, reader.defined


def _pieces(source: str) -> list[Text | list[_Token]]:
    """Texts and actions in turn, with trim markers carried out and comments gone."""
    pieces: list[Text | list[_Token]] = []
    position, trim = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        text = text.lstrip(" \t\r\n") if trim else text
        if start >= 0 and re.match(r"-[ \t\r\n]", source[start + 2 : start + 4]):
            text = text.rstrip(" \t\r\n")
            body = start + 3
        else:
            body = start + 2
        if text:
            pieces.append(Text(text.encode("utf-8", "surrogatepass")))
        if start < 0:
            return pieces
        comment = re.compile(r"[ \t\r\n]?/\*.*?\*/([ \t\r\n]-)?\}\}", re.DOTALL).match(source, body)
        if comment is not None and (source[body] == "/" or body == start + 3):
            position, trim = comment.end(), comment[1] is not None
            continue
        tokens, position, trim = _tokens(source, body)
        pieces.append(tokens)


def _tokens(source: str, position: int) -> tuple[list[_Token], int, bool]:
    """The tokens of an action, where it ends, and whether it trims what follows."""
    tokens: list[_Token] = []
    depth = 0
    while True:
        closing = re.compile(r"[ \t\r\n]-\}\}|\}\}").match(source, position)
        if closing is not None:
            if depth:
                raise GoTemplateError("a parenthesis is not closed")
            while tokens and tokens[-1].kind == "space":
                tokens.pop()
            while tokens and tokens[0].kind == "space":
                tokens.pop(0)
            return tokens, closing.end(), closing[0] != "}}"
        match = _TOKEN.match(source, position)
        if match is None:
            raise GoTemplateError(f"unexpected {source[position : position + 10]!r} in an action")
        kind, text = str(match.lastgroup), match[0]
        following = source[match.end() : match.end() + 1]
        ends = not following or following in " \t\r\n.,|:)(" or source.startswith("}}", match.end())
        if kind in _AFTER and not ends:
            raise GoTemplateError(f"bad character {following!r} after {text!r}")
        if kind == "number" and (following.isalnum() or following in "_."):
            raise GoTemplateError(f"bad number {text}{following}")
        depth += (text == "(") - (text == ")") if kind == "mark" else 0
        if depth < 0:
            raise GoTemplateError("unexpected )")
        tokens.append(_Token(kind, text))
        position = match.end()


class _Reader:
    """Builds nodes; keeps what variables are in scope, which Go checks while parsing."""

    def __init__(self, pieces: Sequence[Text | list[_Token]]) -> None:
        self.pieces = pieces
        self.at = 0
        self.defined: dict[str, tuple[Node, ...]] = {}
        self.included: list[str] = []
        self.tokens: list[_Token] = []
        self.scope: set[str] = {""}

    def nodes(self, until: Sequence[str], scope: set[str], top: bool = False) -> tuple[tuple[Node, ...], str]:
        """Nodes up to an action that is one of `until` ("" is the end of the source), and which it was."""
        found: list[Node] = []
        scope = set(scope)
        while self.at < len(self.pieces):
            piece = self.pieces[self.at]
            self.at += 1
            if isinstance(piece, Text):
                found.append(piece)
                continue
            self.tokens, self.scope = list(piece), scope
            word = self.tokens[0].text if self.tokens and self.tokens[0].kind == "word" else None
            if word in ("end", "else"):
                if word not in until or (word == "end" and len(self.tokens) > 1):
                    raise GoTemplateError(f"unexpected {word}")
                return tuple(found), word
            if word == "define":
                if not top:
                    raise GoTemplateError("define inside a block")
                self.definition()
            elif word == "if":
                self.tokens.pop(0)
                found.append(self.condition(scope))
            elif word == "range":
                self.tokens.pop(0)
                found.append(self.loop(scope))
            elif word == "template":
                found.append(self.include())
            else:
                found.append(self.statement(scope))
        if "" not in until:
            raise GoTemplateError("unexpected end of the template")
        return tuple(found), ""

    def definition(self) -> None:
        kinds = [token.kind for token in self.tokens]
        if kinds != ["word", "space", "string"]:
            raise GoTemplateError("define wants a quoted name")
        name = _string(self.tokens[2].text).decode()
        body, _ = self.nodes(("end",), {""})
        if name in self.defined:
            raise GoTemplateError(f"template {name!r} is defined twice")
        self.defined[name] = body

    def condition(self, scope: set[str]) -> If:
        test = self.whole()
        yes, ended = self.nodes(("end", "else"), scope)
        no: tuple[Node, ...] = ()
        if ended == "else":
            rest = [token for token in self.tokens[1:] if token.kind != "space"]
            if rest and rest[0].text == "if":
                while self.tokens.pop(0).text != "if":
                    pass
                self.scope = scope
                no = (self.condition(scope),)
            elif rest:
                raise GoTemplateError("unexpected tokens after else")
            else:
                no, _ = self.nodes(("end",), scope)
        return If(test, yes, no)

    def loop(self, scope: set[str]) -> Range:
        names: list[str] = []
        texts = [token.text for token in self.tokens if token.kind != "space"]
        if ":=" in texts:
            head = texts[: texts.index(":=")]
            if (
                head[1::2] not in ([], [","])
                or len(head) not in (1, 3)
                or not all(v[0] == "$" for v in head[::2])
            ):
                raise GoTemplateError("range wants one or two variables")
            names = [name[1:] for name in head[::2]]
            while self.tokens.pop(0).text != ":=":
                pass
        value = self.whole()
        body, _ = self.nodes(("end",), scope | set(names))
        return Range(tuple(names), value, body)

    def include(self) -> Include:
        self.tokens.pop(0)
        self.space()
        if not self.tokens or self.tokens[0].kind != "string":
            raise GoTemplateError("template wants a quoted name")
        name = _string(self.tokens.pop(0).text).decode()
        self.included.append(name)
        return Include(name, self.whole() if self.tokens else None)

    def statement(self, scope: set[str]) -> Action | Assign:
        marks = [token for token in self.tokens if token.kind != "space"][:2]
        if len(marks) == 2 and marks[0].kind == "variable" and marks[1].text in (":=", "="):
            name, new = marks[0].text[1:], marks[1].text == ":="
            while self.tokens.pop(0).text != marks[1].text:
                pass
            if not new and name not in scope:
                raise GoTemplateError(f"undefined variable ${name}")
            value = self.whole()
            if new:
                scope.add(name)
            return Assign(name, new, value)
        return Action(self.whole())

    def space(self) -> bool:
        """Skip one run of space, if there is one."""
        if self.tokens and self.tokens[0].kind == "space":
            self.tokens.pop(0)
            return True
        return False

    def whole(self) -> Pipeline:
        value = self.pipeline()
        if self.tokens:
            raise GoTemplateError(f"unexpected {self.tokens[0].text!r}")
        return value

    def pipeline(self) -> Pipeline:
        commands = [self.command()]
        while self.tokens and self.tokens[0].text == "|":
            self.tokens.pop(0)
            commands.append(self.command())
            if not isinstance(commands[-1], Call):
                raise GoTemplateError("a pipe wants a function on its right")
        return Pipeline(tuple(commands))

    def command(self) -> Operand:
        self.space()
        operands: list[Operand | str] = []
        while self.tokens and self.tokens[0].text not in ("|", ")"):
            operands.append(self.operand())
            if not self.space() and self.tokens and self.tokens[0].text not in ("|", ")"):
                raise GoTemplateError(f"unexpected {self.tokens[0].text!r} in an operand")
        if not operands:
            raise GoTemplateError("missing value")
        values = tuple(Call(item, ()) if isinstance(item, str) else item for item in operands[1:])
        if isinstance(operands[0], str):
            return Call(operands[0], values)
        if values:
            raise GoTemplateError("arguments for something that is no function")
        return operands[0]

    def operand(self) -> Operand | str:
        """An operand, or the name of a function."""
        token = self.tokens.pop(0)
        if token.kind == "string":
            return Constant(_string(token.text))
        if token.kind == "raw":
            return Constant(token.text[1:-1].replace("\r", "").encode("utf-8", "surrogatepass"))
        if token.kind == "number":
            if len(token.text.lstrip("-")) > 1 and token.text.lstrip("-")[0] == "0":
                raise GoTemplateError(f"octal number {token.text}")
            return Constant(int(token.text))
        if token.kind == "dot":
            return Dot(())
        if token.kind == "field":
            return Dot((token.text[1:], *self.fields()))
        if token.kind == "variable":
            if token.text[1:] not in self.scope:
                raise GoTemplateError(f"undefined variable {token.text}")
            return Variable(token.text[1:], self.fields())
        if token.text in ("true", "false"):
            return Constant(token.text == "true")
        if token.kind == "word" and token.text in FUNCTIONS:
            return token.text
        if token.text == "(":
            value = self.pipeline()
            if not self.tokens or self.tokens.pop(0).text != ")":
                raise GoTemplateError("a parenthesis is not closed")
            return value
        raise GoTemplateError(f"unexpected {token.text!r}")

    def fields(self) -> tuple[str, ...]:
        names = []
        while self.tokens and self.tokens[0].kind == "field":
            names.append(self.tokens.pop(0).text[1:])
        return tuple(names)


def _string(text: str) -> bytes:
    """The value of an interpreted string constant."""

    def value(match: re.Match[str]) -> str:
        byte, short, long, octal, letter = match.groups()
        if byte or octal:
            number = int(byte, 16) if byte else int(octal, 8)
            if number > 0x7F:
                raise GoTemplateError(f"escape {match[0]} is a byte, not a character")
            return chr(number)
        if short or long:
            number = int(short or long, 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise GoTemplateError(f"escape {match[0]} is no character")
            return chr(number)
        if letter not in _ESCAPES:
            raise GoTemplateError(f"unknown escape {match[0]}")
        return _ESCAPES[letter]

    return _ESCAPE.sub(value, text[1:-1]).encode("utf-8", "surrogatepass")
