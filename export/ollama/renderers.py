"""What Ollama's built-in renderers write of chats without tools, as Jinja.

`create` gives a model of some architectures a RENDERER, whatever its Modelfile says. Which renderer writes
the training's prompt can be found if it is known what each of them writes. Read in the sources of Ollama
0.33.0-rc2 (model/renderers) and held against that server (docs/modelfile.md).

The Jinja here gets `messages`, and `thinking`: true, false, or undefined if Ollama hands over nothing. What a
renderer says by itself where nobody gives a system text is `own_text`; its words are Ollama's and not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafold.export.ollama.rules import PASSTHROUGH


@dataclass(frozen=True, slots=True)
class AnswerParser:
    """A PARSER: who reads the answer, and what Ollama lets a request ask for with it.

    Attributes:
        name: PARSER.
        tools: requests may bring tools.
        thinking: requests may turn thinking on; where they say nothing Ollama does.
    """

    name: str
    tools: bool = False
    thinking: bool = False


AS_IT_COMES = AnswerParser(PASSTHROUGH)


@dataclass(frozen=True, slots=True)
class Renderer:
    """A prompt that is built into Ollama.

    Attributes:
        name: RENDERER.
        jinja: what it writes.
        readers: the PARSERs that go with it, those that can most first.
        own_system: whether it says something where nobody gives a system text; a SYSTEM that is blank keeps
            that out.
    """

    name: str
    jinja: str
    readers: tuple[AnswerParser, ...] = (AS_IT_COMES,)
    own_system: bool = False


# `blanks` is Go's unicode.IsSpace; Python's strip takes off four control characters more.
_HEAD = r"""
{%- set on = thinking is defined and thinking -%}
{%- set told = messages[0].role == 'system' -%}
{%- set rest = messages[1:] if told else messages -%}
{%- set blanks = '\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009'
    ~ '\u200a\u2028\u2029\u202f\u205f\u3000' -%}
"""

_GEMMA4 = r"""
{{- '<bos>' -}}
{%- if told or on -%}
{{- '<|turn>system\n' ~ ('<|think|>\n' if on else '') -}}
{{- (messages[0].content | trim(blanks) if told else '') ~ '<turn|>\n' -}}
{%- endif -%}
{%- for m in rest -%}
{{- '<|turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' -}}
{{- (m.content | trim(blanks)) ~ '<turn|>\n' -}}
{%- endfor -%}
{{- '<|turn>model\n' -}}
"""
_GEMMA4_LARGE = (
    _GEMMA4
    + r"""{{- '' if on else '<|channel>thought\n<channel|>' -}}
"""
)

_LAGUNA_HEAD = r"""
{{- '〈|EOS|〉' -}}
{%- set system = (('.' ~ (messages[0].content if told else own_text)) | trim(blanks))[1:] -%}
{%- set said = system | trim(blanks) != '' -%}
"""
_LAGUNA = (
    _LAGUNA_HEAD
    + r"""
{{- '<system>\n\n' ~ system ~ '\n</system>\n' if said else '' -}}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{{- '<user>\n' ~ m.content ~ '\n</user>\n' -}}
{%- else -%}
{%- set text = m.content | trim(blanks) -%}
{{- '<assistant>\n</think>\n' ~ text ~ ('\n' if text else '') ~ '</assistant>\n' -}}
{%- endif -%}
{%- endfor -%}
{{- '<assistant>\n' ~ ('<think>' if on else '</think>') -}}
"""
)
_POOLSIDE = (
    _LAGUNA_HEAD
    + r"""
{{- '<system>' ~ (system if said else '') ~ '</system>\n' if said or on else '' -}}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{{- '<user>' ~ m.content ~ '</user>\n' -}}
{%- else -%}
{{- '<assistant>' ~ ('<think>' if on else '') ~ '</think>' ~ m.content ~ '</assistant>\n' -}}
{%- endif -%}
{%- endfor -%}
{{- '<assistant>' ~ ('<think>' if on else '</think>') -}}
"""
)

# Words such as /no_think in a text, which the older one follows, are not looked for here.
_NEMOTRON = r"""
{{- '<|im_start|>system\n' ~ (messages[0].content if told else '') ~ '<|im_end|>\n' -}}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{%- set text = USER -%}
{%- else -%}
{%- set text = ('<think></think>' ~ m.content) | trim(blanks) -%}
{%- endif -%}
{{- '<|im_start|>' ~ m.role ~ '\n' ~ text ~ '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' ~ ('<think></think>' if thinking is defined and not on else '<think>\n') -}}
"""

_CHATML = r"""
{%- for m in messages -%}
{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' -}}
"""
ANYBODYS = (Renderer("qwen3-vl-instruct", _HEAD + _CHATML),)
"""For a model of one of these architectures that was trained on ChatML."""


def _own(name: str) -> AnswerParser:
    return AnswerParser(name, tools=True, thinking=True)


_GEMMA4_READERS = (_own("gemma4"), AnswerParser("gemma4-no-thinking", tools=True), AS_IT_COMES)
BUILT_IN: dict[str, tuple[Renderer, ...]] = {
    "gemma4": (
        Renderer("gemma4-large", _HEAD + _GEMMA4_LARGE, _GEMMA4_READERS),
        Renderer("gemma4-small", _HEAD + _GEMMA4, _GEMMA4_READERS),
        *ANYBODYS,
    ),
    "laguna": (
        Renderer("laguna", _HEAD + _LAGUNA, (_own("laguna"), AS_IT_COMES), own_system=True),
        Renderer("poolside-v1", _HEAD + _POOLSIDE, (_own("poolside-v1"), AS_IT_COMES), own_system=True),
        *ANYBODYS,
    ),
    "nemotron-3-nano": (
        Renderer(
            "nemotron-3-nano",
            _HEAD + _NEMOTRON.replace("USER", "m.content | trim(blanks)"),
            (_own("nemotron-3-nano"), AS_IT_COMES),
        ),
        Renderer(
            "nemotron-3.5-nano",
            _HEAD + _NEMOTRON.replace("USER", "m.content"),
            (_own("nemotron-3.5-nano"), AS_IT_COMES),
        ),
        *ANYBODYS,
    ),
}
"""Those that may write a model's prompt, by the one that Ollama takes where none is named."""
