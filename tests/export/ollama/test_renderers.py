"""Ollama's built-in renderers, held against prompts that a real server gave (`_debug_render_only`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chats as material
import pytest

from lorafold.chat.sandbox import Job, render_many
from lorafold.export.ollama.renderers import BUILT_IN
from lorafold.export.ollama.rules import NEWEST

RECORDED: dict[str, Any] = json.loads(
    Path(material.__file__).with_name("ollama_renderers.json").read_text(encoding="utf-8")
)
BY_NAME = {renderer.name: renderer for renderers in BUILT_IN.values() for renderer in renderers}


@pytest.mark.parametrize("name", BY_NAME)
def test_what_a_renderer_writes(name: str) -> None:
    compared = 0
    for thinking, prompts in RECORDED["prompts"][name].items():
        variables = {} if thinking == "None" else {"thinking": thinking == "True"}
        own_text = {"own_text": "(its own text)"}  # as recorded in place of the server's words
        jobs = [Job(messages, variables | own_text) for messages in RECORDED["chats"]]
        assert render_many(BY_NAME[name].jinja, jobs, name) == prompts, thinking
        compared += len(prompts)
    assert compared >= 8


def test_every_architecture_with_a_renderer_has_its_rows() -> None:
    assert set(NEWEST.renderers.values()) == set(BUILT_IN)
    assert set(RECORDED["prompts"]) == set(BY_NAME)
    for renderers in BUILT_IN.values():
        assert all(renderer.readers[-1].name == "passthrough" for renderer in renderers)
