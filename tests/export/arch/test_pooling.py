"""Pooling: each way in both spellings, every fault by name; families hold it against the converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafold.errors import InputError
from lorafold.export.arch.pooling import pooling_entries

STEPS = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def folder(tmp_path: Path, steps: Any, pooling: dict[str, Any] | None) -> Path:
    text = steps if isinstance(steps, str) else json.dumps(steps)
    (tmp_path / "modules.json").write_text(text)
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return tmp_path


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_each_way(pooling: dict[str, Any], number: int, tmp_path: Path) -> None:
    (entry,) = pooling_entries(folder(tmp_path, STEPS, pooling), "qwen3")
    assert (entry.key, entry.value) == ("qwen3.pooling_type", number)


def test_what_is_no_embedding_model_has_none(tmp_path: Path) -> None:
    assert pooling_entries(tmp_path, "qwen3") == []
    assert pooling_entries(folder(tmp_path, STEPS[:1], None), "qwen3") == []
    assert pooling_entries(folder(tmp_path, STEPS, None), "qwen3") == []


@pytest.mark.parametrize("steps", ["{", "[" * 100_000, "[1]", '[{"path": 1}]', "3"])
def test_a_list_that_is_none(steps: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no list of modules") as caught:
        pooling_entries(folder(tmp_path, steps, None), "qwen3")
    assert caught.value.at == str(tmp_path / "modules.json")


def test_a_way_that_llama_cpp_has_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pools in none of the ways .*--format folder"):
        pooling_entries(folder(tmp_path, STEPS, {"pooling_mode_max_tokens": True}), "qwen3")
