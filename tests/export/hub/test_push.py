"""`lorafold push`: the real client of the hub against a hub on loopback that speaks its protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
import yaml
from push_hub import PushHub, Repository, serve
from tiny_hub import go_there

from lorafold.cli import main
from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.export import PushConfig, push
from lorafold.export.hub.card import model_card
from lorafold.export.hub.facts import read_facts
from lorafold.export.hub.stage import ollama_files
from lorafold.export.modelfile.parser import parse

SECRET = "hf_verysecrettoken0123456789"
NAME = "me/lighthouse"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.lamp_keeper(tmp_path_factory.mktemp("push") / "exported")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PushHub]:
    import huggingface_hub.constants as constants

    with serve(PushHub(SECRET)) as hub:
        go_there(hub.address, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the test's hub has LFS alone
        monkeypatch.setenv("HF_TOKEN", SECRET)
        yield hub


def config(folder: Path, **options: Any) -> PushConfig:
    return PushConfig(folder, NAME, **options)


def test_an_export_lies_on_the_hub_whole_and_private(made: Path, hub: PushHub) -> None:
    result = push(config(made, license="apache-2.0"))
    there = hub.repositories[NAME]
    assert there.private and result.address == f"{hub.address}/{NAME}"
    (gguf,) = made.glob("*.gguf")
    assert there.files[gguf.name] == gguf.read_bytes()
    assert there.files["Modelfile"] == (made / "Modelfile").read_bytes()
    assert {"README.md", "report.md", "template", "system", "params"} <= set(there.files)
    assert there.files["system"].decode() == "You keep the lamp."
    assert "lorafold.json" not in there.files, "it names folders of this machine"
    everything = b"".join(content for name, content in there.files.items() if not name.endswith(".gguf"))
    assert str(made).encode() not in everything and str(tiny_chat.folder()).encode() not in everything
    assert sum(line.startswith("POST") and "/commit/" in line for line in hub.seen) == 1, "one commit"
    assert dict(result.lines())["Ollama"] == f"ollama run hf.co/{NAME}"


def test_the_card_says_what_it_is_and_how_to_run_it(made: Path, hub: PushHub) -> None:
    push(config(made, license="apache-2.0"))
    card = hub.repositories[NAME].files["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["license"] == "apache-2.0" and told["library_name"] == "gguf" and "lorafold" in told["tags"]
    assert "base_model" not in told, "a folder of this machine is no model of the hub"
    for words in (
        f"llama-server -hf {NAME}:Q8_0 --jinja",
        f"ollama run hf.co/{NAME}:Q8_0",
        "ollama create lighthouse -f lighthouse/Modelfile",
        f"lms get https://huggingface.co/{NAME}",
        "Jan:",
        "vLLM",
        "## Proof",
        "apache-2.0",
    ):
        assert words in text, words
    manifest = json.loads((made / "lorafold.json").read_text())
    (gguf,) = made.glob("*.gguf")
    assert manifest["files"][gguf.name]["sha256"] in text


def test_the_pieces_for_ollama_are_those_of_the_modelfile(made: Path) -> None:
    text = (made / "Modelfile").read_text()
    read, pieces = parse(text), ollama_files(text)
    assert pieces["template"] == read.template and pieces["system"] == read.system
    params = json.loads(pieces["params"])
    assert params.pop("stop") == list(read.stops) and params == dict(read.parameters)


def test_the_training_stands_in_the_card(made: Path, hub: PushHub, tmp_path: Path) -> None:
    """An adapter that was trained here brings its data's hash and its settings."""
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_chat.adapter(), folder)
    files = {path.name: {"size": path.stat().st_size} for path in folder.iterdir()}
    facts = {
        "kind": "adapter",
        "files": files,
        "config": {"r": 4, "learning_rate": 0.001},
        "data": {"sha256": "ab" * 32, "examples": 12},
    }
    (folder / "lorafold.json").write_text(json.dumps(facts))
    copy = tmp_path / "exported"
    shutil.copytree(made, copy)
    manifest = json.loads((copy / "lorafold.json").read_text())
    manifest["adapters"] = [{"folder": str(folder), "weight": 1.0}]
    manifest["base"] = {**manifest["base"], "id": "Qwen/Qwen3-4B", "revision": "abc"}
    (copy / "lorafold.json").write_text(json.dumps(manifest))
    push(config(copy))
    card = hub.repositories[NAME].files["README.md"].decode()
    assert "| data | 12 examples, sha256 abab" in card and "| learning_rate | 0.001 |" in card
    assert "base_model: Qwen/Qwen3-4B" in card and "(revision abc), with adapter merged in" in card
    assert str(folder) not in card


@pytest.mark.parametrize(
    ("format", "relation", "command"),
    [
        ("adapter", "adapter", "llama-server -m BASE.gguf --lora lighthouse/"),
        ("gguf", "finetune", "ollama run hf.co/me/lighthouse:Q8_0"),
    ],
)
def test_what_it_is_of_its_base(format: str, relation: str, command: str, made: Path) -> None:
    facts = replace(read_facts(made), format=format, base="Qwen/Qwen3-4B", on_hub=True)
    card = model_card(facts, NAME, "")
    assert f"base_model_relation: {relation}" in card and command in card
    assert ("ollama run" in card) is (format == "gguf")


def test_a_plan_connects_to_nothing(made: Path, hub: PushHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(made), NAME, "--plan"]) == 0
    said = capsys.readouterr().out
    assert "would go to" in said and "(private)" in said and "README.md" in said
    assert "the licence of the base is not known here: name it with --license" in " ".join(said.split())
    assert not hub.seen


def test_a_broken_upload_goes_on_and_sends_nothing_twice(made: Path, hub: PushHub) -> None:
    hub.failing["POST /api/models/me/lighthouse/commit"] = 400
    with pytest.raises(SystemFault, match=r"refuses this .HTTP 400.*give the same command again"):
        push(config(made))
    sent = [line for line in hub.seen if line.startswith("PUT /lfs/")]
    assert len(sent) == len(set(sent)) >= 1 and not hub.repositories[NAME].files
    hub.failing.clear()
    hub.seen.clear()
    push(config(made))
    assert not [line for line in hub.seen if line.startswith("PUT")], "the hub had them"
    assert set(hub.repositories[NAME].files) >= {"README.md", "Modelfile"}


def test_pushed_again_it_is_the_same_repository(made: Path, hub: PushHub) -> None:
    push(config(made))
    push(config(made))
    assert len(hub.repositories) == 1


def test_a_name_that_is_taken_is_left_alone(made: Path, hub: PushHub) -> None:
    hub.repositories[NAME] = Repository(True, {"config.json": b"{}"})
    with pytest.raises(UsageError, match=r"holds other files \(config.json\); fix: choose another name"):
        push(config(made))
    assert set(hub.repositories[NAME].files) == {"config.json"}
    push(config(made, force=True))
    assert "README.md" in hub.repositories[NAME].files


def test_what_everybody_can_see_is_not_filled_unasked(made: Path, hub: PushHub) -> None:
    hub.repositories[NAME] = Repository(private=False)
    with pytest.raises(UsageError, match="everybody can see it; fix: pass --public"):
        push(config(made))
    push(config(made, public=True))
    assert hub.repositories[NAME].files
    del hub.repositories[NAME]
    push(config(made, public=True))
    assert not hub.repositories[NAME].private


FAULTS = {
    "wrong token": ({"POST /api/repos": 401}, "does not know you.*HTTP 401.*hf auth login"),
    "no right to write": ({"POST /api/repos": 403}, "may not write there .HTTP 403"),
    "taken meanwhile": ({"POST /api/repos": 409}, "the name is taken .HTTP 409"),
    "too many requests": ({"POST /api/repos": 429}, "asks to wait.*HTTP 429.*not sent a second time"),
    "the hub fails": ({"POST /api/repos": 500}, "the hub failed .HTTP 500"),
    "storage is full": ({"POST /me/lighthouse.git": 507}, "storage on the hub is full"),
    "too large": ({"PUT /lfs": 413}, "file of this size.*--split-max-size"),
    "no namespace": ({"POST /api/repos": 404}, "no such namespace"),
    "broken off": ({"POST /api/repos": "drop"}, "the upload broke off .*give the same command again"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_line_without_the_token(
    name: str, made: Path, hub: PushHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing, said = FAULTS[name]
    with pytest.raises(SystemFault, match=said) as caught:
        push(config(made))
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert main(["push", str(made), NAME]) == SystemFault.exit_code
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert shown.err.splitlines()[-1].startswith(f"error: {NAME}: ")


def test_without_a_token_nothing_is_asked(made: Path, hub: PushHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(SystemFault, match="no token of the hub was found; fix: run `hf auth login`"):
        push(config(made))
    assert not hub.seen


def test_what_cannot_be_pushed_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a name of a repository; fix: write ORG/NAME"):
        push(PushConfig(made, "lighthouse"))
    with pytest.raises(InputError, match="this is not an export of lorafold"):
        push(PushConfig(tmp_path, NAME))
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (gguf,) = copy.glob("*.gguf")
    gguf.write_bytes(b"x" + gguf.read_bytes()[1:])
    with pytest.raises(InputError, match="changed since the export"):
        push(PushConfig(copy, NAME))
    shutil.copy(next(made.glob("*.gguf")), gguf)
    manifest = json.loads((copy / "lorafold.json").read_text())
    (copy / "lorafold.json").write_text(json.dumps({**manifest, "verdict": "failed"}))
    with pytest.raises(LorafoldError, match="the proof of this export failed"):
        push(PushConfig(copy, NAME))
