"""Architectures for which Ollama has renderers: the one that writes the training's prompt is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oracles import shared

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError
from lorafold.export.modelfile.built_in import BLANK_SYSTEM, find_built_in
from lorafold.export.modelfile.parser import parse
from lorafold.export.modelfile.plan import ModelfilePlan, plan_modelfile, write_modelfile
from lorafold.export.ollama.rules import select

BOS = {"gemma4": "<bos>", "laguna": "〈|EOS|〉"}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)


def template_of(name: str, bos: str = "<s>") -> ChatTemplate:
    source = CHATML if name == "chatml" else (shared("templates") / f"{name}.jinja").read_text("utf-8")
    return ChatTemplate(source, {"bos_token": bos, "eos_token": "</s>"}, frozenset((bos, "</s>")), name)


def planned(folder: Path, kind: str, name: str, **options: object) -> ModelfilePlan:
    named = str(options.get("architecture", kind))
    bos = next((bos for family, bos in BOS.items() if named.startswith(family)), "<s>")
    settings = {"bos_token": bos, "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    template = template_of(name, bos)
    return plan_modelfile(folder, chat_template=template, conversations=24, writable=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name", "renderer", "parser", "system"),
    [
        # reads tools, and does not turn thinking on by itself
        ("gemma4", "google-gemma-4-31B-it", "gemma4-large", "gemma4-no-thinking", None),
        ("gemma4_text", "google-gemma-4-31B-it", "gemma4-large", "gemma4-no-thinking", None),
        # its own system text is kept out by a blank one
        ("laguna", "poolside-Laguna-XS-2.1", "laguna", "passthrough", BLANK_SYSTEM),
        # trained on ChatML: a renderer of another family writes that
        ("gemma4", "chatml", "qwen3-vl-instruct", "passthrough", None),
        ("nemotron_h", "chatml", "qwen3-vl-instruct", "passthrough", None),
    ],
)
def test_the_renderer_of_a_model(
    tmp_path: Path, kind: str, name: str, renderer: str, parser: str, system: str | None
) -> None:
    plan = planned(tmp_path, kind, name)
    assert plan.route.way == "renderer" and plan.route.equal[0] is None and False in plan.route.equal
    read = parse(write_modelfile(plan, "./m.gguf"))
    assert (read.renderer, read.parser, read.system) == (renderer, parser, system)
    assert (
        select("", read.template, parser=read.parser, renderer=read.renderer, architecture=kind) == "renderer"
    )
    says = dict(plan.paths())["Ollama 0.30 and later"]
    assert says.startswith(
        f"Ollama's own renderer '{renderer}': think unset and false write the training's prompt"
    )
    # a system text of the user's own is kept
    assert parse(write_modelfile(plan, "./m.gguf", system="Be kind.")).system == "Be kind."


def test_what_is_lost_and_how_to_turn_it_is_said(tmp_path: Path) -> None:
    says = dict(planned(tmp_path, "laguna", "poolside-Laguna-XS-2.1").paths())
    assert says["Ollama 0.30 and later"].endswith("Ollama refuses think true and tools (HTTP 400)")
    assert says["to choose"].startswith("`PARSER laguna` in the Modelfile lets a request turn thinking on")
    says = dict(planned(tmp_path, "gemma4", "google-gemma-4-31B-it").paths())
    assert says["Ollama 0.30 and later"].endswith("what it writes of tools was not compared")


def test_a_model_that_was_tuned_to_think(tmp_path: Path) -> None:
    plan = planned(tmp_path, "gemma4", "google-gemma-4-31B-it", thinking=True)
    assert (plan.contract.renderer, plan.contract.parser) == ("gemma4-large", "gemma4")
    assert plan.route.equal == (None, True)
    assert "another prompt for think false" in dict(plan.paths())["Ollama 0.30 and later"]


@pytest.mark.parametrize("kind", ["nemotron_h", "nemotron_h_moe", "gemma4"])
def test_no_renderer_writes_it(tmp_path: Path, kind: str) -> None:
    plan = planned(tmp_path, kind, "NVIDIA-Nemotron-Nano-v2")
    assert plan.route.way == "renderer" and plan.route.equal == () and plan.contract.renderer is None
    assert "no Modelfile keeps it out" in dict(plan.paths())["Ollama 0.30 and later"]
    assert any(
        "build another prompt than training, whatever the Modelfile says" in note for note in plan.notes
    )


def test_the_architecture_of_the_file_counts(tmp_path: Path) -> None:
    """A config.json may have another name for it than llama.cpp."""
    for architecture, renderer in (("gemma4", "gemma4-large"), ("llama", None)):
        plan = planned(tmp_path, "some_wrapper", "google-gemma-4-31B-it", architecture=architecture)
        assert plan.contract.renderer == renderer


def test_a_system_text_that_no_modelfile_holds(tmp_path: Path) -> None:
    plan = planned(tmp_path, "gemma4", "google-gemma-4-31B-it", system="Be\u3000kind.")
    with pytest.raises(InputError, match=r"renderer way has no other place.*use other characters"):
        write_modelfile(plan, "./m.gguf", system="Be\u3000kind.")


def test_every_difference_is_named() -> None:
    """The renderer for small models writes no empty thoughts: it is wrong where thinking is off."""
    ways = find_built_in(template_of("google-gemma-4-31B-it", "<bos>"), "gemma4", 24)
    small = [way for way in ways if way.renderer.name == "gemma4-small"]
    assert len(small) == 3 and all("<|channel>t" in str(way.answers[False]) for way in small)
    assert ways[0].difference is None and ways[-1].difference is not None
