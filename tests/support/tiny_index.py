"""A small Index model: norm_head, remote code, and a tokenizer.model with the markers where Index has them.

What is Index about it: the head's rows are L2-normalised in the forward pass; the code that does so comes
with the model; `<unk>`, `<s>`, `</s>`, `reserved_0` and `reserved_1` are the ids 0 to 4, of which 0, 3 and 4
begin the system's, the user's and the assistant's text and 2 ends an answer (bilibili/Index-1.9B on GitHub,
demo/cli_demo.py, which also encodes each text by itself).
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_base import tiny_base
from tiny_tokenizers import sentencepiece_model

REMOTE = """
import pathlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# A test looks whether this file was run.
(pathlib.Path(__file__).resolve().parent / "it-ran").write_text("")


class IndexConfig(LlamaConfig):
    model_type = "index"


class NormHead(torch.nn.Linear):
    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))


class IndexForCausalLM(LlamaForCausalLM):
    config_class = IndexConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
"""


def make_index(folder: Path) -> None:
    """Turn a Llama folder into one with norm_head and remote code."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "architectures": ["IndexForCausalLM"],
        "model_type": "index",
        "norm_head": 1,
        "auto_map": {
            "AutoConfig": "modeling_index.IndexConfig",
            "AutoModelForCausalLM": "modeling_index.IndexForCausalLM",
        },
    }
    path.write_text(json.dumps(config))
    (folder / "modeling_index.py").write_text(REMOTE)


def index_tokenizer(folder: Path) -> Path:
    """Write tokenizer.model and its settings, without a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(size=1200, symbols=("reserved_0", "reserved_1"))
    (folder / "tokenizer.model").write_bytes(model)
    settings = {
        "tokenizer_class": "IndexTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_index.IndexTokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_index(folder: Path) -> Path:
    """Write the whole base."""
    from safetensors.torch import load_file, save_file

    from lorafold.tokenizer.folder import with_tokenizer_json

    index_tokenizer(folder)
    made = with_tokenizer_json(folder)
    tiny_base(folder, tokenizer=made)
    # A normalised head's logits are at most the length of what it sees; with 64 columns that is too little.
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    make_index(folder)
    return folder
