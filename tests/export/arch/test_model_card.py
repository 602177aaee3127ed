"""general.*: what the folder tells, counted sizes, a broken model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFValueType

from lorafold.errors import InputError
from lorafold.export.arch.model_card import count_weights, general_metadata
from lorafold.export.gguf.parts import MappedTensor

DENSE = (MappedTensor("token_embd.weight", (1000, 64)), MappedTensor("blk.0.attn_q.weight", (64, 64)))
EXPERTS = tuple(MappedTensor(f"blk.{layer}.ffn_up_exps.weight", (8, 32, 64)) for layer in range(2))


def values(
    folder: Path, tensors: tuple[MappedTensor, ...] = DENSE, name: str | None = None
) -> dict[str, object]:
    """Entries by key."""
    return {entry.key: entry.value for entry in general_metadata(folder, tensors, name)}


def test_a_bare_folder_gives_name_and_size(tmp_path: Path) -> None:
    """Without card and config the folder's name is taken apart as llama.cpp does."""
    folder = tmp_path / "Some-Model-7B-Instruct"
    folder.mkdir()
    assert values(folder) == {
        "general.type": "model",
        "general.name": "Some Model 7B Instruct",
        "general.finetune": "7b-Instruct",
        "general.basename": "Some-Model",
        "general.size_label": "68K",
    }
    assert values(folder, name="mine")["general.name"] == "mine"


@pytest.mark.parametrize(
    "repository", ["models--org--Some-Model-7B-Instruct", "models--Some-Model-7B-Instruct"]
)
def test_a_snapshot_of_the_hub_is_called_by_its_id(repository: str, tmp_path: Path) -> None:
    """Not by its commit, nor by what a name and a size guessed from the commit would be."""
    plain = tmp_path / "Some-Model-7B-Instruct"
    snapshot = tmp_path / repository / "snapshots" / "c1899de289a04d12100db370d81485cdf75e47ca"
    for folder in (plain, snapshot):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    assert values(snapshot) == values(plain)
    assert values(snapshot)["general.name"] == "Some Model 7B Instruct"
    assert values(snapshot)["general.sampling.temp"] == 0.5
    assert values(snapshot, name="mine")["general.name"] == "mine"


def test_card_and_generation_config(tmp_path: Path) -> None:
    """Licence, tags, languages and base models come from the card, sampling from generation_config.json."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\ntags: [a, b]\nlanguage:\n- en\n- no\nbase_model: org/Base-1B\n---\n# Title\n"
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 7}))
    entries = {entry.key: entry for entry in general_metadata(tmp_path, DENSE)}
    assert entries["general.license"].value == "mit"
    assert entries["general.languages"].value == ["en", "no"]
    assert (entries["general.tags"].type, entries["general.tags"].subtype) == (
        GGUFValueType.ARRAY,
        GGUFValueType.STRING,
    )
    assert entries["general.base_model.0.name"].value == "Base 1B"
    assert entries["general.sampling.top_k"].value == 7
    assert entries["general.sampling.temp"].type is GGUFValueType.FLOAT32


@pytest.mark.parametrize(
    "front", ["license: [unclosed", "tags: {a: 1}\nbase_model: {name: [1, 2}", "a: b: c"]
)
def test_a_broken_card_is_named(tmp_path: Path, front: str) -> None:
    """Front matter that is no YAML is refused with the file's name and what to do."""
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    with pytest.raises(InputError) as caught:
        general_metadata(tmp_path, DENSE)
    assert caught.value.at == str(tmp_path / "README.md")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("file", "text", "key"),
    [
        ("README.md", "---\nlicense: {mit: 1}\n---\n", "license"),
        ("README.md", "---\ntags: [[a]]\n---\n", "tags"),
        ("generation_config.json", '{"top_k": "many"}', "sampling.top_k"),
        ("generation_config.json", '{"temperature": [0.5]}', "sampling.temp"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(tmp_path: Path, file: str, text: str, key: str) -> None:
    """The file, the entry, what was got and what to do."""
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=key) as caught:
        general_metadata(tmp_path, DENSE)
    assert caught.value.at == str(tmp_path / file)
    assert caught.value.fix


def test_numbers_and_dates_become_text(tmp_path: Path) -> None:
    """`version: 1.5` is a number in YAML and a string in GGUF."""
    (tmp_path / "README.md").write_text("---\nversion: 1.5\ndescription: 2026-11-23\ntags: [1]\n---\n")
    entries = values(tmp_path)
    assert (entries["general.version"], entries["general.description"]) == ("1.5", "2026-11-23")
    assert entries["general.tags"] == ["1"]


def test_counted_weights() -> None:
    """Experts count once for their size and apart for their number."""
    assert count_weights(DENSE) == (68096, 68096, 0, 0)
    stack = 8 * 32 * 64
    assert count_weights((*DENSE, *EXPERTS)) == (68096 + 2 * stack, 68096, 2 * stack // 8, 8)


def test_size_label_of_experts(tmp_path: Path) -> None:
    """A model with experts is labelled by their number and by one expert with what all share."""
    assert values(tmp_path, (*DENSE, *EXPERTS))["general.size_label"] == "8x72K"
