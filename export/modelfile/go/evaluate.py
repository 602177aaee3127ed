"""A Go text/template executed as Go 1.24 or later does it, for users without Go: the subset of `parse.py`.

Go's strings are bytes: `len` counts bytes and `slice` cuts bytes, so values here are `bytes` too. Tests hold
this evaluator against the real text/template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from lorafold.export.modelfile.go.parse import parse

DEPTH = 100_000  # text/template's own limit on templates inside templates


def evaluate(source: str, data: Mapping[str, Any], today: str = "2026-01-02") -> str:
    """Execute a template.

    Args:
        source: the template.
        data: Ollama's data: "System", "Messages" (dicts with "Role" and "Content"), "IsThinkSet", "Think".
        today: what `currentDate` gives, YYYY-MM-DD.

    Returns:
        Its output.

    Raises:
        GoTemplateError: it is not of the subset, or it fails as Go would fail.
    """
    return Program(source).run(data, today)


class Program:
    """A parsed template, to be run on many chats.

    Args:
        source: the template.

    Raises:
        GoTemplateError: it is not of the subset.
    """

    def __init__(self, source: str) -> None:
        self.main, self.defined = parse(source)

    def run(self, data: Mapping[str, Any], today: str = "2026-01-02") -> str:
        """Execute it; arguments and errors as in `evaluate`."""
        state = _State(self.defined, today)
        value = _go_value(data)
        try:
            state.run(self.main, value, [("", value)])
        except RecursionError as error:
            raise GoTemplateError("too many templates inside templates") from error
        return b"".join(state.out).decode("utf-8", "surrogatepass")


def _go_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, Mapping):
        return {key: _go_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_go_value(item) for item in value]
    return value


Scope = list[tuple[str, Any]]  # variables, innermost last; a block's own are cut off at its end


class _State:
    def __init__(self, defined: Mapping[str, tuple[Node, ...]], today: str) -> None:
        self.defined = defined
        self.today = today.encode()
        self.out: list[bytes] = []
        self.depth = 0

    def run(self, nodes: Sequence[Node], dot: Any, scope: Scope) -> None:
        """Execute a template's nodes; a template that ends by including another goes on in this loop."""
        while True:
            included = self.block(nodes, dot, scope, True)
            if included is None:
                return
            self.depth += 1
            if self.depth > DEPTH:
                raise GoTemplateError("exceeded maximum template depth")
            nodes, dot = included
            scope = [("", dot)]

    def block(
        self, nodes: Sequence[Node], dot: Any, scope: Scope, tail: bool
    ) -> tuple[tuple[Node, ...], Any] | None:
        """Execute nodes in one scope; in tail position an include is returned instead of run."""
        size = len(scope)
        try:
            for number, node in enumerate(nodes):
                last = tail and number == len(nodes) - 1
                if isinstance(node, Text):
                    self.out.append(node.data)
                elif isinstance(node, Action):
                    self.out.append(_printed(self.value(node.value, dot, scope)))
                elif isinstance(node, Assign):
                    self.assign(node, self.value(node.value, dot, scope), scope)
                elif isinstance(node, If):
                    side = node.yes if _truth(self.value(node.test, dot, scope)) else node.no
                    included = self.block(side, dot, scope, last)
                    if included is not None:
                        return included
                elif isinstance(node, Include):
                    value = None if node.value is None else self.value(node.value, dot, scope)
                    if last:
                        return self.defined[node.name], value
                    before = self.depth
                    self.depth += 1
                    self.run(self.defined[node.name], value, [("", value)])
                    self.depth = before
                else:
                    self.loop(node, dot, scope)
            return None
        finally:
            del scope[size:]

    def assign(self, node: Assign, value: Any, scope: Scope) -> None:
        if node.new:
            scope.append((node.name, value))
            return
        for index in range(len(scope) - 1, -1, -1):
            if scope[index][0] == node.name:
                scope[index] = (node.name, value)
                return
        raise GoTemplateError(f"undefined variable ${node.name}")

    def loop(self, node: Range, dot: Any, scope: Scope) -> None:
        items = self.value(node.value, dot, scope)
        if not isinstance(items, list):
            raise GoTemplateError(f"range over something that is no list: {items!r}")
        size = len(scope)
        for index, item in enumerate(items):
            values = (index, item) if len(node.names) == 2 else (item,)
            scope.extend(zip(node.names, values, strict=False))
            self.block(node.body, item, scope, False)
            del scope[size:]

    def value(self, operand: Operand, dot: Any, scope: Scope) -> Any:
        if isinstance(operand, Constant):
            return operand.value
        if isinstance(operand, Dot):
            return _field(dot, operand.fields)
        if isinstance(operand, Variable):
            for name, value in reversed(scope):
                if name == operand.name:
                    return _field(value, operand.fields)
            raise GoTemplateError(f"undefined variable ${operand.name}")
        if isinstance(operand, Pipeline):
            value, piped = self.value(operand.commands[0], dot, scope), operand.commands[1:]
            for command in piped:
                assert isinstance(command, Call)
                value = self.call(command, dot, scope, [value])
            return value
        return self.call(operand, dot, scope, [])

    def call(self, call: Call, dot: Any, scope: Scope, piped: list[Any]) -> Any:
        if call.name in ("and", "or"):  # these stop at the first argument that decides
            value: Any = None
            for item in call.arguments:
                value = self.value(item, dot, scope)
                if _truth(value) is (call.name == "or"):
                    return value
            if not call.arguments and not piped:
                raise GoTemplateError(f"{call.name} wants an argument")
            return piped[0] if piped else value
        arguments = [
            item.value if type(item) is Constant else self.value(item, dot, scope) for item in call.arguments
        ] + piped
        if call.name == "currentDate":
            if arguments:
                raise GoTemplateError("currentDate takes no argument")
            return self.today
        return _BUILTINS[call.name](arguments)


def _field(value: Any, names: Sequence[str]) -> Any:
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise GoTemplateError(f"can't evaluate field {name}")
        value = value[name]
    return value


def _truth(value: Any) -> bool:
    return bool(value)


def _printed(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return str(value).encode()
    raise GoTemplateError(f"a {type(value).__name__} is printed")


def _comparison(name: str) -> Callable[[list[Any]], bool]:
    tests: Mapping[str, Callable[[Any, Any], bool]] = {
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
        "ne": lambda a, b: a != b,
    }

    def compare(arguments: list[Any]) -> bool:
        if len(arguments) != 2:
            raise GoTemplateError(f"{name} wants two arguments")
        if name != "ne" and isinstance(arguments[0], bool):
            raise GoTemplateError("booleans have no order")
        _comparable(*arguments)
        return tests[name](*arguments)

    return compare


def _comparable(first: Any, second: Any) -> None:
    if type(first) is not type(second) or not isinstance(first, (bytes, int)):
        raise GoTemplateError("incompatible types for comparison")


def _eq(arguments: list[Any]) -> bool:
    if len(arguments) < 2:
        raise GoTemplateError("eq wants two arguments or more")
    first, others = arguments[0], arguments[1:]
    kind = type(first)
    for other in others:
        if type(other) is not kind:
            _comparable(first, other)
        if first == other:
            _comparable(first, other)
            return True
    _comparable(first, first)
    return False


def _not(arguments: list[Any]) -> bool:
    if len(arguments) != 1:
        raise GoTemplateError("not wants one argument")
    return not _truth(arguments[0])


def _len(arguments: list[Any]) -> int:
    if len(arguments) != 1 or not isinstance(arguments[0], (bytes, list, dict)):
        raise GoTemplateError("len wants one string or list")
    return len(arguments[0])


def _slice(arguments: list[Any]) -> Any:
    if not 1 <= len(arguments) <= 3 or not isinstance(arguments[0], (bytes, list)):
        raise GoTemplateError("slice wants a string or list and up to two integers")
    item, bounds = arguments[0], arguments[1:]
    for bound in bounds:
        if isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= len(item):
            raise GoTemplateError("slice index out of range")
    start, stop = (*bounds, len(item))[:2] if len(bounds) == 2 else (bounds[0] if bounds else 0, len(item))
    if start > stop:
        raise GoTemplateError("slice index out of range")
    return item[start:stop]


def _print(arguments: list[Any]) -> bytes:
    """fmt.Sprint: a space between two operands of which neither is a string."""
    out = b""
    for index, item in enumerate(arguments):
        if index and not isinstance(item, bytes) and not isinstance(arguments[index - 1], bytes):
            out += b" "
        out += _printed(item)
    return out


_BUILTINS: Mapping[str, Callable[[list[Any]], Any]] = {
    "eq": _eq,
    "not": _not,
    "len": _len,
    "slice": _slice,
    "print": _print,
    **{name: _comparison(name) for name in ("ne", "lt", "le", "gt", "ge")},
}
