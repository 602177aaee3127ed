"""Which way the prompt goes, what is written for it, and what the user is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import TOKENS
from oracles import shared

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError
from lorafold.export.config import ModelfileConfig
from lorafold.export.modelfile.go.evaluate import evaluate
from lorafold.export.modelfile.parser import parse
from lorafold.export.modelfile.plan import ModelfilePlan, make_modelfile, plan_modelfile, write_modelfile
from lorafold.export.modelfile.probe import Chat, Variant
from lorafold.export.modelfile.proof import ollama_data
from lorafold.export.ollama.rules import guessable, select, template_abilities

CONTROLS = frozenset(TOKENS.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "model"


def planned(folder: Path, name: str, **options: object) -> ModelfilePlan:
    source = (shared("templates") / f"{name}.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(source, TOKENS, CONTROLS, name)
    return plan_modelfile(folder, chat_template=template, conversations=24, writable=True, **options)  # type: ignore[arg-type]


WAYS = {
    # tools, and the Jinja writes the same: nothing is lost
    "Qwen-Qwen3-0.6B": ("jinja", None, (None, True, False)),
    "Reka-Edge": ("jinja", None, (None, False)),
    # tools, but llama.cpp trims otherwise: PARSER keeps the Jinja out
    "meta-llama-Llama-3.2-3B-Instruct": ("template", "passthrough", (None, False)),
    "GLM-4.7-Flash": ("template", "passthrough", (None, True, False)),
    # three prompts that Ollama cannot tell apart: two of them are right
    "openbmb-MiniCPM5-1B": ("template", "passthrough", (None, False)),
    # no tools: the TEMPLATE wins by itself, with thinking by its part that is never printed
    "HuggingFaceTB-SmolLM3-3B": ("template", None, (None, True, False)),
    "google-gemma-2-2b-it": ("template", None, (None, False)),
    # tools are only mentioned in the history
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("template", "passthrough", (None, False)),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_way_of_a_model(folder: Path, name: str) -> None:
    way, parser, equal = WAYS[name]
    plan = planned(folder, name)
    route = plan.route
    assert (route.way, route.parser) == (way, parser)
    assert tuple(state for state in (None, True, False) if state in route.equal) == equal
    read = parse(write_modelfile(plan, "./m.gguf"))
    assert (read.parser, read.template) == (parser, route.template)
    # Ollama, by its own rules, goes there.
    assert select(plan.contract.template_source, read.template, parser=read.parser) == way


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("asked", ["template", "jinja"])
def test_the_choice_can_be_turned(folder: Path, name: str, asked: str) -> None:
    plan = planned(folder, name, path=asked)
    assert plan.route.way == asked
    contract = plan.contract
    written = contract.go_template
    assert select(contract.template_source, written, parser=contract.parser) == asked
    if written is None:
        assert (
            not contract.template_source.startswith("{%")
            and "Written by lorafold" in contract.template_source
        )
    says = dict(plan.paths())
    other = "jinja" if asked == "template" else "template"
    assert says["to choose"].startswith(f"`--ollama-path {other}` takes the ")


def test_what_is_lost_is_said(folder: Path) -> None:
    says = dict(planned(folder, "meta-llama-Llama-3.2-3B-Instruct").paths())
    assert says["Ollama 0.30 and later"] == (
        "the TEMPLATE: think unset and false write the training's prompt; "
        "Ollama refuses think true and tools (HTTP 400)"
    )
    assert "such as U+3000, at the edge of a text stays there" in says["to choose"]
    assert "older ones do not know PARSER" in says["Ollama before 0.30"]
    says = dict(planned(folder, "Qwen-Qwen3-0.6B").paths())
    assert says["Ollama 0.30 and later"] == (
        "the GGUF's own Jinja template, with tools: think unset, true and false write the training's prompt"
    )
    text = write_modelfile(planned(folder, "Qwen-Qwen3-0.6B"), "./m.gguf")
    assert "# Ollama 0.30 and later: the GGUF's own Jinja template, with tools" in text
    assert "to choose" not in text and "Both write" not in text


def test_the_thinking_part_is_never_printed(folder: Path) -> None:
    plan = planned(folder, "HuggingFaceTB-SmolLM3-3B")
    written = plan.contract.go_template or ""
    assert template_abilities(written) == {"thinking"} and "{{- if false -}}<think>{{ .Thinking }}" in written
    chat = Chat(None, ("Hi", "Yo", "So?"))
    for think in (True, False):
        data = ollama_data(chat, Variant(True, think, {}))
        for message in data["Messages"]:
            message["Thinking"] = "a thought"
        assert "a thought" not in evaluate(written, data)


def test_a_model_that_was_tuned_to_think_may_be_asked_to(folder: Path) -> None:
    plan = planned(folder, "Reka-Edge", thinking=True, path="template")
    assert True in plan.route.equal and "thinking" in template_abilities(plan.contract.go_template or "")
    plan = planned(folder, "Reka-Edge", thinking=False, path="template")
    assert True not in plan.route.equal


def test_a_system_text_that_only_a_template_can_hold(folder: Path) -> None:
    awkward = "Be\u3000kind."
    assert planned(folder, "Qwen-Qwen3-0.6B", system="Be kind.").route.way == "jinja"
    plan = planned(folder, "Qwen-Qwen3-0.6B", system=awkward)
    read = parse(write_modelfile(plan, "./m.gguf", system=awkward))
    assert plan.route.way == "template" and read.system is None and "\\u3000" in str(read.template)
    assert "thinking" in template_abilities(read.template or ""), (
        "the default text does not cost the thinking"
    )
    plan = planned(folder, "Qwen-Qwen3-0.6B", system=awkward, path="jinja")
    with pytest.raises(InputError, match=r"--system: .*Jinja way has no other place.*--ollama-path template"):
        write_modelfile(plan, "./m.gguf", system=awkward)


def test_an_adapter_is_for_older_ollama(folder: Path) -> None:
    text = write_modelfile(planned(folder, "Qwen-Qwen3-0.6B"), "base", adapter="./a.gguf")
    assert "# Ollama 0.34.1 and later refuse ADAPTER" in text and "ADAPTER ./a.gguf" in text


def test_a_file_that_is_there_keeps_its_jinja(folder: Path) -> None:
    """`lorafold modelfile` cannot pin anything in it: then the TEMPLATE is taken, or the user is warned."""
    for name, way in (("Qwen-Qwen3-0.6B", "jinja"), ("Reka-Edge", "template")):
        source = (shared("templates") / f"{name}.jinja").read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(source)
        out = folder / f"Modelfile-{name}"
        result = make_modelfile(ModelfileConfig(folder, out=out, conversations=24))
        assert result.plan.route.way == way and result.plan.contract.template_source == source
    short = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}{% if tools %}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(short)
    result = make_modelfile(ModelfileConfig(folder, out=folder / "M", allow_embedded_jinja=True))
    assert guessable(short) and any("may take one of its own" in note for note in result.plan.notes)


SPOKEN = "{% for m in messages %}{{ '\n' + m.role + '\n\n' + m.content }}{% endfor %}{{ '\nassistant\n\n' }}"


def test_stops_keep_their_line_breaks_and_spare_answers(folder: Path) -> None:
    template = ChatTemplate(SPOKEN, {}, frozenset(), "spoken")
    plan = plan_modelfile(folder, chat_template=template, conversations=24)
    assert plan.contract.stops == ("\nuser\n\n",)
    assert parse(write_modelfile(plan, "./m.gguf")).stops == plan.contract.stops
    answers = ["It said:\nuser\n\nand so on.", "Yes."]
    plan = plan_modelfile(folder, chat_template=template, conversations=24, answers=answers)
    assert plan.contract.stops == ()
    assert any("is not used as a stop, because it occurs in 1 of the answers" in note for note in plan.notes)
    flat = ChatTemplate(SPOKEN.replace("\n", ""), {}, frozenset(), "flat")
    plan = plan_modelfile(folder, chat_template=flat, conversations=24)
    assert plan.contract.stops == () and any("it is an ordinary word" in note for note in plan.notes)
