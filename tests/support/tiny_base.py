"""Small random models for tests, as ordinary Hugging Face folders: 2 layers, width 64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def tiny_tokenizer(folder: Path) -> int:
    """Write a byte-level tokenizer with ChatML's control tokens; returns its number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(alphabet) + len(specials)


def tiny_base(
    folder: Path, *, family: str = "Llama", tokenizer: Path | None = None, seed: int = 0, **shape: Any
) -> Path:
    """Write a random model of a family (Llama, Qwen2) with its tokenizer.

    Args:
        folder: where.
        family: prefix of transformers' classes.
        tokenizer: folder of a real tokenizer; without one a byte-level one is made.
        seed: of the weights.
        shape: fields of the config.
    """
    import torch
    import transformers

    if tokenizer is None:
        rows = tiny_tokenizer(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for path in tokenizer.iterdir():
            if path.name != "vectors.json":
                shutil.copyfile(path, folder / path.name)
        data = json.loads((folder / "tokenizer.json").read_text())
        rows = max([*data["model"]["vocab"].values(), *(row["id"] for row in data["added_tokens"])]) + 1
    torch.manual_seed(seed)
    values = {"vocab_size": rows, **SHAPE, **shape}
    kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    config = kind(**values, bos_token_id=None, eos_token_id=None)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(folder)
    return folder
