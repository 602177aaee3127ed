"""What the methods, options and fields of adapter_config.json mean, in PEFT 0.21 and in other programs.

A test holds them against PEFT's own configurations: every field of a method that is folded is used, known to
change nothing, or refused by its name.
"""

from __future__ import annotations

MERGE_FIRST = (
    "merge it with PEFT (`PeftModel.from_pretrained(base, adapter).merge_and_unload()"
    ".save_pretrained(DIR)`), then export DIR"
)
MLX_AGAIN = "copy the adapter_config.json that mlx-lm saved with the adapter"
NOT_WEIGHTS = "serve it with PEFT, or train LoRA on the same data: `lorafold train`"

FOLDABLE = ("LORA", "ADALORA", "IA3", "TRAINABLE_TOKENS", "LN_TUNING")
"""PEFT methods that are folded here."""

# Methods that add something to the input or to the computation, which no weight of the base can hold.
NOT_IN_WEIGHTS = {
    "PROMPT_TUNING": "prompt tuning puts trained vectors before the input",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning puts trained vectors before the input",
    "P_TUNING": "P-tuning puts trained vectors before the input",
    "PREFIX_TUNING": "prefix tuning puts trained keys and values before the input",
    "CPT": "context-aware prompt tuning puts trained vectors before the input",
    "CARTRIDGE": "a cartridge is a trained key-value cache",
    "ADAPTION_PROMPT": "LLaMA-Adapter adds gated attention to trained vectors",
    "XLORA": "X-LoRA mixes its adapters again for every token",
    "POLY": "Poly routes between its adapters by task",
}

# Options of LoRA under which PEFT cannot merge either, or whose base is not the one that the adapter names.
NOT_FOLDABLE_OPTIONS = {
    "alora_invocation_tokens": (
        "aLoRA (`alora_invocation_tokens`) is active only after its invocation tokens",
        NOT_WEIGHTS,
    ),
    "arrow_config": ("Arrow (`arrow_config`) routes between adapters for every token", NOT_WEIGHTS),
    "use_qalora": ("QA-LoRA (`use_qalora`) pools the inputs of a GPTQ base", NOT_WEIGHTS),
    "layer_replication": (
        "`layer_replication` repeats layers of the base",
        "save the base with its layers repeated, then set `layer_replication` to null in adapter_config.json",
    ),
}

# Options of other programs, and of PEFT before 0.3, under which tensors mean something else.
OPTIONS_OF_OTHERS = {
    "use_merged_linear": "ms-swift's merged linear layer (`use_merged_linear`) adapts parts of a weight",
    "enable_lora": "loralib's merged linear layer (`enable_lora`) adapts parts of a weight",
    "use_qa_lora": "ms-swift's QA-LoRA (`use_qa_lora`) pools the inputs of a packed base",
}

MERGER = {
    "use_merged_linear": "ms-swift (`swift export --merge_lora true`), then export the result",
    "enable_lora": "the program that trained it, then export the result",
    "use_qa_lora": "ms-swift (`swift export --merge_lora true`), then export the result",
}

# Values of init_lora_weights that leave the base as it was, or take out a part that can be computed again.
# PEFT compares some without regard to case, and raises at any other value.
KNOWN_INITS = ("eva", "orthogonal", "pissa")
KNOWN_INITS_OF_ANY_CASE = ("gaussian", "olora", "mica")

# Fields that are read below, or by whoever looks for the base.
USED = frozenset(
    (
        "peft_type",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "r",
        "init_r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "lora_bias",
        "bias",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "target_modules",
        "exclude_modules",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "token_indices",
        "ensure_weight_tying",
        "use_bdlora",
        "kasa_config",
        "feedforward_modules",
    )
)

PEFT_DEFAULTS = {"r": 8, "init_r": 12, "lora_alpha": 8}
"""What PEFT takes for a number that adapter_config.json does not say."""

# Fields of LoraConfig that came with PEFT 0.14; PEFT writes every field, whatever its value.
SINCE_0_14 = frozenset(("exclude_modules", "lora_bias", "eva_config", "corda_config"))

# Fields that say how an adapter was trained or how PEFT runs it, and nothing about what its numbers mean.
HARMLESS = frozenset(
    (
        "task_type",
        "auto_mapping",
        "inference_mode",
        "lora_dropout",
        "init_ia3_weights",
        "init_weights",
        "runtime_config",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "monteclora_config",
        "qalora_group_size",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
    )
)

# The same of other programs: Unsloth, ms-swift, LLaMA-Factory, PEFT before 0.3.
HARMLESS_OF_OTHERS = frozenset(
    (
        "unsloth_fixed",
        "unsloth_version",
        "swift_type",
        "model_key_mapping",
        "lora_dtype",
        "lorap_lr_ratio",
        "lorap_emb_lr",
        "loraplus_lr_ratio",
        "loraplus_lr_embedding",
        "merge_weights",
    )
)

RESIDUAL_BASE = (
    "save it converted (`save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL)`), or "
    "give the base that was changed with it (`--base`) and set `init_lora_weights` to true in "
    "adapter_config.json"
)

# Initialisations that changed the base in a way that cannot be computed again from base and adapter alone.
LOST_BASE = {
    "corda": "CorDA took part of the base away, chosen by data that the adapter does not hold",
    "lora_ga": "LoRA-GA took part of the base away, chosen by gradients that the adapter does not hold",
    "loftq": "LoftQ adapters belong to a base quantized in their own way",
}
