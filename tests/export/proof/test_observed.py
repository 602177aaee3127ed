"""The prompt as a running server builds it: a recorded Ollama on loopback, and llama.cpp's own server."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from ollama_server import RECORDED, ollama_server

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.cli import main
from lorafold.errors import InputError, LorafoldError, NumericError, SystemFault, UsageError
from lorafold.export import ExportConfig, export, verify
from lorafold.export.inputs import open_inputs
from lorafold.export.manifest import config_of
from lorafold.export.ollama.client import LlamaServer, Ollama
from lorafold.export.outputs.gguf import plan_gguf_output
from lorafold.export.outputs.prompt.observing import observe_prompts
from lorafold.export.proof.observed import Observing, check_name, observe_ollama
from lorafold.progress import silent


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("observed") / "out"
    export(ExportConfig(str(tiny_chat.folder()), out=out, quant=("F32",), verify=False, name="tiny"))
    return out


def observed(folder: Path, host: str | None, **servers: Any) -> Any:
    """The check of a server, without the proof's other parts, which take seconds."""
    saved = config_of(json.loads((folder / "lorafold.json").read_text()), folder)
    output = plan_gguf_output(open_inputs(saved, silent), replace(saved, verify=True))
    (check,) = observe_prompts(
        folder,
        output.plan.files,
        output.prompt,
        output.inputs,
        output.chats,
        Observing(host, **servers),
        silent,
    )
    return check


def test_a_prompt_that_no_modelfile_brings_about_is_not_created(exported: Path) -> None:
    with ollama_server() as place:
        check = observe_ollama(
            Ollama(place.url),
            exported,
            (exported / "Modelfile").read_text(),
            {"tiny-F32.gguf": None},
            ChatTemplate.from_folder(tiny_chat.folder()),
            equal=(),
            bos="",
            keep="mine",
            questions=[],
            count=len,
            progress=silent,
        )
        assert (
            check.verdict == "failed" and "whatever the Modelfile says; nothing was created" in check.meaning
        )
        assert not place.created and not place.models and "llama-server" in check.fix


def test_a_throwaway_model_is_compared_and_removed(exported: Path) -> None:
    with ollama_server() as place:
        check = observed(exported, place.url)
        assert check.verdict == "passed", check.meaning
        version = RECORDED["version"]["version"]
        assert check.meaning.startswith(f"proven on your Ollama {version}: 48 prompts are those of training")
        assert check.figures["counts"] == 3 and check.meaning.endswith("; 3 questions have as many tokens")
        assert not place.models and "DELETE /api/delete" in place.asked
        (created,) = place.created
        assert created["model"].startswith("lorafold-proof-") and list(created["files"]) == ["tiny-F32.gguf"]
        assert created["parameters"]["stop"] == ["<|im_end|>", "<|im_start|>"]
        assert created["template"].startswith("{{- if $.System -}}")
        again = place.asked.index("DELETE /api/delete")
        observed(exported, place.url)
        assert "POST /api/blobs" not in place.asked[again:], "what is there is not sent again"


def test_a_kept_model_stays_only_if_it_passes(exported: Path) -> None:
    with ollama_server() as place:
        assert observed(exported, place.url, name="mine").verdict == "passed" and place.models == {"mine"}
        with pytest.raises(UsageError, match="has a model 'mine' already, which may not be ours"):
            observed(exported, place.url, name="mine")
        assert place.models == {"mine"}, "what is not ours stays"
    with ollama_server(prompt=lambda text: text.replace("assistant", "model")) as place:
        check = observed(exported, place.url, name="mine")
        assert check.verdict == "failed" and "builds another prompt: think unset, on" in check.meaning
        assert not place.models


def test_other_token_counts_fail(exported: Path) -> None:
    with ollama_server(more_tokens=1) as place:
        check = observed(exported, place.url)
        assert check.verdict == "failed" and "another number of tokens for 3 of 3" in check.meaning
        assert not place.models


FULL = "write /root/.ollama/models/blobs/sha256-1: no space left on device"
FAULTS: dict[str, tuple[dict[str, Any], type[LorafoldError], str]] = {
    "no Ollama": (
        {"fails": {"/api/version": (404, "<html>")}},
        SystemFault,
        r"this is not Ollama: it does not tell a version \(HTTP 404\); fix: name another address",
    ),
    "disk full": (
        {"fails": {"/api/blobs": (500, FULL)}},
        SystemFault,
        "the server's disk is full: write /root",
    ),
    "disk full at create": ({"create": [{"error": FULL}]}, SystemFault, "disk is full"),
    "upload breaks off": ({"hangs_up": "/api/blobs"}, SystemFault, "upload of tiny-F32.gguf broke off after"),
    "TEMPLATE refused": (
        {"create": [{"error": "template error: unexpected EOF", "status": 400}]},
        InputError,
        "Ollama refuses the TEMPLATE: template error",
    ),
    "no GGUF": (
        {"create": [{"error": "supplied file was not in GGUF format", "status": 400}]},
        InputError,
        "Ollama refuses this (HTTP 400): supplied file",
    ),
    "create ends early": ({"create": [{"status": "parsing GGUF"}]}, SystemFault, "hung up while it created"),
    "create breaks off": ({"hangs_up": "/api/create"}, SystemFault, "Ollama does not answer"),
    "chat breaks off": ({"hangs_up": "/api/chat"}, SystemFault, "Ollama does not answer"),
    "runner dies": (
        {"fails": {"/api/chat": (500, "llama runner terminated")}},
        SystemFault,
        "runner terminated",
    ),
    "old version": ({"shows_prompts": False}, SystemFault, "0.33.0-rc2 does not show its prompts"),
    "not signed in": ({"fails": {"/api/show": (401, "unauthorized")}}, SystemFault, r"access \(HTTP 401\)"),
    "forbidden": ({"fails": {"/api/create": (403, "")}}, SystemFault, r"access \(HTTP 403\)"),
    "too busy": ({"fails": {"/api/create": (429, "busy")}}, SystemFault, r"too much to do \(HTTP 429\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_and_leaves_no_model(exported: Path, fault: str) -> None:
    settings, kind, line = FAULTS[fault]
    with ollama_server(**settings) as place:
        with pytest.raises(kind, match=line.replace("(HTTP 400)", r"\(HTTP 400\)")) as caught:
            observed(exported, place.url, name="mine")
        said = str(caught.value)
        assert said.startswith(place.url) and "; fix: " in said and "\n" not in said
        assert not place.models


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(SystemFault, match=r"Ollama does not answer.*fix: start it with `ollama serve`"):
        Ollama(f"127.0.0.1:{port}").version()
    with pytest.raises(SystemFault, match="llama-server does not answer"):
        LlamaServer(f"127.0.0.1:{port}/v1").ids("x")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c/d", "x:y:z"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a model"):
        check_name(Ollama("127.0.0.1:1"), name)


def test_interrupted_in_the_middle(exported: Path) -> None:
    def interrupt(text: str) -> str:
        raise KeyboardInterrupt

    from lorafold.export.proof import observed as module

    with ollama_server() as place:
        server = Ollama(place.url)
        with (
            pytest.raises(KeyboardInterrupt),
            module._created(
                server, "mine", {}, exported, {"tiny-F32.gguf": None}, kept=True, progress=lambda *_: None
            ),
        ):
            assert place.models == {"mine"}
            interrupt("")
        assert not place.models


def test_nothing_is_asked_without_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ollama_server() as place:
        monkeypatch.setenv("OLLAMA_HOST", place.url)
        export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "o", quant=("F32",), verify=False))
        assert not place.asked


def test_the_export_creates_and_names_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"quant": ("F32",), "verify": False, "name": "tiny", "ollama": "mine"}
    with ollama_server() as place:
        monkeypatch.setenv("OLLAMA_HOST", place.url)
        result = export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "o", **config))
        assert ("Ollama", "ollama run mine") in result.next_steps and place.models == {"mine"}
        assert result.proof.checks[-1].meaning.startswith("proven on your Ollama")
        with pytest.raises(UsageError, match="already"):
            export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "p", **config))
        assert not (tmp_path / "p").exists(), "a taken name is told before any work"
    with ollama_server(prompt=str.upper) as place:
        monkeypatch.setenv("OLLAMA_HOST", place.url)
        with pytest.raises(NumericError, match=r"the export itself is done, in .*Ollama has no such model"):
            export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "p", **config))
        assert (tmp_path / "p" / "Modelfile").is_file() and not place.models


@pytest.mark.slow
def test_verify_at_the_command_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    with ollama_server() as place:
        monkeypatch.setenv("OLLAMA_HOST", place.url)
        assert main(["verify", str(tmp_path / "out"), "--ollama", "here"]) == 0
        assert "proven on your Ollama" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main(["verify", str(tmp_path / "out"), "--ollama", place.url]) == 5
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.slow
def test_llama_server_itself(exported: Path) -> None:
    from llama_server import running

    with running(exported / "tiny-F32.gguf") as url:
        check = observed(exported, None, llama_server=url)
    assert check.verdict == "passed" and "3 questions have the same token ids" in check.meaning, check.meaning


def test_without_a_modelfile_there_is_nothing_to_compare(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without a Modelfile there is no prompt to compare"):
        ExportConfig("x", out=tmp_path, modelfile=False, ollama="mine")


def test_verify_takes_only_gguf(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    export(ExportConfig(str(tiny_chat.folder()), out=out, format="folder", verify=False))
    with pytest.raises(UsageError, match="only GGUF files are compared"):
        verify(out, ollama="")
