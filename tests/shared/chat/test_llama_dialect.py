"""llama.cpp's Jinja as the sandbox imitates it, held against llama.cpp's own server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import TOKENS, all_templates
from llama_server import llama_prompts

from lorafold.chat.llama_dialect import readable, unreadable
from lorafold.chat.sandbox import Job, Refusal, render_many
from lorafold.chat.template import ChatTemplate
from lorafold.export.modelfile.plan import plan_modelfile

# t is a text, l a list, d an object, ms a list of messages.
GIVEN = (
    "{%- set t = ' a Test  B\\n lineéx' %}{%- set l = ['b','a','b','c'] %}"
    "{%- set d = {'k':'v','a':1,'n':none} %}"
    "{%- set ms = [{'role':'user','content':' x '},{'role':'assistant','content':'y'}] %}"
)
SNIPPETS = (
    "t | upper",
    "t | lower",
    "t | title",
    "'éa b' | capitalize",
    "t | length",
    "l | length",
    "t | replace('a','b')",
    "t | replace('a','b',1)",
    "t | first",
    "l | first",
    "l | last",
    "ms | last | tojson",
    "t | reverse",
    "l | reverse | join",
    "l | unique | join",
    "l | map('upper') | join",
    "ms | map(attribute='role') | join(',')",
    "ms | selectattr('role','equalto','user') | list | length",
    "ms | selectattr('role','in',['user']) | list | length",
    "ms | selectattr('role','ne','user') | list | length",
    "ms | selectattr('role','==','user') | list | length",
    "ms | selectattr('nope','undefined') | list | length",
    "ms | rejectattr('role','defined') | list | length",
    "ms | selectattr('role') | list | length",
    "l | select('equalto','b') | list | length",
    "none | default('x')",
    "nope | default('x')",
    "'' | default('x', true)",
    "none",
    "l",
    "d",
    "[1,'a',none]",
    "3.0",
    "'a' ~ l",
    "'%s-%s' | format('a','b')",
    "'%s' % 'a'",
    "7 % 3",
    "'a{}b'.format('x')",
    "t.split() | join('|')",
    "t.split('a') | last",
    "t.splitlines() | join('|')",
    "t.partition('a')[0]",
    "t.startswith('a')",
    "t.startswith(('x',' '))",
    "t.find('a')",
    "t.count('a')",
    "t.removeprefix(' ')",
    "'a'.join(l)",
    "'x'.zfill(4)",
    "t.upper()",
    "t[0]",
    "t[-1]",
    "t[:3]",
    "l[::-1] | join",
    "ms[-1].role",
    "t | wordcount",
    "t | truncate(5)",
    "3.5 | round",
    "t | e",
    "dict(a=1) | tojson",
    "cycler is defined",
    "[1,2] | sum",
    "l.index('b')",
)


def test_it_does_what_llama_cpp_does() -> None:
    cases = "".join(
        f"{{% if messages[0].content == 'q{at}q' %}}{{{{ {snippet} }}}}{{% endif %}}"
        for at, snippet in enumerate(SNIPPETS)
    )
    source = f"{GIVEN}{cases}{{% for m in messages %}}{{{{ '<' ~ m.role ~ '>' ~ m.content }}}}{{% endfor %}}"
    chats = [[{"role": "user", "content": f"q{at}q"}] for at in range(len(SNIPPETS))]
    theirs = llama_prompts(source, [{"messages": chat} for chat in chats])
    ours = render_many(source, [Job(chat, {}) for chat in chats], "snippets", "llama")
    refused = 0
    for snippet, there, here in zip(SNIPPETS, theirs, ours, strict=True):
        if there.startswith("error"):
            refused += 1
            assert isinstance(here, Refusal), snippet
        else:
            assert here == there, snippet
    assert 20 < refused < 40


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ 7 // 2 }}", "no operator //"),
        ("{{ 2 ** 3 }}", "no operator **"),
        ("{{ 1e3 }}", "no numbers such as 1e3"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "no statement with"),
        ("{% raw %}{{ x }}{% endraw %}", "no {% raw %}"),
        ("{% for i in [1] recursive %}{{ i }}{% endfor %}", "no recursive loops"),
        ("{% for i in [1] recursive -%}\n{{ i }}{% endfor %}", "no recursive loops"),
        ("{{ 'x' is eq 'x' }}", "`is eq 'x'`"),
        ("{{ 4 is not divisibleby 3 }}", "`is divisibleby 3`"),
        ("{{ '\\u4f60' }}", "no escapes such as"),
        ('{{ "\\x41" }}', "no escapes such as"),
        ("{{ 'x' is eq('x') }}{{ x is defined and y }}{{ 'a' if x is none else 'b' }}", None),
        ("{{ '\\n\\\\u4f60' }}{# \\u4f60 #}", None),
        ("{% for m in messages if m.role is not none %}{% continue %}{% endfor %}", None),
    ],
)
def test_what_it_cannot_read(source: str, why: str | None) -> None:
    whole = source + "{% for m in messages %}{{ m.content }}{% endfor %}"
    found = unreadable(whole)
    assert (why in found) if why and found else found is why
    (prompt,) = _asked(whole)
    assert prompt and prompt.startswith("error") == (why is not None)


def _asked(source: str) -> list[str]:
    try:
        return llama_prompts(source, [{"messages": [{"role": "user", "content": "Hi"}]}])
    except AssertionError:  # the server ended
        return ["error"]


def test_escapes_become_characters() -> None:
    source = (
        "{% for m in messages %}{{ '<\\uff5c\\x27\\n\\\\' ~ m.role ~ \"\\u0022\" ~ m.content }}{% endfor %}"
    )
    changed = readable(source)
    assert unreadable(source) and unreadable(changed) is None and "｜" in changed
    job = Job([{"role": "user", "content": "Hi"}], {})
    assert render_many(changed, [job]) == render_many(source, [job]) == ["<｜'\n\\user\"Hi"]
    assert _asked(changed) == ["<｜'\n\\user\"Hi"]
    for name, template in all_templates().items():
        assert unreadable(readable(template)) is None, name


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_escapes_become_characters_whatever_ends_a_line(end: str) -> None:
    lines = ("{% for m in messages %}", "a", "a", "{{- '\\u4f60' ~ m.content }}", "b{% endfor %}", "")
    source = end.join(lines)
    changed = readable(source)
    job = Job([{"role": "user", "content": "Hi"}], {})
    assert unreadable(changed) is None and "你" in changed
    assert render_many(changed, [job]) == render_many(source, [job])
    assert _asked(changed) == render_many(changed, [job], dialect="llama")


CHATML = (
    "{%- if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}"
    "BEFORE{{ m.content ~ '<|im_end|>' }}AFTER{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("before", "after", "way"),
    [
        ("", "", "jinja"),
        ("{% if m.role is eq 'user' %}{% endif %}", "", "template"),
        ("{% if m.content.splitlines() | length > 99 %}x{% endif %}", "", "template"),
        ("{{ '%s' % '' }}", "", "template"),
        ("{% if messages | selectattr('nope', 'defined') | list %}x{% endif %}", "", "template"),
        ("", "{{ none if loop.last }}", "template"),
        ("{% if tools and (tools | first).function.name | wordcount > 9 %}x{% endif %}", "", "template"),
    ],
)
def test_a_jinja_that_llama_cpp_has_otherwise_is_not_taken(
    tmp_path: Path, before: str, after: str, way: str
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    template = ChatTemplate(
        CHATML.replace("BEFORE", before).replace("AFTER", after), TOKENS, origin="made up"
    )
    plan = plan_modelfile(tmp_path, chat_template=template, conversations=24, writable=True)
    assert plan.route.way == way
    if before:
        assert "llama.cpp" in str(plan.route.other) or "fails there" in str(plan.route.other)
