"""llama.cpp's converter on many tiny models in one process, with a made-up vocabulary.

The converter recognises tokenizers by a hash of what they do to a text, so that a small vocabulary of our own
is refused. What is compared here is everything but the tokenizer: this runs the converter's own classes with
`set_vocab` replaced by `tiny_vocabulary`, whose entries start with "tokenizer." and are left out of
comparisons. As a script it takes jobs as JSON on standard input; `convert` runs it so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = tuple[str, Any]


def tiny_vocabulary(size: int) -> dict[str, Any]:
    """Tokenizer entries that llama.cpp loads: a byte-level vocabulary of `size` different tokens.

    Args:
        size: tokens.

    Returns:
        Value by key, in the order of the header.
    """
    named = ["<unk>", "<s>", "</s>", "<|endoftext|>"]  # llama.cpp looks these up in a model called phi-3
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*named, *(chr(0x100 + number) for number in range(len(named), size))],
        "tokenizer.ggml.token_type": [1] * size,
        "tokenizer.ggml.merges": [f"{chr(0x110)} {chr(0x111)}"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def add_vocabulary(writer: Any, size: int) -> None:
    """Add `tiny_vocabulary` to a gguf-py writer."""
    for key, value in tiny_vocabulary(size).items():
        add = {list: writer.add_array, str: writer.add_string, int: writer.add_uint32}[type(value)]
        add(key, value)


def convert(jobs: Sequence[Mapping[str, str]]) -> None:
    """Convert models with llama.cpp's converter.

    Args:
        jobs: each with "folder" (the model), "out" (the GGUF to write) and "outtype" ("f32", "f16", "bf16").
    """
    from oracles import llama_cpp_source

    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | offline | {"PYTHONPATH": str(llama_cpp_source())}
    text = json.dumps(list(jobs))
    ran = subprocess.run(
        [sys.executable, __file__], env=environment, input=text, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


def main() -> None:
    """Run the jobs on standard input."""
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import gguf

    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    }

    def set_vocab(model: Any) -> None:
        add_vocabulary(model.gguf_writer, model.hparams["vocab_size"])

    load_hparams = ModelBase.load_hparams

    def load_all_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        """What transformers 5 makes of config.json, above what it leaves out but the converter reads."""
        return json.loads((folder / "config.json").read_text()) | load_hparams(folder, is_mistral_format)

    ModelBase.load_hparams = staticmethod(load_all_hparams)
    torch.set_num_threads(1)
    for job in json.load(sys.stdin):
        folder = Path(job["folder"])
        hparams = ModelBase.load_hparams(folder, False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        for writer in (
            model_class,
            *vars(model_class).values(),
        ):  # Mistral 3's has a class inside that writes
            if isinstance(writer, type):
                writer.set_vocab = set_vocab
        with torch.inference_mode():
            model_class(folder, types[job["outtype"]], Path(job["out"])).write()


if __name__ == "__main__":
    main()
