"""A whole GGUF from the real entry point against the usual way: header, vocabulary, tensors, order.

The usual way: PEFT merges and saves, llama.cpp's converter writes bfloat16 with the real tokenizer,
llama_model_quantize quantizes. Ours: `lorafold.export(...)` with PEFT's rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from oracles import convert_hf_to_gguf, quantize_with_llama, shared
from tiny_models import tiny_model

import lorafold
from lorafold.export import ExportConfig
from lorafold.export.quant.recipes import find_recipe
from lorafold.gguf_file.read import read_gguf_header

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
# tokenizer -> (family, the ids that its config.json names)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"bos_token_id": None, "eos_token_id": 151645, "pad_token_id": 151643}),
    "llama2": ("llama", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}),
}
# Listed differences of the header; see tests/export/vocab/test_converter.py.
DIFFERENCES = {
    "qwen2": {
        "tokenizer.ggml.add_eos_token",  # ours always says so
        "tokenizer.ggml.bos_token_id",  # there is none, and llama.cpp's default is some other token
    },
    "llama2": {
        "tokenizer.ggml.add_space_prefix",  # ours says llama.cpp's default
        "tokenizer.ggml.add_sep_token",  # for models like BERT
    },
}


def tuned(folder: Path, tokenizer: str) -> None:
    """A base, an adapter with random A and B, and PEFT's merge of both, with the tokenizer beside each."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    family, ids = MODELS[tokenizer]
    source = shared(f"tokenizers/{tokenizer}")
    base = tiny_model(family, folder / "base", "bfloat16", 5, source, **SIZES, **ids)
    lora = LoraConfig(r=8, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), lora)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    peft.save_pretrained(folder / "adapter")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(network, folder / "adapter").merge_and_unload().save_pretrained(
        folder / "Tuned"
    )
    for file in base.iterdir():
        if not (folder / "Tuned" / file.name).exists():
            shutil.copyfile(file, folder / "Tuned" / file.name)


@pytest.mark.parametrize("tokenizer", MODELS)
def test_file_is_that_of_the_usual_way(tmp_path: Path, tokenizer: str) -> None:
    tuned(tmp_path, tokenizer)
    theirs = {"BF16": convert_hf_to_gguf(tmp_path / "Tuned", tmp_path / "BF16.gguf", "--outtype", "bf16")}
    for name in ("Q4_K_M", "Q3_K_S"):
        theirs[name] = tmp_path / f"{name}.gguf"
        quantize_with_llama(theirs["BF16"], theirs[name], find_recipe(name).file_type)
    lorafold.export(
        ExportConfig(
            str(tmp_path / "adapter"),
            out=tmp_path / "out",
            base=str(tmp_path / "base"),
            quant=tuple(theirs),
            rounding="peft",
            name="Tuned",
            verify=False,
            modelfile=tokenizer == "qwen2",  # the other brings no chat template
            threads=2,
        )
    )
    for name, path in theirs.items():
        ours, other = read_gguf_header(tmp_path / f"out/Tuned-{name}.gguf"), read_gguf_header(path)
        differing = {
            key
            for key in ours.metadata.keys() | other.metadata.keys()
            if (ours.metadata.get(key), ours.types.get(key))
            != (other.metadata.get(key), other.types.get(key))
        }
        assert differing == DIFFERENCES[tokenizer], name
        assert list(ours.tensors) == list(other.tensors), name
        mine, oracle = ours.path.read_bytes(), other.path.read_bytes()
        for a, b in zip(ours.tensors.values(), other.tensors.values(), strict=True):
            assert (a.type_name, a.shape) == (b.type_name, b.shape), (name, a.name)
            same = mine[a.offset : a.offset + a.nbytes] == oracle[b.offset : b.offset + b.nbytes]
            assert same, (name, a.name)
