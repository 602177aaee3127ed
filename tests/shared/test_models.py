"""Bases: what a spec may be, and every way in which it may be wrong."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from loopback import running
from tiny_hub import go_there

from lorafold.errors import InputError, SystemFault, UnsafeInputError
from lorafold.inspection import inspect_path
from lorafold.models import fingerprint, read_config, require, resolve_base


def folder(path: Path, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return path


def test_a_folder_is_a_base(tmp_path: Path) -> None:
    base = resolve_base(str(folder(tmp_path / "base")))
    assert base.folder == tmp_path / "base" and base.revision is None
    assert base.config() == {"model_type": "llama"}


@pytest.mark.parametrize("spec", ["nothing-here", "./nothing/here", "a/b/c"])
def test_an_unknown_base_is_one_line(spec: str) -> None:
    with pytest.raises(InputError, match=r"no such model \(expected `demo`, a folder") as caught:
        resolve_base(spec)
    assert caught.value.exit_code == 3 and "fix:" in str(caught.value)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a Hugging Face model folder; fix: give the model's folder"):
        resolve_base(str(tmp_path))
    (tmp_path / "a-Q4_K_M.gguf").touch()
    with pytest.raises(InputError, match=r"with GGUF files; fix: .*take the file: .*/a-Q4_K_M\.gguf$"):
        resolve_base(str(tmp_path))
    with pytest.raises(InputError, match=r"this is a GGUF file, not a model .*Hugging Face folder"):
        resolve_base(str(tmp_path / "a-Q4_K_M.gguf"))


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path)


def test_remote_code_needs_permission_and_is_named_first(tmp_path: Path) -> None:
    named = {
        "AutoModelForCausalLM": "modeling_index.IndexForCausalLM",
        "AutoTokenizer": ["org/other--tokens.Slow", None],
    }
    path = folder(tmp_path / "index", auto_map=named)
    code = r"modeling_index.py, org/other/tokens.py"
    with pytest.raises(UnsafeInputError, match=rf"auto_map: {code}\)") as caught:
        resolve_base(str(path))
    assert caught.value.exit_code == 4 and "--trust-remote-code" in str(caught.value)
    told: list[str] = []
    base = resolve_base(
        str(path), trust_remote_code=True, progress=lambda step, done, total, note="": told.append(step)
    )
    assert base.folder == path and told == [f"trust the model's own code: {code}"]
    odd = folder(tmp_path / "odd", auto_map={"AutoModel": "no_class_named"})
    with pytest.raises(UnsafeInputError, match=r"auto_map: no_class_named\)"):
        resolve_base(str(odd))


def test_a_name_of_modelscopes_cache_is_no_id() -> None:
    """A dot is spelled ___ there: the hub would be asked for a repository that cannot be."""
    with pytest.raises(
        InputError, match=r"a download of Qwen/Qwen2\.5-1\.5B \(or modelscope:Qwen/Qwen2\.5-1\.5B\)"
    ):
        resolve_base("Qwen/Qwen2___5-1___5B")


@pytest.mark.parametrize("spec", ["out", "runs/out"])
def test_a_folder_that_its_training_has_not_made_yet(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{spec}.run/checkpoint-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for look in (resolve_base, inspect_path):
        with pytest.raises(InputError, match=rf"add --resume to its command \({spec}\.run keeps it\)"):
            look(spec)


def test_the_fingerprint_tells_models_apart_and_survives_a_resave(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", hidden_size=8, transformers_version="4.0")
    same = folder(tmp_path / "same", hidden_size=8, transformers_version="5.0")
    other = folder(tmp_path / "other", hidden_size=16)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    (same / "tokenizer.json").write_text("{}")
    assert fingerprint(one) != fingerprint(same)


def test_a_missing_package_names_the_install_command() -> None:
    with pytest.raises(SystemFault, match=r"no_such_package.*pip install no_such_package"):
        require("json", "no_such_package", extra="train")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """A hub on loopback that answers every request with `status` and, where it is gated, the hub's header."""

    class Handler(BaseHTTPRequestHandler):
        status, error = 404, "RepoNotFound"
        seen: ClassVar[list[str]] = []

        def answer(self) -> None:
            Handler.seen.append(self.headers.get("authorization", ""))
            self.send_response(Handler.status)
            if Handler.error:
                self.send_header("X-Error-Code", Handler.error)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = answer  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        go_there(address, tmp_path / "cache", monkeypatch)
        yield Handler


@pytest.mark.parametrize(
    ("status", "code", "words", "exit_code"),
    [
        (404, "RepoNotFound", "no such repository", 3),
        (401, "RepoNotFound", "no such repository", 3),
        (403, "GatedRepo", "gated", 3),
        (404, "RevisionNotFound", "no such repository or revision", 3),
    ],
)
def test_the_hubs_refusals(hub: object, status: int, code: str, words: str, exit_code: int) -> None:
    hub.status, hub.error = status, code  # type: ignore[attr-defined]
    with pytest.raises((InputError, SystemFault), match=words) as caught:
        resolve_base("somebody/some-model")
    assert caught.value.exit_code == exit_code and "hf_" not in str(caught.value)


def test_offline_never_connects(hub: object) -> None:
    hub.seen.clear()  # type: ignore[attr-defined]
    with pytest.raises(SystemFault, match="not in the local cache"):
        resolve_base("somebody/some-model", offline=True)
    assert hub.seen == []  # type: ignore[attr-defined]
