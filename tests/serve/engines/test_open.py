"""Names of models that stand side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafold.serve.engines.open import told_apart
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
