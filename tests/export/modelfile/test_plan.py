"""Modelfiles: read back by Ollama's rules, complete for a model, refused rather than wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_chat
from classic_templates import EXPRESSIBLE, REFUSED
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import shared

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError, UsageError
from lorafold.export.config import ModelfileConfig
from lorafold.export.modelfile.contract import find_stops, generation_parameters
from lorafold.export.modelfile.go.evaluate import evaluate
from lorafold.export.modelfile.parser import PARAMETERS, Modelfile, commands, expressible, parse
from lorafold.export.modelfile.plan import make_modelfile, plan_modelfile, write_modelfile
from lorafold.export.modelfile.probe import Chat, Variant
from lorafold.export.modelfile.proof import ollama_data

PLAIN = Variant(False, False, {})
AWKWARD = [
    "你好，世界。\n请用中文回答！",
    "family 👩\u200d👩\u200d👧 and é and نص",
    'He said """now"""\nand """',
    "{{ .System }} {{ .Prompt }} {%",
    "ideographic\u3000space and no\u00a0break, bell \x07, nul \x00, bom \ufeff",
    ' leading and trailing quotes "',
    "\n\nblank lines around\n\n",
    "# not a comment",
    'C:\\temp\\new \\n "quoted"',
    "tab\tand carriage\rreturn\r\n",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An HF folder without weights: SmolLM2's manner of template, Llama-like tokens."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "chat_template.jinja").write_text(EXPRESSIBLE["smollm2: default system"])
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True}
    (made / "tokenizer_config.json").write_text(json.dumps(tokens))
    added = [{"content": token, "special": True} for token in ("<s>", "<|im_start|>", "<|im_end|>")]
    (made / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (made / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    (made / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_k": 20, "do_sample": True})
    )
    return made


# --- the format


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("FROM x\n", [("from", "x")]),
        ("# c\n\n  from   ./my model.gguf  \n", [("from", "./my model.gguf")]),
        ('FROM x\nSYSTEM "a\nb"\n', [("from", "x"), ("system", "a\nb")]),
        ('FROM x\nSYSTEM "\\n"\n', [("from", "x"), ("system", "\\n")]),
        ('FROM x\nSYSTEM """a "b" c"""\n', [("from", "x"), ("system", 'a "b" c')]),
        ('FROM x\nTEMPLATE """a"""b\nc"""\n', [("from", "x"), ("template", 'a"""b\nc')]),
        ("FROM x\nSYSTEM a\u3000b\u200dc\n", [("from", "x"), ("system", "abc")]),
        (
            "FROM x\nPARAMETER stop <|a|>\nPARAMETER stop  b c \n",
            [("from", "x"), ("stop", "<|a|>"), ("stop", "b c")],
        ),
        ("FROM x\nPARAMETER num_ctx 5", [("from", "x"), ("num_ctx", "5")]),
        ("FROM x\nMESSAGE user hi there\n", [("from", "x"), ("message", "user: hi there")]),
        ("\ufeffFROM x\r\nSYSTEM y\r\n", [("from", "x"), ("system", "y")]),
    ],
)
def test_ollamas_rules(text: str, want: list[tuple[str, str]]) -> None:
    assert commands(text) == want


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SYSTEM x\n", "no FROM"),
        ("FRM x\n", "unknown command"),
        ("FROM\n", "unexpected"),
        ('FROM x\nSYSTEM """a\n', "not closed"),
        ("FROM x\nPARAMETER num_ctx 4.5\n", "wants a value of type int"),
        ("FROM x\nPARAMETER warmth 1\n", "unknown parameter"),
        ("FROM x\nPARAMETER num-ctx 1\n", "unexpected"),
        ("FROM x\nMESSAGE robot hi\n", "unknown role"),
        ("FROM x\nPARAMETER use_mmap maybe\n", "wants a value of type bool"),
    ],
)
def test_what_ollama_refuses(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse(text)


_values = st.text(st.sampled_from([*'ab"# \n\t{}é漢', "\u3000", "\u200d", "\r"]), max_size=12)
_parameters = st.fixed_dictionaries(
    {},
    optional={
        name: {int: st.integers(-1, 9999), float: st.floats(0, 3), bool: st.booleans()}[kind]
        for name, kind in PARAMETERS.items()
    },
)


@settings(max_examples=100, deadline=None)
@given(_values, _values, st.lists(_values, max_size=3), _parameters)
def test_what_is_written_reads_back(
    template: str, system: str, stops: list[str], parameters: dict[str, float]
) -> None:
    """Or is refused, exactly where a value cannot be written."""
    wanted = Modelfile("./m.gguf", None, template, system, tuple(stops), parameters, comments=("what\nfor",))
    if all(map(expressible, (template, system, *stops))):
        assert parse(wanted.render()) == wanted
    else:
        with pytest.raises(InputError, match="cannot be written in a Modelfile"):
            wanted.render()


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("plain", True),
        ('"', True),
        ('a """ b', True),
        ('a"""\nb', False),
        ("a\u3000b", False),
        ("你好，👍", True),
        ("👩\u200d💻", False),
        ("", True),
        (" edge ", True),
        ('ends with "', True),
    ],
)
def test_what_a_value_can_hold(value: str, holds: bool) -> None:
    assert expressible(value) is holds


@pytest.mark.parametrize(
    "path", ["./my model Q4_K_M.gguf", "./模型/é.gguf", '/a "b"/c.gguf', "./#1.gguf", " x.gguf"]
)
def test_paths_with_spaces_and_unicode(path: str) -> None:
    assert parse(Modelfile(path).render()).model == path


def test_what_cannot_be_written_says_why() -> None:
    with pytest.raises(InputError, match=r"FROM cannot be written .* drops U\+00A0; fix: rename the file"):
        Modelfile("./a\u00a0b.gguf").render()
    with pytest.raises(InputError, match="Ollama has no parameter 'warmth'"):
        Modelfile("x", parameters={"warmth": 1}).render()


def test_integers_are_written_as_integers() -> None:
    text = Modelfile("x", parameters={"num_ctx": 8192.0, "temperature": 1, "use_mmap": True}).render()
    assert "PARAMETER num_ctx 8192\n" in text
    assert "PARAMETER temperature 1.0\n" in text and "PARAMETER use_mmap true\n" in text


# --- the plan of a model


def test_the_modelfile_of_a_folder(folder: Path) -> None:
    plan = plan_modelfile(folder, conversations=60)
    contract = plan.contract
    assert contract.template_source == (folder / "chat_template.jinja").read_text()
    assert (contract.eot, contract.add_bos) == ("<|im_end|>", False)
    assert contract.stops == ("<|im_end|>", "<|im_start|>")
    assert contract.parameters == {"temperature": 0.7, "top_k": 20, "num_ctx": 8192}
    assert plan.proof is not None and plan.proof.passed and plan.proof.conversations == 60
    read = parse(write_modelfile(plan, "./model.gguf", system="Be kind.\nAlways."))
    assert (read.model, read.system, read.stops) == ("./model.gguf", "Be kind.\nAlways.", contract.stops)
    assert read.template == contract.go_template and read.parameters == contract.parameters
    assert dict(plan.paths())["Ollama before 0.30"] == "the TEMPLATE"
    assert any("forge a turn" in note for note in plan.notes)


@pytest.mark.parametrize("system", AWKWARD)
def test_any_system_text_survives(folder: Path, system: str) -> None:
    """In SYSTEM where Ollama's parser keeps it, else as the TEMPLATE's default: the prompt holds it whole."""
    plan = plan_modelfile(folder, conversations=16)
    read = parse(write_modelfile(plan, "x", system=system))
    assert read.template is not None and (read.system is not None) == expressible(system)
    for own in (None, "Another."):
        told = own or read.system
        prompt = evaluate(read.template, ollama_data(Chat(told, ("Hi",)), PLAIN))
        assert prompt.startswith(
            f"<|im_start|>system\n{own or system}<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
        )


def test_bos_only_where_tokenizer_and_template_agree(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(EXPRESSIBLE["internlm2"])
    plan = plan_modelfile(folder, conversations=16)
    assert plan.contract.add_bos and "<s>" not in str(plan.contract.go_template)
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(settings_file.read_text().replace("true", "false"))
    plan = plan_modelfile(folder, conversations=16)
    assert not plan.contract.add_bos and str(plan.contract.go_template).startswith("<s>")
    settings_file.write_text('{"bos_token": "<s>", "eos_token": "<|im_end|>"}')
    data = json.loads((folder / "tokenizer.json").read_text())
    begins = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}
    for processor, adds in ((None, False), (begins, True)):
        (folder / "tokenizer.json").write_text(json.dumps({**data, "post_processor": processor}))
        assert plan_modelfile(folder, conversations=16).contract.add_bos is adds


@pytest.mark.parametrize("name", ["counts the rounds", "content as JSON"])
def test_a_refused_template_writes_nothing_or_relies_on_jinja(folder: Path, name: str) -> None:
    (folder / "chat_template.jinja").write_text(REFUSED[name][0])
    with pytest.raises(InputError, match="cannot be written as an Ollama TEMPLATE"):
        make_modelfile(ModelfileConfig(folder))
    assert not (folder / "Modelfile").exists()
    result = make_modelfile(ModelfileConfig(folder, allow_embedded_jinja=True))
    read = parse((folder / "Modelfile").read_text())
    assert read.template is None and read.requires == "0.30.0"
    assert result.plan.contract.refusal is not None
    assert "cannot run it" in dict(result.lines())["Ollama before 0.30"]


def test_a_mismatch_is_an_error_with_its_counterexample(folder: Path) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('the answer', '42') }}</>{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(
        InputError, match=r"does not write what the chat template writes: on \[.*the answer"
    ) as caught:
        plan_modelfile(folder)
    assert caught.value.exit_code == 3
    plan = plan_modelfile(folder, allow_embedded_jinja=True)
    assert plan.contract.go_template is None and "does not write" in str(plan.contract.refusal)


def test_a_model_tuned_without_thinking_stays_so(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(EXPRESSIBLE["thinking switch"])
    result = make_modelfile(ModelfileConfig(folder, thinking="off", conversations=30))
    template = parse(result.text).template
    assert template is not None
    for variant in (PLAIN, Variant(True, True, {})):
        assert evaluate(template, ollama_data(Chat(None, ("Hi",)), variant)).endswith(
            "<think>\n\n</think>\n\n"
        )
    source = result.plan.contract.template_source
    assert source.startswith("{% set enable_thinking = false %}\n")
    for variables in ({}, {"enable_thinking": True}):
        ask = [{"role": "user", "content": "Hi"}]
        prompt = ChatTemplate(source).render(ask, add_generation_prompt=True, **variables)
        assert prompt.endswith("<think>\n\n</think>\n\n"), "an engine that renders the Jinja agrees"
    both = make_modelfile(ModelfileConfig(folder, conversations=30, force=True)).plan.contract.go_template
    assert both is not None and "$.IsThinkSet" in both


@pytest.mark.parametrize(
    ("name", "eot", "stops"),
    [
        ("mistral", "</s>", ("</s>",)),
        ("deepseek-llm", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",)),
        ("index", None, ("</s>", "reserved_0user")),
        ("vicuna", "</s>", ("</s>",)),
        ("alpaca", "</s>", ("</s>",)),
    ],
)
def test_stops_come_from_the_template(name: str, eot: str | None, stops: tuple[str, ...]) -> None:
    from lorafold.export.modelfile.chat_format import derive

    template = ChatTemplate.named(name)
    assert find_stops(template, derive(template)) == (eot, stops, [])


def test_parameters_of_a_generation_config() -> None:
    given_ = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "eos_token_id": 2,
        "min_p": None,
    }
    assert generation_parameters(given_) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "repeat_penalty": 1.1,
    }
    assert generation_parameters({"do_sample": False, "top_k": 3}) == {"temperature": 0.0}


def test_the_command(folder: Path, tmp_path: Path) -> None:
    result = make_modelfile(ModelfileConfig(folder, out=tmp_path / "M", num_ctx=2048, conversations=30))
    read = parse((tmp_path / "M").read_text())
    assert (read.model, read.parameters["num_ctx"]) == ("./model", 2048)
    assert dict(result.lines())["proven"].startswith("TEMPLATE equals Jinja on 30 conversations")
    with pytest.raises(UsageError, match="--force"):
        make_modelfile(ModelfileConfig(folder, out=tmp_path / "M"))
    with pytest.raises(InputError, match="no such folder or file"):
        make_modelfile(ModelfileConfig(tmp_path / "nothing"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template; fix: give one with --chat-template"):
        make_modelfile(ModelfileConfig(folder, out=tmp_path / "N"))
    named = make_modelfile(
        ModelfileConfig(folder, out=tmp_path / "N", chat_template="vicuna", conversations=30)
    )
    assert any("keeps its own chat template" in note for note in named.plan.notes)
    refused = tmp_path / "r.jinja"
    refused.write_text(REFUSED["upper case"][0])
    with pytest.raises(UsageError, match="not the chosen one"):
        make_modelfile(
            ModelfileConfig(folder, out=tmp_path / "O", chat_template=str(refused), allow_embedded_jinja=True)
        )
    assert "USER:" in named.text and named.plan.contract.add_bos


def test_the_modelfile_of_a_gguf(tmp_path: Path) -> None:
    """The file's own BOS setting counts, for the file cannot be changed here."""
    from gguf import GGUFWriter

    for add_bos in (True, False, None):
        path = tmp_path / f"m {add_bos}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_context_length(4096)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a", "<s>", "<|im_end|>", "<|im_start|>"])
        writer.add_token_types([1, 3, 3, 3])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        if add_bos is not None:
            writer.add_add_bos_token(add_bos)
        writer.add_chat_template(EXPRESSIBLE["internlm2"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        result = make_modelfile(
            ModelfileConfig(path, out=tmp_path / "Modelfile", conversations=30, force=True)
        )
        read = parse(result.text)
        assert read.model == f"./{path.name}" and read.parameters == {"num_ctx": 4096}
        assert str(read.template).startswith("<s>") == (add_bos is False)
        assert read.stops == ("<|im_end|>", "<|im_start|>")


def test_a_real_tokenizer_folder() -> None:
    plan = plan_modelfile(shared("tokenizers") / "qwen2", conversations=60)
    assert plan.contract.stops == ("<|im_end|>", "<|im_start|>") and not plan.contract.add_bos


@pytest.mark.parametrize(
    ("source", "code", "line"),
    [
        ("{% if a %}\nb\n{% endfor %}", 3, "t.jinja:3: the chat template has a syntax error"),
        ("{{ 'a' * 10**10 }}", 4, "t.jinja: the chat template was stopped"),
        ("{{ ''.__class__ }}", 4, "t.jinja:1: the chat template tries to leave its sandbox"),
        (REFUSED["upper case"][0], 3, "it changes the text of user turn 1"),
    ],
)
def test_faults_at_the_command_line(folder: Path, tmp_path: Path, source: str, code: int, line: str) -> None:
    (tmp_path / "t.jinja").write_text(source)
    command = [
        sys.executable,
        "-m",
        "lorafold",
        "modelfile",
        str(folder),
        "--chat-template",
        str(tmp_path / "t.jinja"),
    ]
    ran = subprocess.run([*command, "--out", str(tmp_path / "M")], capture_output=True, text=True)
    assert ran.returncode == code, ran.stderr
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1 and line in ran.stderr
    assert "; fix: " in ran.stderr and not (tmp_path / "M").exists()


def test_an_adapter_is_no_model_to_name(tmp_path: Path) -> None:
    """`FROM .` in an adapter's folder is nothing that Ollama could create."""
    adapter = tmp_path / "mine" / "checkpoint-9"
    shutil.copytree(tiny_chat.folder(), adapter)
    (adapter / "model.safetensors").unlink()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"FROM needs a whole model; fix: lorafold export .* --out mine-gguf"
    ):
        make_modelfile(ModelfileConfig(adapter))
    assert not (adapter / "Modelfile").exists()
    named = make_modelfile(ModelfileConfig(adapter, from_name="mine", conversations=20))
    assert "FROM mine" in named.text
