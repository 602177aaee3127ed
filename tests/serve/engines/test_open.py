"""Which file a model is, and the names of models that stand side by side."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_chat

from lorafold.errors import UsageError
from lorafold.serve.config import ChatConfig
from lorafold.serve.engines.open import model_file, opened, told_apart
from lorafold.serve.protocol import About

FILES = ("a/model.gguf", "b/model.gguf", "x/a/model.gguf", "b/other.gguf", "a/adapter.gguf", "b/adapter.gguf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (("a/model.gguf", "b/other.gguf"), ("model.gguf", "other.gguf")),
        (("a/model.gguf", "b/model.gguf", "b/other.gguf"), ("a/model.gguf", "b/model.gguf", "other.gguf")),
        (
            ("a/model.gguf", "x/a/model.gguf", "b/model.gguf"),
            ("{0}/a/model.gguf", "x/a/model.gguf", "{0}/b/model.gguf"),
        ),
        (("a/model.gguf", "./a/model.gguf"), ("model.gguf", "model.gguf")),  # one file
        (
            ("a/model.gguf+a/adapter.gguf", "a/model.gguf+b/adapter.gguf", "a/model.gguf"),
            ("model.gguf+a/adapter.gguf", "model.gguf+b/adapter.gguf", "model.gguf"),
        ),
        (("one/chat", "two/chat"), ("one/chat", "two/chat")),  # of a hub
        (("http://h:1/v1", "http://h:2", "ollama:m"), ("h:1/m", "h:2/m", "ollama/m")),
    ],
)
def test_equal_names_bring_as_much_of_their_paths_as_is_needed(
    sources: tuple[str, ...], names: tuple[str, ...], folder: Path
) -> None:
    kinds = {"http": "openai", "olla": "ollama"}
    abouts = [
        About("m", source, kinds[source[:4]], "")
        if source[:4] in kinds
        else About("+".join(part.rpartition("/")[2] for part in source.split("+")), source, "llama.cpp", "")
        for source in sources
    ]
    assert told_apart(abouts) == [name.format(folder.name) for name in names]


def test_an_export_folder_is_the_model_in_it(tmp_path: Path) -> None:
    export = tmp_path / "out"
    export.mkdir()
    assert model_file(export) is None
    shutil.copy(tiny_chat.adapter_gguf(), export / "adapter.gguf")
    assert model_file(export) is None
    first = shutil.copy(tiny_chat.gguf(), export / "m-F32.gguf")
    assert model_file(export) == first
    with opened(ChatConfig(models=(str(export), f"{export}+{export}/adapter.gguf"), threads=1)) as engines:
        assert [engine.about.name for engine in engines] == ["m-F32.gguf", "m-F32.gguf+adapter.gguf"]
        assert [engine.about.kind for engine in engines] == ["llama.cpp"] * 2
        assert engines[0].model is engines[1].model  # type: ignore[attr-defined]
    shutil.copy(first, export / "m-Q8_0.gguf")
    with pytest.raises(UsageError, match=r"2 models; fix: choose .*m-F32\.gguf or .*m-Q8_0\.gguf"):
        model_file(export)
    shutil.copytree(tiny_chat.folder(), export, dirs_exist_ok=True)
    assert model_file(export) is None  # a Hugging Face folder, with files beside it


def test_the_parts_of_a_model_are_one(tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copy(tiny_chat.gguf(), tmp_path / f"m-0000{number}-of-00002.gguf")
    assert model_file(tmp_path) == tmp_path / "m-00001-of-00002.gguf"
