"""`lorafold push --to modelscope`: against a ModelScope on loopback that its own client works with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from modelscope_place import PRIVATE, PUBLIC, ModelScopeHub, Repository, serve

from lorafold.cli import main
from lorafold.errors import SystemFault, UsageError
from lorafold.export import PushConfig, push

SECRET = "ms-verysecrettoken0123456789"
NAME = "me/lighthouse"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.lamp_keeper(tmp_path_factory.mktemp("modelscope") / "exported")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScopeHub]:
    with serve(ModelScopeHub(SECRET)) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", SECRET)
        yield hub


def config(folder: Path, **options: Any) -> PushConfig:
    return PushConfig(folder, NAME, to="modelscope", **options)


def sent(hub: ModelScopeHub) -> list[str]:
    return [asked for asked, _ in hub.seen if asked.startswith("PUT")]


def test_an_export_lies_there_whole_and_private(made: Path, hub: ModelScopeHub) -> None:
    result = push(config(made, license="apache-2.0"))
    there = hub.repositories[NAME]
    assert there.visibility == PRIVATE and there.license == "apache-2.0"
    assert result.address == f"{hub.address}/models/{NAME}"
    (gguf,) = made.glob("*.gguf")
    assert there.files[gguf.name] == gguf.read_bytes()
    assert there.files["Modelfile"] == (made / "Modelfile").read_bytes()
    assert {"README.md", "report.md", "template", "system", "params"} <= set(there.files)
    assert "lorafold.json" not in there.files, "it names folders of this machine"
    card = there.files["README.md"].decode()
    assert f"modelscope download --model {NAME}" in card and f"ollama run modelscope.cn/{NAME}" in card
    assert "hf.co" not in card.partition("## Files")[0].partition("```\n\n")[0]
    assert sum("/commit/" in asked for asked, _ in hub.seen) == 1, "one commit"
    assert dict(result.lines())["Ollama"] == f"ollama run modelscope.cn/{NAME}"


def test_a_plan_connects_to_nothing(made: Path, hub: ModelScopeHub, capsys: Any) -> None:
    assert main(["push", str(made), NAME, "--to", "modelscope", "--plan"]) == 0
    assert "would go to" in capsys.readouterr().out and not hub.seen


def test_a_broken_push_goes_on_and_sends_nothing_twice(made: Path, hub: ModelScopeHub) -> None:
    hub.failing["POST /api/v1/repos/models/me/lighthouse/commit"] = 500
    with pytest.raises(SystemFault, match=r"ModelScope failed .HTTP 500.: no: …; fix: give the same"):
        push(config(made))
    assert len(sent(hub)) == 1 and not hub.repositories[NAME].files
    hub.failing.clear()
    push(config(made))
    assert len(sent(hub)) == 1, "it had the file"
    assert set(hub.repositories[NAME].files) >= {"README.md", "Modelfile"}
    push(config(made))
    assert len(hub.repositories) == 1 and len(sent(hub)) == 1


def test_the_token_goes_to_no_other_host(made: Path, hub: ModelScopeHub) -> None:
    hub.elsewhere = hub.address.replace("127.0.0.1", "localhost")
    push(config(made))
    assert [brought for asked, brought in hub.seen if asked.startswith("PUT")] == [False]
    assert all(brought for asked, brought in hub.seen if not asked.startswith("PUT"))


def test_what_is_there_is_left_alone(made: Path, hub: ModelScopeHub) -> None:
    hub.repositories[NAME] = Repository(PRIVATE, files={"config.json": b"{}", "README.md": b"mine"})
    with pytest.raises(UsageError, match=r"holds other files \(config.json\); fix: choose another name"):
        push(config(made))
    assert set(hub.repositories[NAME].files) == {"config.json", "README.md"}
    push(config(made, force=True))
    assert "Modelfile" in hub.repositories[NAME].files
    hub.repositories[NAME] = Repository(PUBLIC)
    with pytest.raises(UsageError, match="everybody can see it; fix: pass --public"):
        push(config(made))
    push(config(made, public=True))
    assert hub.repositories[NAME].files


FAULTS = {
    "wrong token": ({"GET /api": 401}, "does not know you.*HTTP 401.*MODELSCOPE_API_TOKEN"),
    "no right to write": ({"POST /api": 403}, "may not write there .HTTP 403"),
    "no namespace": ({"POST /api": 404}, "no such namespace"),
    "taken meanwhile": ({"POST /api": 409}, "the name is taken .HTTP 409"),
    "too many requests": ({"POST /api": 429}, "asks to wait.*HTTP 429.*not sent a second time"),
    "refused": ({"POST /api": 400}, "refuses this .HTTP 400.: no: …"),
    "too large": ({"PUT /lfs": 413}, "file of this size.*--split-max-size"),
    "storage is full": ({"PUT /lfs": 507}, "storage on ModelScope is full"),
    "broken off": ({"PUT /lfs": "drop"}, "the upload broke off .*give the same command again"),
    "no answer": ({"GET /api": "drop"}, "ModelScope does not answer"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_line_without_the_token(
    name: str, made: Path, hub: ModelScopeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing, said = FAULTS[name]
    with pytest.raises(SystemFault, match=said) as caught:
        push(config(made))
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert main(["push", str(made), NAME, "--to", "modelscope"]) == SystemFault.exit_code
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert shown.err.splitlines()[-1].startswith(f"error: {NAME}: ")


def test_without_a_token_nothing_is_asked(
    made: Path, hub: ModelScopeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    with pytest.raises(SystemFault, match="no token of ModelScope was found; fix: set MODELSCOPE_API_TOKEN"):
        push(config(made))
    assert not hub.seen
