"""What an export may replace: no input, no file, and of folders only what an export has made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora

from lorafold.errors import InputError, UsageError
from lorafold.export import ExportConfig, export, plan_export, verify

Q = "model.layers.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base() -> str:
    return str(tiny_chat.folder())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = lora(Q.format(0), rows=64, cols=64) | lora(Q.format(1), rows=64, cols=64)
    return adapter_folder(tmp_path / "adapter", tensors)


def config(source: object, out: Path, **changes: Any) -> ExportConfig:
    return ExportConfig(str(source), out=out, **{"quant": ("F32",), "verify": False, **changes})


@pytest.mark.parametrize("option", ["imatrix", "imatrix_data", "chats", "chat_template"])
def test_a_file_that_is_read_is_never_replaced(option: str, base: str, tmp_path: Path) -> None:
    """Even in a folder that --force may replace: the file would be gone before it is of use."""
    out = tmp_path / "out"
    export(config(base, out))
    given = out / "inside" / "given"
    given.parent.mkdir()
    given.write_text("{{ messages }}")
    value: Any = str(given) if option == "chat_template" else given
    for stage in (export, plan_export):
        with pytest.raises(UsageError, match=f"overlaps the input {given}"):
            stage(config(base, out, force=True, **{option: value}))
    assert given.read_text() == "{{ messages }}"


def test_force_replaces_an_export_and_an_empty_folder(base: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(config(base, out, name="first", force=True))
    export(config(base, out, name="second", force=True))
    assert [path.name for path in out.glob("*.gguf")] == ["second-F32.gguf"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"holds no lorafold\.json of an export \(a\.txt, b\.txt, c\.txt, …\)"),
        ("{broken", r"holds no lorafold\.json of an export"),
        (json.dumps({"kind": "adapter", "files": {}}), "is a lorafold adapter"),
    ],
)
def test_force_does_not_replace_what_no_export_made(
    content: str | None, words: str, base: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in "abcd":
        (out / f"{name}.txt").write_text("mine")
    if content is not None:
        (out / "lorafold.json").write_text(content)
    before = sorted(path.name for path in out.iterdir())
    for stage in (export, plan_export):
        with pytest.raises(UsageError, match=words) as caught:
            stage(config(base, out, force=True))
        assert caught.value.fix == "choose another --out, or remove the folder yourself"
    assert sorted(path.name for path in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", ["gguf", "adapter"])
@pytest.mark.parametrize(
    ("name", "stem"),
    [("../../evil", "evil"), ("/tmp/evil", "tmp-evil"), ("Qwen/mine", "Qwen-mine"), ("模型 1", "模型-1")],
)
def test_files_stay_in_the_output_whatever_the_name(
    name: str, stem: str, format: str, adapter: Path, base: str, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "er" / "out"
    export(
        config(adapter, out, base=base, name=name, format=format, quant=("F32",) if format == "gguf" else ())
    )
    (path,) = tmp_path.rglob("*.gguf")
    assert path == out / (f"{stem}-F32.gguf" if format == "gguf" else f"{stem}.gguf")
    assert gguf.GGUFReader(path).fields["general.name"].contents() == name
    assert json.loads((out / "lorafold.json").read_text())["name"] == name
    if format == "gguf":
        assert f"FROM ./{path.name}" in (out / "Modelfile").read_text()


@pytest.mark.parametrize("name", ["..", "///", "x" * 181])
def test_a_name_that_gives_no_file_name_is_refused(name: str, base: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gives no file name") as caught:
        config(base, tmp_path / "out", name=name)
    assert caught.value.at == "--name" and caught.value.fix


def test_an_export_is_proven_from_any_folder(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every input is given as from the folder that was current then; the base by the adapter itself."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    shutil.copytree(tiny_chat.folder(), work / "base")
    shutil.move(adapter, work / "adapter")
    shutil.copytree(work / "adapter", home / "other")
    (work / "mine.jinja").write_text(
        json.loads((work / "base/tokenizer_config.json").read_text())["chat_template"]
    )
    (work / "chats.txt").write_text("Hello?\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    settings = config(
        "adapter=0.5",
        Path("out"),
        base="base",
        adapter=("~/other=0.25",),
        chat_template="mine.jinja",
        chats=Path("chats.txt"),
    )
    export(settings)
    settings_of_adapter = work / "adapter/adapter_config.json"
    values = json.loads(settings_of_adapter.read_text())
    settings_of_adapter.write_text(json.dumps({**values, "base_model_name_or_path": "base"}))
    export(config("adapter", Path("named"), format="folder", quant=()))
    export(config("base", Path("plain")))
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    for name in ("out", "named", "plain"):
        proof = verify(work / name)
        # Several adapters have no reference to be held against.
        assert proof.passed is not False and len(proof.checks) > 1, name
    with pytest.raises(InputError):
        export(config("adapter", Path("nowhere")))


def test_a_base_of_the_same_name_as_a_template_is_no_file(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chatml` names our template, and an export may be called so too."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        export(config(base, Path("chatml"), chat_template="chatml", force=True))
    saved = json.loads(Path("chatml/lorafold.json").read_text())["config"]
    assert saved["chat_template"] == "chatml"
