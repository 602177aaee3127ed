"""Jinja as llama.cpp has it: what it lacks fails here as it does there, what it does otherwise is done alike.

Found by rendering some 350 small templates with llama-server (xllamacpp 2026.8) and with Jinja; the tests ask
llama-server again. What a template needs and llama.cpp lacks ends the server when it loads the model.

The worker that renders templates imports this by its name; it needs Jinja2 and the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.sandbox

# Methods of a text, with those arguments that they take there.
_METHODS = frozenset(
    (
        *("strip", "lstrip", "rstrip", "split", "rsplit", "startswith", "endswith", "replace", "format"),
        *("upper", "lower", "title", "capitalize"),
    )
)
_LACKING_FILTERS = (
    *("batch", "center", "e", "escape", "forceescape", "groupby", "pprint", "round", "slice", "striptags"),
    *("sum", "truncate", "unique", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
)
_NO_TEXT = ("first", "last", "list", "reverse")  # filters for lists, which take no text
_TESTS = ("equalto", "eq", "ne", "in", "notin", "true", "false")  # of selectattr and the like


class LlamaDialect(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment whose texts are bytes and whose methods are llama.cpp's; slices of texts are Jinja's."""

    intercepted_binops = frozenset(("%",))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finalize = _printed
        self.filters |= filters(dict(self.filters))
        for name in ("lipsum", "cycler", "joiner", "dict"):
            self.globals.pop(name, None)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call, unless llama.cpp's texts have no such method."""
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, str):
            return _method(
                text, name, args, lambda: super(LlamaDialect, self).call(context, obj, *args, **kwargs)
            )
        if (
            type(obj).__name__ == "PlainDict"
            or type(text).__name__ == "LoopContext"
            or (isinstance(text, list) and name in ("index", "copy"))
        ):
            raise _lacks(f"{name}()")
        return super().call(context, obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item; of a text, a byte, and none from behind."""
        if isinstance(obj, str) and isinstance(argument, int):
            return _bytes(obj)[argument : argument + 1] if argument >= 0 else ""
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`%` of numbers alone."""
        if isinstance(left, str):
            raise _lacks("% for texts")
        return super().call_binop(context, operator, left, right)


LACKS = "llama.cpp's Jinja has no "
"""How a refusal begins that names what is missing."""


def _lacks(what: str) -> jinja2.TemplateError:
    return jinja2.TemplateError(LACKS + what)


def _bytes(text: str) -> str:
    """A text with a character for each of its bytes."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _upper(text: Any) -> str:
    """Capitals, of ASCII alone."""
    return "".join(letter.upper() if letter.isascii() else letter for letter in str(text))


def _lower(text: Any) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in str(text))


def _capitalize(text: Any) -> str:
    return _upper(str(text)[:1]) + _lower(str(text)[1:])


def _title(text: Any) -> str:
    return "".join(map(_capitalize, re.split(r"(\s+)", str(text))))


def _printed(value: Any) -> Any:
    """What `{{ value }}` prints: nothing for none and objects, a list's items in a row."""
    if value is None or isinstance(value, Mapping):
        return ""
    if isinstance(value, list | tuple):
        return "".join(str(_printed(item)) for item in value)
    return value


def _method(text: str, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    if name not in _METHODS or (name == "replace" and len(args) > 2):
        raise _lacks(f"{name}() of this form for texts")
    if name in ("startswith", "endswith") and isinstance(args[0], tuple):
        raise _lacks(f"{name}() for several texts")
    if name in _CASES:
        return _CASES[name](text)
    return text.split(" ") if name == "split" and not args else call()


_CASES: Mapping[str, Callable[[Any], str]] = {
    "upper": _upper,
    "lower": _lower,
    "title": _title,
    "capitalize": _capitalize,
}


def filters(known: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Those filters that differ, by name.

    Args:
        known: Jinja's own.
    """

    def lacking(name: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            raise _lacks(f"filter {name}")

        return refuse

    def of_list(name: str) -> Callable[..., Any]:
        @jinja2.pass_environment
        def filtered(environment: jinja2.Environment, value: Any) -> Any:
            if isinstance(value, str):
                raise _lacks(f"filter {name} for texts")
            items = list(value)
            if name in ("list", "reverse"):
                return items if name == "list" else items[::-1]
            return items[0 if name == "first" else -1] if items else environment.undefined()

        return filtered

    def length(value: Any) -> int:
        return len(_bytes(value)) if isinstance(value, str) else len(value)

    def default(value: Any, other: Any = "", boolean: bool = False) -> Any:
        return (
            other
            if value is None or isinstance(value, jinja2.Undefined) or (boolean and not value)
            else value
        )

    def replace(value: Any, old: str, new: str, count: int | None = None) -> str:
        if count is not None:
            raise _lacks("filter replace with a count")
        return str(value).replace(old, new)

    def chosen(name: str) -> Callable[..., Any]:
        @jinja2.pass_context
        def filtered(context: Any, value: Any, attribute: Any, *test: Any) -> Any:
            if len(test) == 1 or (test and test[0] not in _TESTS):
                raise _lacks(f"{name} with the test {test[0]!r}")
            return known[name](context, value, attribute, *test)

        return filtered

    @jinja2.pass_context
    def mapped(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            raise _lacks("map with a filter")
        return known["map"](context, value, **kwargs)

    return {
        **{name: lacking(name) for name in _LACKING_FILTERS},
        **{name: of_list(name) for name in _NO_TEXT},
        **{name: chosen(name) for name in ("selectattr", "rejectattr")},
        **_CASES,
        "length": length,
        "count": length,
        "default": default,
        "d": default,
        "replace": replace,
        "map": mapped,
        "format": lambda value, *_, **__: value,
    }


_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|N\{[^}]*\})")
_LACKING_STATEMENTS = ("with", "include", "import", "extends", "from")
_ENDS = frozenset(("and", "or", "else", "if", "not", "is", "in", "recursive"))


def unreadable(source: str) -> str | None:
    """Why llama.cpp cannot read a template at all, or None; for one that Jinja itself reads."""
    lexed = jinja2.Environment().lex(source)
    tokens = [token for token in lexed if token[1] not in ("whitespace", "comment")]
    for place, (line, kind, text) in enumerate(tokens):
        after = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        if kind == "raw_begin":
            return f"it has no {{% raw %}} (line {line})"
        if kind == "operator" and text in ("//", "**"):
            return f"it has no operator {text} (line {line})"
        if kind == "string" and _has_escapes(text):
            return f"it has no escapes such as \\u4f60 (line {line})"
        if kind == "float" and "e" in text.lower():
            return f"it has no numbers such as {text} (line {line})"
        if kind == "name" and text in _LACKING_STATEMENTS and _opens(tokens, place):
            return f"it has no statement {text} (line {line})"
        if kind == "name" and text == "recursive" and after == "block_end":
            return f"it has no recursive loops (line {line})"
        if kind == "name" and text == "is" and (found := _bare_argument(tokens, place)):
            return f"it reads no test such as `is {found}` without parentheses (line {line})"
    return None


def _opens(tokens: list[tuple[int, str, str]], place: int) -> bool:
    return place > 0 and tokens[place - 1][1] == "block_begin"


def _bare_argument(tokens: list[tuple[int, str, str]], place: int) -> str | None:
    at = place + 1 + (tokens[place + 1][2] == "not")
    test, (_, kind, text) = tokens[at][2], tokens[at + 1]
    bare = kind in ("string", "integer", "float") or (kind == "name" and text not in _ENDS)
    return f"{test} {text}" if bare or (text == "[" and kind == "operator") else None


def readable(source: str) -> str:
    """The template with characters in place of the escapes that llama.cpp does not know."""
    source = re.sub(r"\r\n?", "\n", source)  # as Jinja does, so that each token is found as it stands
    out, at = [], 0
    for _, kind, text in jinja2.Environment().lex(source):
        begin = source.index(text, at)
        out.append(source[at:begin])
        out.append(_plainly(text) if kind == "string" else text)
        at = begin + len(text)
    return "".join(out) + source[at:]


def _has_escapes(text: str) -> bool:
    """Whether a quoted text has escapes that llama.cpp does not know."""
    return _ESCAPE.search(re.sub(r"\\\\", "", text)) is not None


def _plainly(text: str) -> str:
    if not _has_escapes(text):
        return text
    quote = text[0]
    value = text[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
    for character, spelled in (
        ("\\", "\\\\"),
        (quote, "\\" + quote),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
    ):
        value = value.replace(character, spelled)
    return quote + value + quote
