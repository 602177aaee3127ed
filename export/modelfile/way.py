"""Which way a model's prompt goes in Ollama 0.30 and later, and what each way costs.

A TEMPLATE is proven exactly but has no tools. The GGUF's own Jinja has them; it is taken if it is proven to
write the same prompts. `--ollama-path` turns the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorafold.chat.calls import listed
from lorafold.export.modelfile.built_in import BuiltIn
from lorafold.export.modelfile.native import STATES, Native, guarded, state_name
from lorafold.export.modelfile.template import THOUGHTS
from lorafold.export.ollama.rules import (
    NEWEST,
    PASSTHROUGH,
    Refused,
    Way,
    guessable,
    select,
    template_abilities,
    think_of,
)

Asked = Literal["template", "jinja"]


@dataclass(frozen=True, slots=True)
class Route:
    """A way, and what has to be written so that Ollama goes it.

    Attributes:
        way: what writes the prompt.
        jinja: the Jinja for the GGUF.
        template: TEMPLATE, or None where there is none or it would win over the Jinja.
        parser: PARSER, or None.
        says: what the way does, in one sentence.
        other: what the other way would do, in one sentence; None where there is no other.
        equal: the settings of `think` under which the prompt is the training's.
        renderer: RENDERER, or None.
        system: SYSTEM where the user gives no system text, or None.
    """

    way: Way
    jinja: str
    template: str | None
    parser: str | None
    says: str
    other: str | None
    equal: tuple[bool | None, ...]
    renderer: str | None = None
    system: str | None = None


def choose(
    asked: Asked | None,
    *,
    jinja: str,
    template: str | None,
    native: Native | None,
    writable: bool,
    tools: bool,
    architecture: str = "",
    plain_system: bool = True,
    built_in: BuiltIn | None = None,
) -> Route:
    """Choose the way of a model's prompt.

    Args:
        asked: what the user wants; None: the Jinja where it has tools and is proven, else the TEMPLATE.
        jinja: the model's chat template.
        template: the proven TEMPLATE, or None where it was refused.
        native: the Jinja as the GGUF may carry it, with its proof; None where nothing could be compared.
        writable: whether the GGUF is ours to write, so that it can carry another Jinja than the model's.
        tools: whether the chat template writes tools into the prompt.
        architecture: the GGUF's architecture, for those that Ollama has renderers of its own for.
        plain_system: whether the system text can stand in a Modelfile; if not it goes into the TEMPLATE.
        built_in: the best of Ollama's renderers, for such an architecture.
    """
    if architecture in NEWEST.renderers:
        carried = native.source if native is not None and writable else jinja
        return _by_renderer(carried, template, architecture, built_in, tools)
    by_template = None if template is None else _by_template(jinja, template, tools)
    by_jinja = _by_jinja(jinja, template, native, writable, tools)
    if by_template is None:
        return by_jinja
    proven = native is not None and native.difference is None and plain_system
    take_jinja = asked == "jinja" or (asked is None and tools and proven)
    chosen, other, turn = (
        (by_jinja, by_template, "template") if take_jinja else (by_template, by_jinja, "jinja")
    )
    said = f"`--ollama-path {turn}` takes {other.says}"
    return Route(chosen.way, chosen.jinja, chosen.template, chosen.parser, chosen.says, said, chosen.equal)


def _by_template(jinja: str, template: str, tools: bool) -> Route:
    parser = None if select(jinja, template) == "template" else PASSTHROUGH
    thinks = "thinking" in template_abilities(template)
    equal = tuple(state for state in STATES if not isinstance(think_of(thinks, state), Refused))
    refused = tuple(state for state in STATES if state not in equal)
    says = f"the TEMPLATE: think {_listed(equal)} write the training's prompt{_refusals(refused, tools)}"
    return Route("template", jinja, template, parser, says, None, equal)


def _by_jinja(jinja: str, template: str | None, native: Native | None, writable: bool, tools: bool) -> Route:
    carried = native.source if native is not None and writable else jinja
    beside = template if template is not None and select(carried, template) == "jinja" else None
    if beside is None and writable and guessable(carried):
        carried = guarded(carried)
    equal: tuple[bool | None, ...] = ()
    if native is None:
        says = "the GGUF's own Jinja template; its prompt was not compared"
    else:
        equal = native.equal
        says = "the GGUF's own Jinja template" + (", with tools" if tools else "")
        says += f": think {_listed(equal)} write the training's prompt" if equal else ""
        if native.difference is not None:
            says += f"; another prompt for {native.difference}"
        says += _refusals(native.refused)
    return Route("jinja", carried, beside, None, says, None, equal)


def _by_renderer(
    jinja: str, template: str | None, architecture: str, built_in: BuiltIn | None, tools: bool
) -> Route:
    taken = NEWEST.renderers[architecture]
    always = f"which it takes for every model of the architecture {architecture}"
    if built_in is None or not built_in.equal:
        why = "was not compared" if built_in is None else f"writes another prompt ({built_in.difference})"
        says = f"Ollama's own renderer {taken!r}, {always}: it {why}, and no Modelfile keeps it out"
        return Route("renderer", jinja, template, None, says, None, ())
    renderer, reader = built_in.renderer, built_in.reader
    says = f"Ollama's own renderer {renderer.name!r}: think {_listed(built_in.equal)} write the training's "
    says += "prompt"
    if built_in.difference is not None:
        says += f"; another prompt for {built_in.difference}"
    says += _refusals(built_in.refused, tools and not reader.tools)
    says += "; what it writes of tools was not compared" if tools and reader.tools else ""
    other = None
    if built_in.refused and (own := renderer.readers[0]).thinking:
        other = (
            f"`PARSER {own.name}` in the Modelfile lets a request turn thinking on, but then unset is on too"
        )
    return Route(
        "renderer", jinja, template, reader.name, says, other, built_in.equal, renderer.name, built_in.system
    )


def _refusals(states: tuple[bool | None, ...], tools: bool = False) -> str:
    """What Ollama refuses on a way, as the end of a sentence; "" if it is nothing."""
    lost = [f"think {_listed(states)}"] * bool(states) + ["tools"] * tools
    return f"; Ollama refuses {' and '.join(lost)} (HTTP 400)" if lost else ""


def _listed(states: tuple[bool | None, ...]) -> str:
    return listed([state_name(state) for state in states])


def thoughts(jinja: str) -> tuple[str, str]:
    """The tags around thoughts that a chat template writes or knows of."""
    return next((tags for tags in THOUGHTS if all(tag in jinja for tag in tags)), THOUGHTS[0])
