"""A sample of `tools/model_coverage.py`: classes, PEFT's merge, llama.cpp's converter, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracles import llama_cpp_source
from tool_modules import tool

pytest.importorskip("torch")
pytest.importorskip("peft")

# One of each kind of map; what the facts of a class are is the table in docs/coverage.md.
SAMPLE = (
    "DeepseekV3ForCausalLM",  # parts transposed per head, experts stacked
    "FalconH1ForCausalLM",  # rows times constants
    "Gemma3nForCausalLM",  # stacks of three, padded embeddings
    "Gemma4ForConditionalGeneration",  # prefixes of a wrapper
    "GPT2LMHeadModel",  # transposed, fused
    "GptOssForCausalLM",  # stacks transposed, rows in turns
    "GraniteMoeHybridForCausalLM",  # slices of fused experts
    "MixtralForCausalLM",  # permuted heads, experts stacked
    "NemotronHForCausalLM",  # other names in the file than in the model
    "Qwen3NextForCausalLM",  # fused rows regrouped
    "Qwen3_5ForCausalLM",  # permuted columns
    "T5ForConditionalGeneration",  # encoder and decoder
)
# PEFT has no DoRA for stacked experts, and takes some names of shared experts for these.
DORA = ("FalconH1ForCausalLM", "Gemma3nForCausalLM", "GPT2LMHeadModel")


def examined(names: tuple[str, ...], method: str, work: Path) -> dict[str, tuple[str, dict[str, str]]]:
    llama_cpp_source()  # skips if it cannot be had
    coverage = tool("model_coverage.py")
    servers = coverage.Servers()
    try:
        rows = [coverage.examine(servers, name, work, method) for name in names]
    finally:
        servers.close()
    return {row.name: (row.onto, row.reasons) for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_sample_of_classes_equals_the_converters_output_of_the_merged_model(
    tmp_path: Path, method: str
) -> None:
    names = SAMPLE if method == "lora" else DORA
    found = examined(names, method, tmp_path)
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(names, "equal"), found


@pytest.mark.slow
def test_a_wrong_fold_is_called_wrong(tmp_path: Path) -> None:
    """The judge itself: the merged model of another adapter is not what the tool takes for equal."""
    llama_cpp_source()
    coverage = tool("model_coverage.py")
    servers = coverage.Servers()
    try:
        for seed, folder in enumerate((tmp_path / "a", tmp_path / "b")):
            folder.mkdir()
            job = {"name": "LlamaForCausalLM", "folder": str(folder), "method": "rslora" if seed else "lora"}
            assert "error" not in servers.ask("build", job) and "error" not in servers.ask("convert", job)
        (tmp_path / "a/merged.gguf").write_bytes((tmp_path / "b/merged.gguf").read_bytes())
        job = {"name": "LlamaForCausalLM", "folder": str(tmp_path / "a"), "method": "lora"}
        said = servers.ask("compare", job)
    finally:
        servers.close()
    assert said["onto"] == said["native"] == "wrong"
    assert "differs by" in said["reasons"]["onto"]
