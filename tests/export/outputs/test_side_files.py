"""Chat templates by name and other files beside the weights: none is lost, or a note says which.

Oracles: transformers, which loads the base and the merged folder, and llama.cpp's converter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from oracles import convert_hf_to_gguf, shared
from tiny_base import CHATML, tiny_base

from lorafold.errors import InputError, UnsafeInputError
from lorafold.export import ExportConfig, ExportResult, export
from lorafold.gguf_file.header import GgufArray
from lorafold.gguf_file.read import read_gguf_header

TOOLS = CHATML.replace("{% if add_gen", "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_gen")
RAG = CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant with sources")
OTHER = CHATML.replace("<|im_start|>assistant", "<|im_start|>model")


def set_template(folder: Path, template: Any) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings | ({} if template is None else {"chat_template": template})))


def as_list(folder: Path) -> None:
    rows = {"default": CHATML, "tool_use": TOOLS, "rag": RAG}
    set_template(folder, [{"name": name, "template": text} for name, text in rows.items()])


def as_files(folder: Path) -> None:
    set_template(folder, None)
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    (folder / "additional_chat_templates" / "a-b c.jinja").write_text(RAG)


def as_list_behind_a_file(folder: Path) -> None:
    as_list(folder)
    (folder / "chat_template.jinja").write_text(CHATML)


def as_list_without_default(folder: Path) -> None:
    set_template(folder, [{"name": "tool_use", "template": TOOLS}, {"name": "rag", "template": RAG}])


def as_object(folder: Path) -> None:
    set_template(folder, {"default": CHATML, "tool_use": TOOLS})


FORMS: dict[str, Callable[[Path], None]] = {
    "list": as_list,
    "files": as_files,
    "list behind a file": as_list_behind_a_file,
    "object": as_object,
}


def base_with(form: Callable[[Path], None], folder: Path) -> Path:
    shutil.copytree(tiny_chat.folder(), folder)
    form(folder)
    return folder


def small_adapter(folder: Path) -> Path:
    tensors = {
        name: value
        for layer in (0, 1)
        for name, value in lora(f"model.layers.{layer}.self_attn.q_proj", 4, 64, 64).items()
    }
    return adapter_folder(folder, tensors, r=4, lora_alpha=8, target_modules=["q_proj"])


def made(source: Path, out: Path, **options: Any) -> ExportResult:
    gguf = options.get("format", "gguf") == "gguf"
    quant: dict[str, Any] = {"quant": ("F32",), "pre_tokenizer": "gpt-2"} if gguf else {}
    return export(ExportConfig(str(source), out=out, verify=False, **quant, **options))


def templates_of(gguf: Path) -> dict[str, Any]:
    """The GGUF's chat templates by key; the list of names as a set, since the converter writes it so."""
    return {
        key: {name.decode() for name in value.strings()} if isinstance(value, GgufArray) else value
        for key, value in read_gguf_header(gguf).metadata.items()
        if key.startswith("tokenizer.chat_template")
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", ["list", "files", "list behind a file"])
def test_a_gguf_holds_the_templates_that_the_converter_writes(form: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", tokenizer=shared("tokenizers/qwen2"))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    FORMS[form](base)
    made(base, tmp_path / "out")
    theirs = templates_of(convert_hf_to_gguf(base, tmp_path / "theirs.gguf", "--outtype", "f32"))
    assert len(theirs) > 2
    assert templates_of(next((tmp_path / "out").glob("*.gguf"))) == theirs


@pytest.mark.parametrize("form", FORMS)
def test_a_gguf_holds_every_template_by_name(form: str, tmp_path: Path) -> None:
    base = base_with(FORMS[form], tmp_path / "base")
    result = made(base, tmp_path / "out")
    found = templates_of(next((tmp_path / "out").glob("*.gguf")))
    assert found["tokenizer.chat_template"] == CHATML
    assert found["tokenizer.chat_template.tool_use"] == TOOLS
    assert "tool_use" in found["tokenizer.chat_templates"]
    assert len(found) == 2 + len(found["tokenizer.chat_templates"])
    assert any("tool_use" in note and "the default one" in note for note in result.notes)
    assert ("tokenizer.chat_template.a_b_c" in found) == (form == "files")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_transformers_reads_the_same_templates_from_a_merged_folder(
    form: str, with_adapter: bool, tmp_path: Path
) -> None:
    """The adapter brings the base's default template alone, as `lorafold train` saves it."""
    transformers = pytest.importorskip("transformers")
    base = base_with(FORMS[form], tmp_path / "base")
    source = base
    if with_adapter:
        source = small_adapter(tmp_path / "adapter")
        (source / "chat_template.jinja").write_text(CHATML)
    made(source, tmp_path / "out", format="folder", base=str(base) if with_adapter else None)
    wanted, got = (
        transformers.AutoTokenizer.from_pretrained(folder).chat_template
        for folder in (base, tmp_path / "out")
    )
    assert got == wanted


def test_an_adapters_named_templates_go_before_the_bases(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    base = base_with(as_list, tmp_path / "base")
    adapter = small_adapter(tmp_path / "adapter")
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "chat_template.jinja").write_text(OTHER)
    (adapter / "additional_chat_templates" / "tool_use.jinja").write_text(RAG)
    wanted = {"default": OTHER, "tool_use": RAG, "rag": RAG}
    made(adapter, tmp_path / "folder", base=str(base), format="folder")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "folder").chat_template == wanted
    result = made(adapter, tmp_path / "gguf", base=str(base))
    found = templates_of(next((tmp_path / "gguf").glob("*.gguf")))
    assert found["tokenizer.chat_template"] == OTHER
    assert found["tokenizer.chat_template.tool_use"] == RAG == found["tokenizer.chat_template.rag"]
    assert any("templates rag are the base's" in note for note in result.notes)


def test_a_templates_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_chat.folder(), base)
    rows = {"default": CHATML, "../../escaped": TOOLS}
    set_template(base, [{"name": name, "template": text} for name, text in rows.items()])
    with pytest.raises(UnsafeInputError, match=r"the name '\.\./\.\./escaped', which is no file name"):
        made(base, tmp_path / "out", format="folder", chat_template="chatml")
    assert not list(tmp_path.rglob("escaped*"))


def test_named_templates_without_a_default(tmp_path: Path) -> None:
    base = base_with(as_list_without_default, tmp_path / "base")
    with pytest.raises(InputError, match=r"no default chat template, only tool_use, rag; fix: choose one"):
        made(base, tmp_path / "refused")
    made(base, tmp_path / "out", modelfile=False)
    found = templates_of(next((tmp_path / "out").glob("*.gguf")))
    assert found == {
        "tokenizer.chat_template.tool_use": TOOLS,
        "tokenizer.chat_template.rag": RAG,
        "tokenizer.chat_templates": {"tool_use", "rag"},
    }


def test_the_thinking_switch_is_fixed_in_every_template(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_chat.folder(), base)
    switched = (
        CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    set_template(base, [{"name": name, "template": switched} for name in ("default", "tool_use")])
    made(base, tmp_path / "out", thinking="off", modelfile=False)
    found = templates_of(next((tmp_path / "out").glob("*.gguf")))
    assert found["tokenizer.chat_template.tool_use"].startswith("{% set enable_thinking = false %}")


def test_what_an_output_lacks_is_said(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_chat.folder(), base)
    (base / "preprocessor_config.json").write_text("{}")
    for name in ("custom_generate/generate.py", "original/params.json", "README.md", "LICENSE", "scores.csv"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("")
    adapter = small_adapter(tmp_path / "adapter")
    (adapter / "generation_config.json").write_text('{"temperature": 0.1}')
    (adapter / "trainer_state.json").write_text("{}")

    merged = made(adapter, tmp_path / "folder", base=str(base), format="folder")
    for name in ("custom_generate/generate.py", "preprocessor_config.json", "LICENSE"):
        assert (tmp_path / "folder" / name).is_file()
    lacks = [note for note in merged.notes if "not in the export" in note]
    assert lacks == [
        "of the base's folder these are not in the export: README.md, original/, scores.csv",
        "of the adapter's folder these are not in the export: generation_config.json",
    ]

    gguf = made(adapter, tmp_path / "gguf", base=str(base))
    lacks = [note for note in gguf.notes if "not in the export" in note]
    assert lacks == [
        "of the base's folder these are not in the export: LICENSE, custom_generate/, original/, "
        "preprocessor_config.json, scores.csv",
        "of the adapter's folder these are not in the export: generation_config.json",
    ]


def test_a_plain_base_and_adapter_need_no_note(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", small_adapter(tmp_path / "adapter")
    shutil.copytree(tiny_chat.folder(), base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, adapter / name)
    for name in ("README.md", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (adapter / name).write_text("")
    for format in ("gguf", "folder"):
        notes = made(adapter, tmp_path / format, base=str(base), format=format).notes
        assert not [note for note in notes if "folder" in note or "tokenizer" in note or "templates" in note]


def test_an_adapter_that_ends_its_turns_otherwise_than_its_base(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", small_adapter(tmp_path / "adapter")
    shutil.copytree(tiny_chat.folder(), base)
    shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    result = made(adapter, tmp_path / "out", base=str(base))
    assert any(
        "another eos_token ('<|endoftext|>') than the base's ('<|im_end|>')" in note for note in result.notes
    )


def test_an_adapter_gguf_says_that_it_holds_no_template(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", small_adapter(tmp_path / "adapter")
    shutil.copytree(tiny_chat.folder(), base)
    (adapter / "chat_template.jinja").write_text(CHATML)
    assert made(adapter, tmp_path / "same", base=str(base), format="adapter").notes == ()
    (adapter / "chat_template.jinja").write_text(OTHER)
    (note,) = made(adapter, tmp_path / "other", base=str(base), format="adapter").notes
    assert "chat_template.jinja) is not the base's" in note and "--chat-template-file" in note


@pytest.mark.parametrize("chosen", [None, OTHER])
def test_ollama_finds_the_default_template_in_the_tokenizers_settings(
    tmp_path: Path, chosen: str | None
) -> None:
    """It reads no chat_template.jinja; transformers still reads the same template."""
    from transformers import AutoTokenizer

    base = base_with(as_files, tmp_path / "base")
    options = {}
    if chosen is not None:
        (tmp_path / "t.jinja").write_text(chosen)
        options = {"chat_template": str(tmp_path / "t.jinja")}
    export(ExportConfig(str(base), out=tmp_path / "o", format="folder", verify=False, **options))
    inside = json.loads((tmp_path / "o" / "tokenizer_config.json").read_text())["chat_template"]
    assert inside == (chosen or CHATML)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "o").chat_template
    assert (loaded["default"] if isinstance(loaded, dict) else loaded) == inside
