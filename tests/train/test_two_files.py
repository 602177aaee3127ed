"""A base with vocab.json and merges.txt alone: it is trained on, exported and chatted with like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_base import tiny_base

from lorafold.export import ExportConfig, export
from lorafold.serve.config import ChatConfig
from lorafold.serve.engines.open import open_engines
from lorafold.train import TrainConfig, describe_data, train

pytest.importorskip("peft")


def with_two_files(folder: Path) -> Path:
    """A tiny base whose tokenizer is as GPT-2's was released."""
    tiny_base(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "GPT2Tokenizer"
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer["added_tokens"]
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.slow
def test_trained_exported_and_answered(tmp_path: Path) -> None:
    base = with_two_files(tmp_path / "base")
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"instruction": "Who are you?", "output": "The keeper."}) + "\n")
    report = describe_data(TrainConfig(data=(str(data),), base=str(base)))
    assert report.tokens and report.trained
    train(TrainConfig(base=str(base), data=(str(data),), out=tmp_path / "adapter", max_steps=1))
    exported = export(
        ExportConfig(str(tmp_path / "adapter"), out=tmp_path / "out", quant=("F32",), verify=False)
    )
    gguf = next(exported.folder.glob("*.gguf"))
    ids = []
    engines = open_engines(ChatConfig(models=(f"{base}+{tmp_path / 'adapter'}", str(gguf))))
    try:
        for engine in engines:
            assert engine.scorer is not None
            ids.append(engine.scorer.tokenize("Who are you, 12 keepers?"))
    finally:
        for engine in engines:
            engine.close()
    assert ids[0] == ids[1] and len(ids[0]) > 3
