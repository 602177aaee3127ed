"""Tiny models that chat gibberish, for the serving stage: a folder, an adapter, and both as GGUF."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tiny_base import SHAPE, tiny_tokenizer


@cache
def home() -> Path:
    """A folder for the models of this test run."""
    return Path(mkdtemp(prefix="lorafold-tiny-chat-"))


@cache
def folder(seed: int = 0) -> Path:
    """A Llama of 2 layers with a byte-level tokenizer and ChatML, made without torch: its import is slow."""
    import numpy as np
    from safetensors.numpy import save_file

    out = home() / f"base{seed}"
    vocabulary = tiny_tokenizer(out)
    wide, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = wide // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        **SHAPE,
    }
    (out / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, wide),
        "lm_head.weight": (vocabulary, wide),
        "model.norm.weight": (wide,),
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (wide, wide),
                "self_attn.k_proj": (kv, wide),
                "self_attn.v_proj": (kv, wide),
                "self_attn.o_proj": (wide, wide),
                "mlp.gate_proj": (inner, wide),
                "mlp.up_proj": (inner, wide),
                "mlp.down_proj": (wide, inner),
                "input_layernorm": (wide,),
                "post_attention_layernorm": (wide,),
            }.items()
        }
    dice = np.random.default_rng(seed)
    weights = {
        name: (dice.standard_normal(shape) * 0.15 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


@cache
def gguf(seed: int = 0, quant: str = "F32") -> Path:
    """The same as GGUF, by our own export."""
    return exported(str(folder(seed)), home() / f"gguf{seed}-{quant}", quant=(quant,))


@cache
def adapter(method: str = "lora", seed: int = 1) -> Path:
    """A random PEFT adapter for `folder()`: lora, ia3, prefix, prompt or p_tuning."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    task: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    config = {
        "lora": lambda: peft.LoraConfig(
            r=4,
            lora_alpha=32,
            target_modules=["q_proj", "v_proj", "down_proj"],
            init_lora_weights=False,
            **task,
        ),
        "ia3": lambda: peft.IA3Config(
            target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False, **task
        ),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **task),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **task),
        "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **task),
    }[method]()
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder()), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                scale = 1.0 if method in ("prefix", "prompt", "p_tuning") else 0.2
                weight.copy_(scale * torch.randn(weight.shape) + (1.0 if method == "ia3" else 0.0))
            assert "adapter" not in name or weight.isfinite().all()
    out = home() / f"adapter-{method}{seed}"
    model.save_pretrained(out)
    return out


@cache
def adapter_gguf() -> Path:
    """The LoRA adapter as GGUF, by our own export."""
    return exported(
        str(adapter()), home() / "adapter-gguf", base=str(folder()), format="adapter", dtype="f32"
    )


def exported(source: str, out: Path, **options: Any) -> Path:
    """What our own export makes of a folder, into `out`; made once, whatever the defaults of the caller."""
    from lorafold.export import ExportConfig, export

    if not out.exists():
        export(ExportConfig(source=source, out=out, verify=False, pre_tokenizer="gpt-2", **options))
    (found,) = out.glob("*.gguf")
    return found


def lamp_keeper(out: Path) -> Path:
    """The folder of an export of base and adapter as Q8_0, with a Modelfile and a system text."""
    options = {"base": str(folder()), "quant": ("Q8_0",), "system": "You keep the lamp."}
    return exported(str(adapter()), out, **options).parent
