"""Write a tiny random model of a family of `configs`, as transformers writes it.

The two families that transformers does not hold get the layout of their own repositories. The tokenizer.json
has as many tokens as the embedding has rows, which Gemma 3's conversion counts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_models import SIZES, VOCABULARY, write_model

from tiny_families.configs import DEEP, FAMILIES, FURTHER, HEADLESS, RESAVED, TWINS
from tiny_families.newer import NEWER, RELEASED, TRANSPOSED

__all__ = [
    "DEEP",
    "FAMILIES",
    "FURTHER",
    "HEADLESS",
    "NEWER",
    "RESAVED",
    "TWINS",
    "normalized",
    "tiny_family",
    "write_tokenizer",
]

MODEL_CARD = """---
license: apache-2.0
language: [en, "no"]
tags: [chat, tiny]
base_model: https://huggingface.co/Some-Org/Tiny-1.5B-Instruct-v2
datasets:
- some-org/talk
pipeline_tag: text-generation
---
# A model
"""
GENERATION = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}


def tiny_family(family: str, folder: Path, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random model.

    Args:
        family: key of `FAMILIES`, `NEWER`, `RESAVED`, `HEADLESS` or `FURTHER`, or one of `TWINS`.
        folder: where it goes; its name becomes general.name.
        dtype: of the weights.
        seed: of the weights.
        changes: config fields beyond the family's own.

    Returns:
        `folder`.
    """
    if family in TWINS:
        return _with_twin(family, folder, dtype, seed)
    if family in HEADLESS:
        return _without_head(family, folder, dtype, seed)
    if family in FURTHER:
        return _with_further_layer(tiny_family(FURTHER[family], folder, dtype, seed))
    if family in RESAVED:
        return _saved_again(family, folder, dtype, seed)
    import transformers

    name, fields = (FAMILIES | NEWER)[family]
    sizes = {} if "text_config" in fields else SIZES
    config = getattr(transformers, name)(**(sizes | fields | changes))
    # Gemma stores its norms less one. llama.cpp's GELU goes through a table in float16, so Gemma's logits
    # differ by some thousandths of what its layers add; norms around a half keep that below the test's bound.
    write_model(config, folder, dtype, seed, norm_centre=_norm_centre(family))
    if "mtp_num_hidden_layers" in (fields | fields.get("text_config", {})):
        _add_prediction(folder, "full_attention", seed)
    if family.startswith("granite-hybrid"):
        _spell_layers_as_released(folder)
    if family in RELEASED:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | RELEASED[family]))
    if family in TRANSPOSED:
        _transpose_experts(folder)
    write_tokenizer(folder, config.get_text_config().vocab_size)
    if family == "llama-tied":
        (folder / "README.md").write_text(MODEL_CARD)
        (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def _with_further_layer(folder: Path) -> Path:
    """Add a layer behind the last one to a GLM 4.5."""
    import torch
    from safetensors.torch import load_file, save_file

    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    weights = load_file(path)
    last, further = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    added = {
        name.replace(last, further): value * 1.5 for name, value in weights.items() if name.startswith(last)
    }
    generator = torch.Generator().manual_seed(5)
    rows = {"eh_proj": (width, 2 * width), "enorm": (width,), "hnorm": (width,)}
    rows |= {"shared_head.norm": (width,), "shared_head.head": (config["vocab_size"], width)}
    for name, shape in rows.items():
        drawn = torch.randn(shape, generator=generator)
        added[f"{further}{name}.weight"] = drawn.to(weights["lm_head.weight"].dtype)
    save_file(weights | added, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return folder


def _norm_centre(family: str) -> float:
    """Around what the norms are drawn; Gemma 3n and 4 scale attention by their norms alone."""
    if family.startswith(("gemma4", "gemma3n")):
        return 0.3
    return -0.5 if family.startswith(("gemma", "nemotron")) else 1.0


def _spell_layers_as_released(folder: Path) -> None:
    """Call the layers mamba and attention, as Granite's makers do; transformers 5 writes other words."""
    config = json.loads((folder / "config.json").read_text())
    words = {"linear_attention": "mamba", "full_attention": "attention"}
    config["layer_types"] = [words[kind] for kind in config["layer_types"]]
    (folder / "config.json").write_text(json.dumps(config))


def _transpose_experts(folder: Path) -> None:
    """Store stacks of experts as (experts, in, out)."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    turned = {
        name: weight.transpose(1, 2).contiguous() if ".experts." in name else weight
        for name, weight in weights.items()
    }
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})


def _add_prediction(folder: Path, kind: str, seed: int) -> None:
    """Add what predicts the token after next, as Qwen releases it; transformers does not load it.

    Args:
        folder: the model.
        kind: of the layer that it resembles.
        seed: of the weights.
    """
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text["mtp_num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    width, like = text["hidden_size"], text["layer_types"].index(kind)
    generator = torch.Generator().manual_seed(seed + 1)

    def drawn(weight: Any) -> Any:
        return (0.08 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)

    added = {
        f"mtp.layers.0.{name.partition(f'layers.{like}.')[2]}": drawn(weight)
        for name, weight in weights.items()
        if f"layers.{like}." in name and "visual" not in name
    }
    some = next(iter(weights.values()))
    added["mtp.fc.weight"] = drawn(some.new_zeros(width, 2 * width))
    for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        added[f"mtp.{norm}.weight"] = drawn(some.new_zeros(width))
    save_file(weights | added, folder / "model.safetensors", metadata={"format": "pt"})


def _saved_again(family: str, folder: Path, dtype: str, seed: int) -> Path:
    """Write a model as transformers saves it on request: experts fused, or in many shards."""
    from transformers import AutoModelForCausalLM

    original, options = RESAVED[family]
    first = tiny_family(original, folder / "first", dtype, seed)
    AutoModelForCausalLM.from_pretrained(first, dtype="auto").save_pretrained(folder, **options)
    shutil.copyfile(first / "tokenizer.json", folder / "tokenizer.json")
    return folder


def _without_head(family: str, folder: Path, dtype: str, seed: int) -> Path:
    """Write a model as sentence-transformers does: the inner model, and how its vectors are pooled."""
    from transformers import AutoModel

    first = tiny_family(HEADLESS[family], folder / "first", dtype, seed, tie_word_embeddings=True)
    AutoModel.from_pretrained(first, dtype="auto").save_pretrained(folder)
    shutil.copyfile(first / "tokenizer.json", folder / "tokenizer.json")
    if family.startswith("qwen"):
        steps = [{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}]
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "1_Pooling").mkdir()
        way = {"pooling_mode_lasttoken": True} if family == "qwen3-headless" else {"pooling_mode": "mean"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(way))
    return folder


def _with_twin(family: str, folder: Path, dtype: str, seed: int) -> Path:
    """Write a Llama below `folder/twin` and the same model in the family's own layout."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    twin = tiny_family("llama", folder / "twin", dtype, seed)
    weights = load_file(twin / "model.safetensors")
    config = json.loads((twin / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    if family == "index":
        head = weights["lm_head.weight"]
        own = weights | {"lm_head.weight": head * _uneven(head.shape[0]).to(head.dtype)}
        weights["lm_head.weight"] = normalized(own["lm_head.weight"])
        save_file(weights, twin / "model.safetensors", metadata={"format": "pt"})
        config |= {"architectures": ["IndexForCausalLM"], "model_type": "index", "norm_head": 1}
    else:
        own = _internlm2_layout(weights)
        config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
        del config["head_dim"]
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    return folder


def normalized(head: Any) -> Any:
    """An output head as Index uses it: each row divided by its norm."""
    import torch

    return torch.nn.functional.normalize(head.float()).to(head.dtype)


def _uneven(rows: int) -> Any:
    """A factor for each row, (rows, 1), so that normalising them matters."""
    import torch

    return torch.linspace(0.5, 2.0, rows)[:, None]


def _internlm2_layout(weights: dict[str, Any]) -> dict[str, Any]:
    """A Llama's tensors under InternLM 2's names, q, k and v interleaved by key-value head."""
    import torch

    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }
    own: dict[str, Any] = {}
    for name, weight in weights.items():
        if "q_proj" in name:
            groups, width = SIZES["num_key_value_heads"], SIZES["hidden_size"]
            parts = [weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            # (groups, heads of the part, width) each, then stacked within the group
            stacked = torch.cat([part.reshape(groups, -1, width) for part in parts], dim=1)
            own[name.replace("self_attn.q_proj", "attention.wqkv")] = stacked.reshape(-1, width).contiguous()
        elif "k_proj" not in name and "v_proj" not in name:
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            own[name] = weight
    return own


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    """Write a tokenizer.json that holds `size` tokens and nothing else of use."""
    vocabulary = {chr(0x100 + number): number for number in range(size)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
