"""Classes that are another class with something around it, or less a head.

Around it are parts that see or hear.

Their config.json keeps the language model's in `text_config`, their tensors have a prefix, and the row of the
table is that of the class inside. Classes whose GGUF architecture is one of its own have a row of their own,
and take only the prefixes and the parts that are left out from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# (prefix in the file, prefix in the table): as released, as transformers 5 saves them, SmolVLM's.
SPELLINGS = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.text_model.", "model."),
)
TOWERS = (
    (
        r"^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|connector)\.",
        "sees images; the text model does not",
    ),
    (r"^(model\.)?audio_tower\.", "hears; the text model does not"),
    (r"^(model\.)?(aligner|vqmodel|generation_\w+)\.", "sees or draws; the text model does not"),
)

WRAPPERS = frozenset(
    {
        "AudioFlamingo3ForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "JanusForConditionalGeneration",
        "Lfm2VlForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    }
)

# The class without its head, as embedding models are released, and the class that has one.
HEADLESS: Mapping[str, str] = {
    "Lfm2Model": "Lfm2ForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen2VLModel": "Qwen2VLForConditionalGeneration",
    "Qwen3Model": "Qwen3ForCausalLM",
}
# Its tensors lack the prefix of the model inside.
HEADLESS_SPELLINGS = (
    ("language_model.", "model."),
    *((name, f"model.{name}") for name in ("embed_tokens.", "layers.", "norm.", "embedding_norm.")),
)

# transformers' sizes, which a whole model's config.json always gives and a `text_config` may leave out.
TEXT_SIZES: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config of the model inside a wrapper; None if the class is none."""
    classes, text = config.get("architectures"), config.get("text_config")
    if not (isinstance(classes, list) and classes and isinstance(text, Mapping)):
        return None
    return text if classes[0] in WRAPPERS else None
