"""Changes of a text by its words and lines: templates, recipes, Modelfiles, tables, merges."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache

_PIECE = re.compile(rb"\w+|[ \t]+|\r?\n|[^\w\s]+|.", re.DOTALL)
# What a grammar knows beyond the words of its samples.
WORDS: dict[str, tuple[bytes, ...]] = {
    "yaml": (
        *(b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!!binary ", b"!!set ", b"!x ", b"- "),
        *(b": ", b"| ", b">-", b"? ", b"---\n", b"...\n", b"%YAML 1.1\n", b"[", b"]", b"{", b"}", b"'", b'"'),
        *(b"~", b"yes", b"off", b"1e3", b"1_0", b"0x1f", b"0o7", b".inf", b".nan", b"2001-02-30", b"1:30"),
        *(
            b"2001-12-14t21:59:43.10-05:00",
            b"\t",
            b"#",
            b"@",
            b"`",
            b"\xc2\x85",
            b"\xe2\x80\xa8",
            b"\0",
            b"-",
        ),
        *(b"base", b"r", b"learning-rate", b"load-in-4bit", b"no-load-in-4bit", b"recipe", b"lora_alpha"),
        *(b"true", b"null", b"[1, x]", b"{a: b}", b"-1", b"99999999999999999999", b"1e999", b"''"),
    ),
    "jinja": (
        *(b"{{", b"}}", b"{%", b"%}", b"{%-", b"-%}", b"{#", b"#}", b" if ", b" else ", b"{% endif %}", b"|"),
        *(
            b"{% for m in messages %}",
            b"{% endfor %}",
            b"{% set x = 1 %}",
            b"{% macro f() %}",
            b"{% endmacro %}",
        ),
        *(
            b"{% generation %}",
            b"{% endgeneration %}",
            b"{% break %}",
            b"loop.index0",
            b"loop.previtem",
            b"~",
        ),
        *(
            b"namespace(a=1)",
            b"ns.a",
            b"messages[0]",
            b"message['content']",
            b"message.role",
            b"tools",
            b"[::-1]",
        ),
        *(
            b"|tojson(indent=4)",
            b"|trim",
            b"|join",
            b"|map('upper')|list",
            b"|selectattr('role')",
            b"|length",
        ),
        *(
            b"|first",
            b"|last",
            b"|items",
            b"|dictsort",
            b"|batch(2)",
            b"|default('x', true)",
            b"|string|safe",
        ),
        *(
            b"|format(1)",
            b"|attr('__class__')",
            b".__class__",
            b".format(x)",
            b"range(10**9)",
            b"'a' * 10**10",
        ),
        *(
            b"raise_exception('x')",
            b"strftime_now('%d')",
            b"strftime_now('%' * 99)",
            b"dict(a=1)",
            b"cycler(1)",
        ),
        *(
            b"lipsum(5)",
            b"joiner()",
            b"self",
            b"caller()",
            b"varargs",
            b"{% include 'x' %}",
            b"{% import 'x' as y %}",
        ),
        *(
            b"{% extends messages %}",
            b"{% block b %}{% endblock %}",
            b"{% filter upper %}",
            b"{% endfilter %}",
        ),
        *(
            b"{% raw %}",
            b"{% endraw %}",
            b"{% call f() %}{% endcall %}",
            b"{% with a = 1 %}",
            b"{% endwith %}",
        ),
        *(
            b"add_generation_prompt",
            b"eos_token",
            b"1/0",
            b"2**99999",
            b"'%s' % x",
            b"is defined",
            b" in ",
            b"not ",
        ),
        *(
            b".split('</think>')[-1]",
            b".strip('\\n')",
            b".get('x')",
            b".items()",
            b".startswith('a')",
            b"none",
        ),
        *(
            b"{% do x %}",
            b"{% continue %}",
            b"\\u0000",
            b"0x",
            b"1.e",
            b"''",
            b'"',
            b"(",
            b")",
            b"[",
            b"]",
            b",",
        ),
    ),
    "modelfile": (
        *(
            b'"""',
            b'"',
            b"FROM ",
            b"ADAPTER ",
            b"TEMPLATE ",
            b"SYSTEM ",
            b"PARAMETER ",
            b"MESSAGE ",
            b"LICENSE ",
        ),
        *(
            b"stop ",
            b"temperature ",
            b"user ",
            b"assistant ",
            b"\r\n",
            b"\0",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"#",
        ),
        *(b"{{ .Prompt }}", b"REQUIRES ", b"PARSER ", b"RENDERER ", b"num_ctx ", b"1e9", b"-1", b"\\", b"'"),
    ),
    "calls": (
        *(b"<tool_call>", b"</tool_call>", b"[TOOL_CALLS]", b"[ARGS]", b"[CALL_ID]", b"</s>", b"<arg_key>"),
        *(
            b'<|"|>',
            b"<escape>",
            b"<|tool_call>call:",
            b"<tool_call|>",
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b"null",
        ),
        *(
            b"\\u0000",
            b'"\\u00001"',
            b'"\\u0000x"',
            b"None",
            b"NaN",
            b"1e999",
            b"\\ud800",
            b"\xff",
            b";",
            b"```",
        ),
        *(
            b'"arguments"',
            b'"parameters"',
            b'"name"',
            b'"{}"',
            b"x" * 200,
            b"[" * 200,
            b"9" * 5000,
            b"\xe2\x91\xa0",
        ),
    ),
    "text": (
        *(
            b'"',
            b'""',
            b"'",
            b",",
            b";",
            b"\t",
            b"\r",
            b"\n\n",
            b"\0",
            b"\xef\xbb\xbf",
            b"\xff",
            b"\xed\xa0\x80",
        ),
        *(
            b"sep=|\n",
            b"instruction",
            b"output",
            b"prompt",
            b"messages",
            b"#version: 0.2",
            b" ",
            b"\xc4\xa0",
            b"{}",
        ),
        *(b"[]", b"null", b"nan", b"=1+1", b"\xe2\x80\xa8", b"a" * 300, b"\x1b[2J", b"1e999", b"\\n"),
    ),
}


@lru_cache(maxsize=4096)
def pieces(text: bytes) -> tuple[bytes, ...]:
    """Words, blanks, ends of lines, and signs."""
    return tuple(_PIECE.findall(text))


@lru_cache(maxsize=4096)
def _lines(text: bytes) -> tuple[bytes, ...]:
    return tuple(text.splitlines(keepends=True))


def change_text(text: bytes, form: str, dice: random.Random, others: Sequence[bytes], times: int) -> bytes:
    """A copy with so many words or lines changed, removed, doubled, moved or taken from another text."""
    by_line = dice.random() < 0.25
    cut = _lines if by_line else pieces
    parts = list(cut(text))
    for _ in range(times):
        at = dice.randrange(len(parts) + 1)
        what = dice.random()
        if what < 0.15 or not parts:
            parts.insert(at, dice.choice(WORDS[form]))
        elif what < 0.35:
            parts[at : at + 1] = [dice.choice(WORDS[form])]
        elif what < 0.60 and others and (taken := cut(dice.choice(others))):
            first = dice.randrange(len(taken))
            parts[at : at + dice.choice((0, 1, 1, 3))] = taken[first : first + dice.choice((1, 1, 3, 9))]
        elif what < 0.75:
            del parts[at : at + dice.choice((1, 1, 2, 8))]
        elif what < 0.90:
            parts[at:at] = parts[at : at + dice.choice((1, 2, 5))] * dice.choice((1, 1, 2, 30))
        else:
            other = dice.randrange(len(parts))
            at = min(at, len(parts) - 1)
            parts[at], parts[other] = parts[other], parts[at]
    return b"".join(parts)
