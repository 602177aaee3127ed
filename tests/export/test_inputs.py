"""What an export takes in besides weights: which base, tokenizer and chat template, and the refusals.

How an adapter's folder looks like differs by the program and the year it was saved in; transformers and PEFT
write the folders here wherever they still can.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from adapter_folders import PREFIX, adapter_folder, lora
from safetensors.numpy import load_file, save_file
from tiny_hub import Hub, go_there, serve
from tiny_tokenizers import (
    LLAMA2_NORMALIZER,
    added,
    json_of_sentencepiece,
    sentencepiece_model,
    write_folder,
)

from lorafold.artifacts import write_manifest
from lorafold.cli import main
from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.export import ExportConfig, export
from lorafold.export.inputs import Inputs, open_inputs
from lorafold.models import resolve_base

Q = "model.layers.{}.self_attn.q_proj"
OWN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n:' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n:' }}{% endif %}"
)


def tiny_adapter(folder: Path, rows: int | None = None, **config: Any) -> Path:
    """A LoRA for `tiny_chat.folder()`; with `rows`, one that resizes its vocabulary."""
    tensors = {key: 0.1 * value for i in (0, 1) for key, value in lora(Q.format(i), 2, 64, 64).items()}
    if rows is not None:
        dice = np.random.default_rng(0)
        for name in ("lm_head", "model.embed_tokens"):
            tensors[f"{PREFIX}{name}.weight"] = dice.standard_normal((rows, 64)).astype(np.float32)
    return adapter_folder(folder, tensors, base_model_name_or_path=str(tiny_chat.folder()), **config)


def opened(adapter: Path, **options: Any) -> Inputs:
    return open_inputs(ExportConfig(str(adapter), out=adapter.parent / "out", **options))


def exported(adapter: Path, **options: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The header of the F32 file, and the notes."""
    out = adapter.parent / "exported"
    result = export(
        ExportConfig(str(adapter), out=out, name="tiny", **{"quant": ("F32",), "verify": False, **options})
    )
    fields = gguf.GGUFReader(out / "tiny-F32.gguf").fields
    return {name: field.contents() for name, field in fields.items()}, result.notes


TEMPLATES: dict[str, Callable[[Path], object]] = {
    "chat_template.jinja": lambda folder: (folder / "chat_template.jinja").write_text(OWN),
    "tokenizer_config.json": lambda folder: (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": OWN})
    ),
    "tokenizer_config.json, named": lambda folder: (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": OWN}]}
        )
    ),
    "chat_template.json": lambda folder: (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": OWN})
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("config.json") else pytest.mark.slow)
        for name in TEMPLATES
    ],
)
def test_the_adapters_chat_template_wherever_it_lies(name: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter")
    TEMPLATES[name](adapter)
    header, notes = exported(adapter, verify=True)
    assert header["tokenizer.chat_template"] == OWN
    assert "<|im_start|>assistant\n:" in (tmp_path / "exported" / "Modelfile").read_text()
    file = name.partition(",")[0]
    (note,) = (note for note in notes if note.startswith("the chat template is"))
    assert note.startswith("the chat template is the adapter's, not the base's (") and file in note
    shutil.rmtree(tmp_path / "exported")
    header, notes = exported(adapter, chat_template="chatml")  # what the user names comes first
    assert header["tokenizer.chat_template"] != OWN and not any("the adapter's" in note for note in notes)


def test_the_system_message_of_the_training_is_named(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter")
    assert not any("system" in note for note in opened(adapter).notes)
    write_manifest(adapter, "adapter", {"config": {"system": "你是甄嬛"}})
    (note,) = (note for note in opened(adapter).notes if "system" in note)
    assert note == (
        "adapter was trained with the system message '你是甄嬛', which the Modelfile lacks: "
        "pass it with --system"
    )
    for options in ({"system": "x"}, {"modelfile": False}, {"format": "folder"}):
        assert not any("system" in note for note in opened(adapter, **options).notes)


def test_a_merged_folder_has_the_adapters_template(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    adapter = tiny_adapter(tmp_path / "adapter")
    TEMPLATES["tokenizer_config.json"](adapter)
    export(ExportConfig(str(adapter), out=tmp_path / "out", format="folder"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == OWN


def test_the_bases_template_saved_again_is_no_news(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter")
    shutil.copyfile(tiny_chat.folder() / "tokenizer_config.json", adapter / "tokenizer_config.json")
    assert opened(adapter).notes == ()


# The base.


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("gptq", {"quant_method": "gptq", "bits": 4}),
        ("awq", {"quant_method": "awq", "bits": 4}),
        ("fp8", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ],
)
def test_a_packed_base_without_its_scales_is_refused(
    method: str, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        tensors[name] = np.zeros((tensors[name].size // 2, 1), np.uint8)  # as bitsandbytes packs them
    save_file(tensors, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": settings}
    (base / "config.json").write_text(json.dumps(config))
    adapter = tiny_adapter(tmp_path / "adapter")
    for options in ([str(adapter), "--base", str(base)], [str(base)]):
        assert main(["export", *options, "--out", str(tmp_path / "out")]) == 3
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "is U8, and what unpacks it is missing" in error and method in settings.values()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["/content/drive/llama", "models/llama"])
def test_a_base_of_another_machine(named: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": named}))
    with pytest.raises((InputError, SystemFault)) as caught:
        opened(adapter, offline=True)
    said = str(caught.value)
    assert said.startswith(
        f"{adapter}/adapter_config.json: base_model_name_or_path: the base {named!r} was not"
    )
    assert said.endswith("; or pass the base with --base FOLDER_OR_HUB_ID")
    with pytest.raises((InputError, SystemFault)) as caught:  # named by the user: the config is not to blame
        opened(adapter, base=named, offline=True)
    assert "adapter_config.json" not in str(caught.value)


def test_weights_that_the_hub_holds_twice_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's repositories hold consolidated.safetensors too: as many gigabytes again."""
    files = {path.name: path.read_bytes() for path in tiny_chat.folder().iterdir()}
    files |= {"consolidated.safetensors": b"x", "consolidated-00001-of-2.safetensors": b"x", "x.h5": b"x"}
    with serve(Hub(models={"org/name": files})) as hub:
        go_there(hub.address, tmp_path / "cache", monkeypatch)
        base = resolve_base("org/name")
    fetched = {path.name for path in base.folder.iterdir()}
    assert fetched == {path.name for path in tiny_chat.folder().iterdir()}
    assert not any("consolidated" in request for request in hub.seen)


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "much", ""])
def test_weights_of_adapters_are_numbers(weight: str, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match="expected FOLDER=WEIGHT with a number"):
        open_inputs(ExportConfig(f"{adapter}={weight}", out=tmp_path / "out"))


@pytest.mark.parametrize("tuned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_phi_3_keeps_its_white_space_rule_out_of_the_hubs_cache(tuned: bool, tmp_path: Path) -> None:
    """llama.cpp knows it by general.name, which a snapshot's folder does not tell."""
    home = tmp_path / "models--microsoft--Phi-3-mini-4k-instruct" / "snapshots"
    base = shutil.copytree(tiny_chat.folder(), home / "0123456789abcdef0123456789abcdef01234567")
    tokenizer = json_of_sentencepiece(sentencepiece_model(size=800), LLAMA2_NORMALIZER)
    count = len(tokenizer["model"]["vocab"])
    turns = ("<|user|>", "<|end|>")
    tokenizer["added_tokens"] = [
        added(0, "<unk>"),
        added(1, "<s>"),
        added(2, "</s>", special=False, rstrip=True),
        added(count, "<|endoftext|>"),
        *(added(count + 1 + index, text, rstrip=True) for index, text in enumerate(turns)),
    ]
    write_folder(base, tokenizer, bos_token="<s>", eos_token="<|endoftext|>")
    resize(base, count + 1 + len(turns))
    options: dict[str, Any] = {"chat_template": "chatml", "verify": True}
    if tuned:
        adapter = tiny_adapter(tmp_path / "adapter")
        header, _ = exported(adapter, base=str(base), **options)
        assert header["general.name"] == "phi-3 tiny"
    else:
        options |= {"quant": ("F32",), "name": "tiny"}
        result = export(ExportConfig(str(base), out=tmp_path / "out", **options))
        assert result.proof.checks[0].verdict == "passed"
        fields = gguf.GGUFReader(tmp_path / "out" / "tiny-F32.gguf").fields
        assert fields["general.name"].contents() == "phi-3 tiny"


# Added tokens.


NEW = ["<|tool|>", "<|result|>"]


def slow_bpe(folder: Path) -> None:
    """vocab.json, merges.txt and added_tokens.json, as slow tokenizers of GPT-2 and Qwen2 were saved."""
    data = json.loads((tiny_chat.folder() / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    listed = {row["content"]: row["id"] for row in data["added_tokens"]}
    listed |= {text: 259 + number for number, text in enumerate(NEW)}
    (folder / "added_tokens.json").write_text(json.dumps(listed))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", *NEW],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_added_tokens_of_a_slow_tokenizer(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter", rows=264)
    slow_bpe(adapter)
    header, notes = exported(adapter, verify=True, pre_tokenizer="gpt-2")
    assert header["tokenizer.ggml.tokens"][259:261] == NEW
    assert header["tokenizer.ggml.token_type"][259:261] == [gguf.TokenType.CONTROL] * 2
    assert not any("no tokenizer" in note for note in notes)


def test_added_tokens_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    """The adapter's own tokenizer.model and added_tokens.json, as LLaMA-Factory and FastChat saved them."""
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    (base / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = 800
    (base / "tokenizer.model").write_bytes(sentencepiece_model(size=rows))
    resize(base, rows)
    adapter = tiny_adapter(tmp_path / "adapter", rows=rows + 5)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(base / name, adapter / name)
    assert opened(adapter, base=str(base)).tokenizer == base  # the same tokens
    new = {text: rows + number for number, text in enumerate(NEW)}
    (adapter / "added_tokens.json").write_text(json.dumps(new))
    assert opened(adapter, base=str(base)).tokenizer == adapter
    header, _ = exported(adapter, base=str(base), verify=True, chat_template="chatml")
    (base / "tokenizer.model").unlink()
    assert opened(adapter, base=str(base)).tokenizer == adapter  # the only one there is
    (adapter / "added_tokens.json").unlink()
    assert opened(adapter, base=str(base)).tokenizer == adapter
    assert header["tokenizer.ggml.tokens"][rows : rows + 2] == NEW


def resize(base: Path, rows: int) -> None:
    """Give a base another vocabulary of so many rows."""
    tensors = load_file(base / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = np.random.default_rng(0).standard_normal((rows, 64)).astype(np.float32)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": rows}
    (base / "config.json").write_text(json.dumps(config))


def test_added_tokens_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "adapter", rows=264)
    (adapter / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 258, "<|tool|>": 259}))
    with pytest.raises(
        InputError, match=r"the adapter has 1 tokens that the base lacks \('<\|tool\|>'\), and no tokenizer"
    ):
        opened(adapter)
    (adapter / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 258}))  # the base's own
    assert opened(adapter).tokenizer == tiny_chat.folder()


def test_a_resized_vocabulary_without_a_tokenizer_is_a_note(tmp_path: Path) -> None:
    (note,) = opened(tiny_adapter(tmp_path / "adapter", rows=264)).notes
    assert note.startswith("the adapter resizes the vocabulary from 259 to 264 rows and brings no tokenizer")


# Adapters and bases by hub id.


def test_an_adapter_by_hub_id_at_the_revision_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT's config names the base's revision beside it; without it the newest base would be folded."""
    new = {path.name: path.read_bytes() for path in tiny_chat.folder().iterdir()}
    old = new | {"model.safetensors": _scaled(tiny_chat.folder() / "model.safetensors", tmp_path)}
    adapter = tiny_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "org/base", "revision": "v1.0"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    go_there("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    _cached(tmp_path / "hub", "org/base", {"main": new, "v1.0": old})
    _cached(tmp_path / "hub", "org/tuned", {"main": files})
    for options in ({}, {"base": "org/base"}):
        config = ExportConfig("org/tuned", out=tmp_path / "out", offline=True, **options)  # type: ignore[arg-type]
        inputs = open_inputs(config)
        assert inputs.base.revision == _commit("org/base", "v1.0")
        name = "model.layers.0.mlp.down_proj.weight"
        got = inputs.source.rows(name, 0, 1)
        wanted = load_file(tiny_chat.folder() / "model.safetensors")[name][:1].astype(np.float32)
        assert np.allclose(got, 2 * wanted, rtol=1e-2) and not np.allclose(got, wanted, rtol=1e-2)


def _scaled(path: Path, folder: Path) -> bytes:
    """The same weights, twice as large."""
    save_file({name: 2 * value for name, value in load_file(path).items()}, folder / "scaled.safetensors")
    return (folder / "scaled.safetensors").read_bytes()


def _commit(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def _cached(home: Path, repository: str, revisions: dict[str, dict[str, bytes]]) -> None:
    """The hub's cache as huggingface_hub leaves it."""
    place = home / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    for revision, files in revisions.items():
        commit = _commit(repository, revision)
        (place / "refs" / revision).write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        for name, data in files.items():
            (place / "snapshots" / commit / name).write_bytes(data)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("my-bot/checkpoint-100", "my-bot"),
        ("my-bot/final/adapter", "my-bot"),
        ("output/checkpoint-50/../../persona", "persona"),
        ("models--org--tuned-bot/snapshots/0123abc", "tuned-bot"),
        ("Qwen2-1___5B-tuned", "Qwen2-1.5B-tuned"),
        ("checkpoints-of-mine", "checkpoints-of-mine"),
    ],
)
def test_the_name_is_that_of_the_folder_that_says_something(place: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "output" / "checkpoint-50").mkdir(parents=True)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    assert opened(tiny_adapter(folder)).name == name
