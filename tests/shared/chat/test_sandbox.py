"""Templates that are wrong or hostile: refused by name, stopped in time, and kept from everything else."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from chats import CHAT

from lorafold.chat import sandbox
from lorafold.chat.sandbox import Job, Refusal, render_many
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError, SystemFault, UnsafeInputError


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(InputError, match=r"t\.jinja:3: .*syntax error") as caught:
        ChatTemplate("{% if a %}\nb\n{% endfor %}", origin="t.jinja").render(CHAT)
    assert caught.value.exit_code == 3


def test_a_syntax_error_needs_no_new_worker() -> None:
    """A new one takes a tenth of a second; what was asked at once is not answered later."""
    assert render_many("{{ messages }}", [Job(["a"])]) == ["['a']"]
    first = sandbox._kept.child
    assert first is not None
    with pytest.raises(InputError, match="syntax error"):
        render_many("{% if %}", [Job([])] * 100)
    assert render_many("{{ messages }}", [Job(["b"])]) == ["['b']"]
    assert sandbox._kept.child is first


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ ('{0.__class__}').format(1) }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_way_out_of_the_sandbox_is_unsafe(source: str) -> None:
    with pytest.raises(UnsafeInputError) as caught:
        ChatTemplate(source).render(CHAT)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a'.ljust(10**11) }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ [1] * 10**9 }}",
    ],
)
def test_a_bomb_is_stopped(source: str) -> None:
    begun = time.process_time()
    with pytest.raises(UnsafeInputError, match="was stopped") as caught:
        ChatTemplate(source).render(CHAT)
    assert caught.value.exit_code == 4
    assert time.process_time() - begun < 1, "this process did the work"
    assert ChatTemplate("{{ messages[0].content }}").render(CHAT) == "Be kind.", "the next template renders"


def test_a_very_long_message_is_no_bomb() -> None:
    """The memory limit is for the template; what was said takes its own room."""
    long = "é" * 8_000_000
    assert (
        ChatTemplate("{{ messages[0].content | trim }}").render([{"role": "user", "content": long}]) == long
    )


def test_a_template_sees_none_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is started without our variables, so that an escape would find no secret there."""
    import lorafold.chat.sandbox as sandbox

    monkeypatch.setenv("SECRET_TOKEN_FOR_TEST", "hunter2")
    sandbox._kept.drop()
    render_many("x", [Job([])])
    assert sandbox._kept.child is not None
    environment = Path(f"/proc/{sandbox._kept.child.process.pid}/environ")
    if not environment.exists():
        pytest.skip("no /proc here")
    assert b"hunter2" not in environment.read_bytes()


def test_a_forked_child_renders_by_itself() -> None:
    template = ChatTemplate("{{ messages[1].content }}")
    template.render(CHAT)
    child = os.fork()
    if child == 0:
        os._exit(0 if template.render(CHAT) == "Hi" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(CHAT) == "Hi"


def test_a_template_that_refuses_says_so() -> None:
    with pytest.raises(InputError, match=r"g:1: the chat template refuses this conversation: System role"):
        ChatTemplate("{{ raise_exception('System role not supported') }}", origin="g").render(CHAT)
    assert render_many("{{ a.b }}", [Job([])]) == [Refusal(False, "'a' is undefined", 1)]


def test_a_worker_that_the_kernel_ends_is_no_fault_of_the_template() -> None:
    """A container that has used up its memory has a process of it killed, and says nothing."""
    render_many("{{ 1 }}", [Job([])])
    assert sandbox._kept.child is not None
    threading.Timer(0.3, os.kill, (sandbox._kept.child.process.pid, signal.SIGKILL)).start()
    with pytest.raises(SystemFault, match=r"was killed: memory has ended here; fix: close other programs"):
        render_many(
            "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}", [Job([])]
        )
    assert render_many("{{ 1 }}", [Job([])]) == ["1"]
