"""Ollama's own rules: which of a model's prompts it takes, and what becomes of a request's `think`.

Read in the sources of Ollama 0.33.0-rc2 (server/images.go, routes.go, create.go, thinking/template.go) and
held against that server: `docs/templates.md` says how. A new version is a new row of `VERSIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorafold.export.modelfile.go.nodes import (
    Action,
    Assign,
    Call,
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

Way = Literal["template", "jinja", "renderer", "bare"]
"""What writes the prompt: TEMPLATE, the GGUF's own Jinja, a built-in renderer, or nothing (the bare text)."""

PASSTHROUGH = "passthrough"
"""A PARSER that changes no answer. With any PARSER Ollama renders the prompt itself: by the TEMPLATE."""


@dataclass(frozen=True, slots=True)
class Version:
    """What is true from a version on.

    Attributes:
        since: the first version.
        parser: the Modelfile's commands PARSER and RENDERER exist.
        jinja: a GGUF's own Jinja can be taken.
        adapter: `create` takes ADAPTER.
        renderers: architectures that get this RENDERER and PARSER where the Modelfile names none; a TEMPLATE
            never counts there.
    """

    since: tuple[int, ...]
    parser: bool = False
    jinja: bool = False
    adapter: bool = True
    renderers: Mapping[str, str] = field(default_factory=dict)


# By llama.cpp's names of architectures, and by those of config.json where they are others.
_RENDERERS = {
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), "gemma4"),
    "laguna": "laguna",
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"), "nemotron-3-nano"),
}
VERSIONS = (
    Version((0, 0)),
    Version((0, 12), parser=True),
    Version((0, 30), parser=True, jinja=True, renderers=_RENDERERS),
    Version((0, 34, 1), parser=True, jinja=True, renderers=_RENDERERS, adapter=False),
)
NEWEST = VERSIONS[-1]

# Without TEMPLATE, `create` takes a built-in one whose Jinja is nearer than 100 edits. The longest of those
# Jinja texts has 4,614 characters: a text 100 characters longer is never taken for one of them.
GUESS_DISTANCE, LONGEST_GUESS = 100, 4_614

# What llama.cpp hands to every Jinja beside messages, bos_token and eos_token; strftime formats of today.
LLAMA_DATES: Mapping[str, str] = {"date_string": "%d %b %Y", "datetime": "%b %d %Y"}


@dataclass(frozen=True, slots=True)
class LlamaChange:
    """Messages that llama.cpp changes before it renders them, for templates that it knows by their letters.

    Attributes:
        present: letters that are all in the Jinja.
        absent: letters that are not.
        says: what it does.
        change: one message, as the template is given it.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...]
    says: str
    change: Callable[[dict[str, Any]], dict[str, Any]]

    def holds(self, source: str) -> bool:
        """Whether llama.cpp takes this Jinja for one of those."""
        return all(map(source.__contains__, self.present)) and not any(map(source.__contains__, self.absent))


def _trimmed(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": content.strip(" \t\n\v\f\r")} if isinstance(content, str) else message


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if message["role"] not in ("system", "assistant") or not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


# common/chat.cpp of llama.cpp, b10488 (the one in 0.33) and the newest of autumn 2026.
LLAMA_CHANGES: tuple[LlamaChange, ...] = (
    LlamaChange(
        ("You have access to the following functions in JSONSchema format",),
        (),
        "it trims every content",
        _trimmed,
    ),
    LlamaChange(
        ("[SYSTEM_PROMPT]", "[TOOL_CALLS]", "[ARGS]"),
        ("[CALL_ID]",),
        "it makes lists of parts of the system's and the assistant's contents",
        _in_parts,
    ),
)


def llama_change(source: str) -> LlamaChange | None:
    """What llama.cpp does to the messages for this Jinja, or None."""
    return next((row for row in LLAMA_CHANGES if row.holds(source)), None)


def rules_of(version: str) -> Version:
    """The row that holds for a version such as "0.33.0-rc2"; the newest for one that is not readable."""
    found = tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0]))
    return max((row for row in VERSIONS if row.since <= found), default=NEWEST, key=lambda row: row.since)


def jinja_abilities(source: str) -> frozenset[str]:
    """What Ollama believes that a Jinja template can do, by the letters in it."""
    found = {"tools"} if "tools" in source or "tool_call" in source else set()
    tags = "<think>" in source and "</think>" in source
    splits = "content.split('</think>')" in source or 'content.split("</think>")' in source
    if tags or (splits and "reasoning_content" not in source and "<SPECIAL_12>" not in source):
        found.add("thinking")
    return frozenset(found)


def template_abilities(source: str) -> frozenset[str]:
    """What Ollama believes that a TEMPLATE can do: by the names in it, and by its tags around `.Thinking`."""
    try:
        nodes, definitions = parse(source)
    except GoTemplateError:
        return frozenset()
    everything = [nodes, *definitions.values()]
    names = {name.lower() for part in everything for name in _names(part)}
    found = {ability for name, ability in (("tools", "tools"), ("suffix", "insert")) if name in names}
    return frozenset(found | ({"thinking"} if thinking_tags(nodes) else set()))


def _names(nodes: tuple[Node, ...]) -> Iterator[str]:
    for operand in _operands(nodes):
        if isinstance(operand, Dot | Variable):
            yield from operand.fields


def _operands(nodes: tuple[Node, ...]) -> Iterator[Operand]:
    for node in nodes:
        if isinstance(node, Action | Assign | Include) and node.value is not None:
            yield from _inside(node.value)
        elif isinstance(node, If):
            yield from _inside(node.test)
            yield from _operands(node.yes)
            yield from _operands(node.no)
        elif isinstance(node, Range):
            yield from _inside(node.value)
            yield from _operands(node.body)


def _inside(operand: Operand) -> Iterator[Operand]:
    yield operand
    if isinstance(operand, Pipeline | Call):
        for part in operand.commands if isinstance(operand, Pipeline) else operand.arguments:
            yield from _inside(part)


def thinking_tags(nodes: tuple[Node, ...]) -> tuple[str, str] | None:
    """The texts around `.Thinking`, in a loop over `.Messages`; a loop over `$.Messages` does not count."""
    for node in nodes:
        if (
            isinstance(node, Range)
            and any(
                isinstance(operand, Dot) and operand.fields[:1] == ("Messages",)
                for operand in _inside(node.value)
            )
            and (tags := _tags_around(node.body)) is not None
        ):
            return tags
        for inner in _lists_in(node):
            if (tags := thinking_tags(inner)) is not None:
                return tags
    return None


def _tags_around(nodes: tuple[Node, ...]) -> tuple[str, str] | None:
    direct = [node.value for node in nodes if isinstance(node, Action | Assign)]
    named = any(
        isinstance(operand, Dot) and operand.fields[:1] == ("Thinking",)
        for value in direct
        for operand in _inside(value)
    )
    if named and isinstance(nodes[0], Text) and isinstance(nodes[-1], Text):
        begin, end = (text.data.decode().strip() for text in (nodes[0], nodes[-1]))
        if begin and end:
            return begin, end
    inside = (_tags_around(inner) for node in nodes for inner in _lists_in(node))
    return next((tags for tags in inside if tags is not None), None)


def _lists_in(node: Node) -> tuple[tuple[Node, ...], ...]:
    return (node.yes, node.no) if isinstance(node, If) else (node.body,) if isinstance(node, Range) else ()


def select(
    jinja: str | None,
    template: str | None,
    *,
    parser: str | None = None,
    renderer: str | None = None,
    architecture: str = "",
    version: Version = NEWEST,
) -> Way:
    """What writes a model's prompt on `/api/chat`.

    Args:
        jinja: the GGUF's `tokenizer.chat_template`, or None.
        template: TEMPLATE, or None; what `create` guesses counts as one.
        parser: PARSER.
        renderer: RENDERER.
        architecture: the GGUF's `general.architecture`.
        version: the row of the server's version.
    """
    if renderer or architecture in version.renderers:
        return "renderer"
    if template is None:
        return "jinja" if jinja and version.jinja and not parser else "bare"
    if parser or not (jinja and version.jinja):
        return "template"
    if architecture in ("gptoss", "gpt-oss") and "<|start|>" in template and "<|end|>" in template:
        return "template"
    return "jinja" if _prefers_jinja(jinja, template) else "template"


def _prefers_jinja(jinja: str, template: str) -> bool:
    """Whether Ollama passes over a TEMPLATE: the Jinja can do more things, or tools all the way round."""
    of_jinja, of_template = jinja_abilities(jinja), template_abilities(template)
    both_ways = _round_trip(jinja, of_jinja)
    template_both_ways = _template_round_trip(template, of_template)
    if len(of_jinja) > len(of_template):
        return not template_both_ways or both_ways
    return of_jinja == of_template and "tools" in of_jinja and both_ways and not template_both_ways


_RESULTS = ("tool_response", "tool_results", "ipython")
_RESULT_ROLES = re.compile(r"""role['"]\] == ['"]tool['"]|message\.role == ['"]tool['"]""")


def _round_trip(source: str, abilities: frozenset[str]) -> bool:
    calls = "tool_calls" in source or "assistant_tool_call" in source
    results = any(letters in source for letters in _RESULTS) or bool(_RESULT_ROLES.search(source))
    return "tools" in abilities and calls and results


def _template_round_trip(source: str, abilities: frozenset[str]) -> bool:
    results = any(letters in source for letters in ('eq .Role "tool"', "tool_response", "TOOL_RESULTS"))
    return "tools" in abilities and ".ToolCalls" in source and results


def guessable(jinja: str) -> bool:
    """Whether `create` might take a built-in TEMPLATE for a model that comes without one."""
    return len(jinja) < LONGEST_GUESS + GUESS_DISTANCE


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that Ollama answers with HTTP 400.

    Attributes:
        problem: what it says.
    """

    problem: str


def think_of(thinks: bool, asked: bool | None) -> bool | Refused | None:
    """What a request's `think` has become when the prompt is written.

    Args:
        thinks: whether the way that is taken has the ability "thinking".
        asked: the request's `think`; None where it says nothing.
    """
    if thinks:
        return True if asked is None else asked
    return Refused("does not support thinking") if asked else asked


# api/types.go: Ollama reads a tool into structs and writes them again, keys in their order and no others.
_TOOL_KEYS: Mapping[str, tuple[str, ...]] = {
    "tool": ("type", "items", "function"),
    "function": ("name", "description", "parameters"),
    "parameters": ("type", "$defs", "items", "required", "properties"),
    "property": ("anyOf", "type", "items", "description", "enum", "properties", "required"),
}


def tool_as_read(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's definition as Ollama hands it to a Jinja."""
    function = _known(tool.get("function") or {}, "function")
    if "parameters" in function:
        function["parameters"] = _schema(function["parameters"], "parameters")
    return _known(tool, "tool") | {"function": function}


def _known(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {key: values[key] for key in _TOOL_KEYS[kind] if values.get(key) not in (None, "", [])}


def _schema(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = _known(values, kind)
    if isinstance(properties := found.get("properties"), Mapping):
        found["properties"] = {name: _schema(row, "property") for name, row in properties.items()}
    return found


def llama_thinking(think: bool | None) -> tuple[bool, ...]:
    """What a Jinja may see as `enable_thinking`: llama-server has a default of its own where nothing is said.

    That default is true for templates of which llama.cpp finds out that they can think, else false.
    """
    return (True, False) if think is None else (think,)
