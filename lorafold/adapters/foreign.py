"""Tensors in an adapter's file that no base has a place for, and what wrote them.

A tensor that belongs to nothing is not always of another base: other programs have names of their own, and
whoever saves a whole training saves more than an adapter. Each such kind is a row here. What a model computes
from its config.json anyway is left out and told; everything else is refused by its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorafold.errors import InputError

ADAPTER_ALONE = "save the adapter alone: `model.save_pretrained(DIR)` of the PEFT model"

# Buffers of transformers' modules, which hold no weights: tables of angles, masks, numbers of positions.
BUFFERS = re.compile(
    r"(?:.*\.)?(?:"
    r"(?:rotary(?:_pos)?_emb(?:_local)?|rope|rotary)\.(?:(?:\w+_)?inv_freq|cos_cached|sin_cached|freqs)"
    r"|(?:attn|attention|self_attn)\.(?:masked_bias|bias)"
    r"|position_ids|causal_mask|_extra_state)"
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A kind of tensor that an adapter for llama.cpp or transformers does not have.

    Attributes:
        pattern: found anywhere in its name.
        what: words that complete "KEY is …".
        fix: what helps.
        always: no tensor of a base has such a name, so that the base need not be asked.
    """

    pattern: re.Pattern[str]
    what: str
    fix: str
    always: bool = True


def _row(pattern: str, what: str, fix: str, *, always: bool = True) -> Foreign:
    return Foreign(re.compile(pattern), what, fix, always)


_NO_PLACE = "for which a language model's file has no place"
_LANGUAGE = "export the adapter of a language model, or save this one without it"

# The first row that fits counts.
FOREIGN = (
    _row(
        r"(?:^|\.)lora_[ab]$",
        "an mlx-lm factor, but adapter_config.json is not mlx-lm's",
        "give the folder as mlx-lm wrote it: adapters.safetensors with its own adapter_config.json",
    ),
    _row(
        r"^lora_(?:unet|te\d?|transformer)_|\.lora_(?:down|up)\.|\.lora\.(?:down|up)\.|^(?:unet|text_encoder)\.",
        "of an adapter for image models (kohya, diffusers)",
        "give the adapter of a language model",
    ),
    _row(
        r"(?:^|\.)lora_[ab]\.weight$|(?:^|\.)(?:attn|mlp)\.\w+\.lora\.",
        "a factor under torchtune's own name",
        "give the files in PEFT's format, which torchtune's checkpointer writes for Hugging Face models "
        "(adapter_model.safetensors with adapter_config.json)",
    ),
    _row(
        r"\.adapter\.linear_(?:in|out)\.",
        "of a Megatron or NeMo adapter",
        "convert it to PEFT's format where it was made (Megatron Bridge, NeMo's export to hf-peft)",
    ),
    _row(
        r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB|CB|weight_format)$|\.quant_state(?:\.|$)",
        "part of a base that bitsandbytes packed, so the file is of a whole training and not of an adapter",
        ADAPTER_ALONE,
    ),
    _row(
        r"\.(?:qweight|qzeros|scales|g_idx|weight_packed|weight_scale|weight_zero_point|weight_shape)$",
        "part of a packed base, so the file is of a whole training and not of an adapter",
        ADAPTER_ALONE,
        always=False,
    ),
    _row(
        r"(?:^|\.)(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|state1|state2|optimizer|optim|"
        r"optimizer_state|param_groups|lr_scheduler|scheduler|grad_scaler|rng_state)(?:\.|$)",
        "the state of an optimizer or scheduler, so the file is of a whole training and not of an adapter",
        ADAPTER_ALONE,
    ),
    _row(
        r"(?:^|\.)_?flat_param(?:_\d+)?$",
        "a flat parameter of FSDP, in which the tensors lie one after the other",
        "save it with a full state dict (FSDP's FULL_STATE_DICT, `accelerate merge-weights`), then with PEFT",
    ),
    _row(
        r"\.(?:hada_w[12]|lokr_w[12]|lokr_t2|vera_lambda|oft_R|oft_r|boft_|fourierft_|randlora_|hra_u|bone_|"
        r"shira_|c3a_|road_|delora_|waveft_|miss_|vblora_|adapter_down|adapter_up)",
        "of another method than adapter_config.json names",
        "use the adapter_config.json that was saved with these weights",
    ),
    _row(
        r"^(?:prompt_embeddings|prompt_encoder|prompt_tokens)|\.adaption_",
        "a trained prompt, which is not what adapter_config.json names",
        "use the adapter_config.json that was saved with these weights",
    ),
    _row(r"(?:^|\.)v_head\.", f"the value head of reinforcement learning, {_NO_PLACE}", _LANGUAGE),
    _row(
        r"(?:^|\.)(?:score|classifier|value_head|regression_head|summary)\.",
        f"the head of a classifier or reward model, {_NO_PLACE}",
        _LANGUAGE,
        always=False,
    ),
    _row(
        r"(?:^|\.)qa_outputs\.",
        f"the head of a model that marks answers in a text, {_NO_PLACE}",
        _LANGUAGE,
        always=False,
    ),
    _row(
        r"(?:^|\.)(?:visual|vision_tower|vision_model|vision_embed_tokens|audio_tower|audio_model|embed_vision|"
        r"embed_audio|multi_modal_projector|mm_projector|mlp1)\.",
        "of the part for images or sound, which this base does not have",
        "give the multimodal base that it was trained on (`--base`), or train the language part alone",
        always=False,
    ),
)  # fmt: skip


def foreign(key: str, *, known: bool = False) -> Foreign | None:
    """Which kind of foreign tensor a key names; None if it is none of them.

    Args:
        key: as the file has it.
        known: the base has a tensor of that name.
    """
    return next((kind for kind in FOREIGN if (kind.always or not known) and kind.pattern.search(key)), None)


def refusal(key: str, kind: Foreign, at: object) -> InputError:
    """The error of a foreign tensor in the adapter at this place."""
    return InputError(f"{key!r} is {kind.what}", at=str(at), fix=kind.fix)
