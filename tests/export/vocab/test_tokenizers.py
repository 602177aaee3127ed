"""The whole export with the real tokenizers: the proof passes for each, template and BOS included."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles import shared
from tiny_models import tiny_model

from lorafold.export import ExportConfig, export

SETUPS = (
    ("qwen2", "qwen2", None),
    ("llama", "llama2", "llama-2"),
    ("llama", "llama3", "chatml"),
    ("llama", "deepseek-llm", "deepseek-llm"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokenizer", "template"), SETUPS)
def test_every_check_passes(family: str, tokenizer: str, template: str | None, tmp_path: Path) -> None:
    base = tiny_model(family, tmp_path / "base", tokenizer=shared(f"tokenizers/{tokenizer}"))
    result = export(
        ExportConfig(str(base), out=tmp_path / "out", quant=("F32", "Q8_0"), chat_template=template)
    )
    verdicts = {check.name: check.verdict for check in result.proof.checks}
    assert set(verdicts.values()) == {"passed"}, verdicts
