"""Names of a checkpoint and of the model that transformers makes of it, against transformers and PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import Q, adapter_folder, base_folder, lora
from peft_models import all_rows, draw, load
from tiny_models import SIZES, write_model

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.conversions import RENAMES, SPLITS, is_loaded, renamed, split_names
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

# Of transformers' renamings these are left out, for no adapter has anything for them: parameters that belong
# to no linear layer, embedding or norm, other towers than the text's, and prefixes (`names.PREFIXES`).
LEFT_OUT = re.compile(
    r"bias|A_log|sink_param|softmax_offset|hc_|\\.ape|attn_sink$|vision|vqmodel|multi_modal_projector"
    r"|\^(language_model|text_model|model\\.language_model)|conv|embed_norm|l2_clip|attn_res|w2_weight"
)


def text_models() -> Iterator[tuple[str, str]]:
    """The model types and classes that transformers loads as a language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    for model_type, classes in CLASSES.items():
        yield model_type, classes if isinstance(classes, str) else classes[0]


def conversions_of(*keys: str) -> list[Any]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return [entry for key in keys for entry in get_checkpoint_conversion_mapping(key) or ()]


def example(pattern: str) -> str:
    """A tensor's name that a pattern of transformers' is for."""
    name = re.sub(r"\(\?[!<=][^)]*\)", "", pattern).replace(r"\d+", "3").replace("\\.", ".")
    name = re.sub(r"\(([^|()]*)[^()]*\)", r"\1", name)
    name = name.removeprefix("^") if name.startswith("^") else f"model.layers.1.{name.lstrip('.')}"
    return name if name.endswith("weight") else f"{name.rstrip('.')}.weight"


def test_every_renaming_of_transformers_is_here() -> None:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    seen = set()
    for model_type, name in text_models():
        conversions = conversions_of(model_type, name)
        renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
        for pattern in (pattern for entry in renamings for pattern in entry.source_patterns):
            if not LEFT_OUT.search(pattern):
                tensor = example(pattern)
                wanted = rename_source_key(tensor, renamings, [])[0]
                assert renamed(tensor, (model_type, name)) == wanted, (model_type, pattern)
                seen |= {model_type, name}
        for entry in conversions:
            sources = entry.source_patterns
            one_to_many = isinstance(entry, WeightConverter) and len(entry.target_patterns) > 1
            if one_to_many and not any("experts" in source for source in sources):
                parts = split_names(f"model.layers.1.{sources[0]}", (model_type,))
                assert parts == tuple(f"model.layers.1.{part}" for part in entry.target_patterns), model_type
                seen.add(model_type)
    unknown = (set(RENAMES) | set(SPLITS)) - seen
    assert not {name for name in unknown if not conversions_of(name)}, "no longer in transformers"


def test_a_name_of_the_model_stays_as_it_is() -> None:
    """The rules are also asked about names that are the model's already."""
    for model_type in RENAMES:
        for leaf in (
            "self_attn.q_proj",
            "mlp.gate_proj",
            "mlp.experts.gate_up_proj",
            "mlp.shared_experts.up_proj",
        ):
            name = f"model.layers.1.{leaf}.weight"
            assert renamed(name, (model_type,)) == name


NEVER = {
    "mtp.layers.0.mlp.down_proj.weight": {},
    "model.mtp.layers.0.self_attn.q_proj.weight": {},
    "model.mtp_layers.0.self_attn.q_proj.weight": {},
    "mtp_dspark.fc.weight": {},
    "model.layers.4.self_attn.q_proj.weight": {"num_hidden_layers": 4},
    "model.language_model.layers.5.mlp.up_proj.weight": {"text_config": {"num_hidden_layers": 4}},
    "backbone.layers.4.mixer.q_proj.weight": {"num_hidden_layers": 4},
    "model.layers.3.self_attn.k_proj.weight": {"num_hidden_layers": 4, "num_kv_shared_layers": 2},
}
ALWAYS = {
    "model.layers.3.self_attn.q_proj.weight": {"num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "model.layers.1.self_attn.k_proj.weight": {"num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "model.layers.3.mlp.up_proj.weight": {"num_hidden_layers": 4},
    "vision_tower.vision_model.encoder.layers.9.mlp.fc1.weight": {"num_hidden_layers": 4},
    "model.visual.blocks.9.attn.qkv.weight": {"num_hidden_layers": 4},
    "model.layers.9.self_attn.q_proj.weight": {},
    "lm_head.weight": {"num_hidden_layers": 4},
}


@pytest.mark.parametrize("name", [*NEVER, *ALWAYS])
def test_what_is_never_loaded(name: str) -> None:
    assert is_loaded(name, (NEVER | ALWAYS)[name]) == (name in ALWAYS)


MANY_TOKENS = (
    "mtp.0",
    "model.mtp.layers.0",
    "model.mtp_layers.0",
    "model.language_model.mtp.0",
    "mtp_dspark.0",
)


def test_what_transformers_ignores_of_a_decoder_is_never_loaded() -> None:
    """Its patterns name the first layer too many ("model.layers.61"), or heads for several tokens."""
    models = Path(transformers.__file__).parent / "models"
    text, seen = {model_type for model_type, _ in text_models()}, 0
    for path in models.glob("*/modeling_*.py"):
        found = re.findall(r"_keys_to_ignore_on_load_unexpected = \[(.*?)\]\n", path.read_text(), re.S)
        for pattern in re.findall(r'r?"([^"]+)"', " ".join(found)) if path.parent.name in text else ():
            number = re.search(r"layers\\\.(\d+)", pattern)
            layer = (
                [f"model.layers.{number[1]}", f"model.language_model.layers.{number[1]}"] if number else []
            )
            names = [f"{name}.up_proj.weight" for name in (*MANY_TOKENS, *layer)]
            names = [name for name in names if re.search(pattern, name)]
            assert names or not re.search(r"mtp|layers\\\.\d", pattern), (path.parent.name, pattern)
            for name in names:
                config = {"num_hidden_layers": int(number[1])} if number else {}
                assert not is_loaded(name, config), (path.parent.name, pattern, name)
                seen += 1
    assert seen > 15


def test_layers_that_are_not_loaded_do_not_make_an_adapter_incomplete(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = base_folder(tmp_path / "base").folder
    tensors = load_file(base / "model.safetensors")
    more = ("mtp.layers.0.self_attn.q_proj.weight", f"{Q.format(2)}.weight")
    save_file(tensors | {name: tensors[f"{Q.format(1)}.weight"] for name in more}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "llama", "vocab_size": 10, "num_hidden_layers": 2}')
    adapter = Adapter.open(adapter_folder(tmp_path / "a"))
    folded = Folded(Checkpoint.open(base), [(adapter, 1.0)])
    assert len(folded.touched) == 2 and set(more) <= set(folded.tensors)
    # One that is loaded still does.
    (base / "config.json").write_text('{"model_type": "llama", "vocab_size": 10, "num_hidden_layers": 3}')
    with pytest.raises(InputError, match=r"it holds nothing for model.layers.2.self_attn.q_proj"):
        Folded(Checkpoint.open(base), [(adapter, 1.0)])
    # And what an adapter has for such a layer is folded, if the file holds it.
    (base / "config.json").write_text('{"model_type": "llama", "vocab_size": 10, "num_hidden_layers": 2}')
    tensors = lora(Q.format(0)) | lora(Q.format(1)) | lora(Q.format(2))
    adapter = Adapter.open(adapter_folder(tmp_path / "a", tensors))
    assert f"{Q.format(2)}.weight" in Folded(Checkpoint.open(base), [(adapter, 1.0)]).touched


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_module_that_the_file_holds_as_two(use_dora: bool, tmp_path: Path) -> None:
    """MiniMax M3 joins gate_proj and up_proj when it is loaded: an adapter has one module for both."""
    from safetensors.numpy import load_file, save_file

    base, random = base_folder(tmp_path / "base").folder, np.random.default_rng(0)
    name = "model.layers.0.mlp.{}_proj"
    tensors = load_file(base / "model.safetensors")
    weights = [random.standard_normal((8, 6)).astype(np.float32) for _ in range(2)]
    tensors |= {
        f"{name.format(leaf)}.weight": weight for leaf, weight in zip(("gate", "up"), weights, strict=True)
    }
    save_file(tensors, base / "model.safetensors")
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 6), (16, 2)))
    magnitude = random.uniform(0.5, 2, 16).astype(np.float32)
    made = {f"{name.format('gate_up')}.lora_A.weight": a, f"{name.format('gate_up')}.lora_B.weight": b}
    if use_dora:
        made[f"{name.format('gate_up')}.lora_magnitude_vector"] = magnitude
    folder = adapter_folder(tmp_path / "a", made, target_modules=["gate_up_proj"], use_dora=use_dora)
    folded = Folded(Checkpoint.open(base), [(Adapter.open(folder), 1.0)])
    wanted = np.concatenate(weights) + 2 * b @ a
    if use_dora:
        wanted *= (magnitude / np.linalg.norm(wanted, axis=1))[:, None]
    for leaf, rows in (("gate", wanted[:8]), ("up", wanted[8:])):
        assert np.allclose(folded.rows(f"{name.format(leaf)}.weight", 0, 8), rows, atol=1e-5)
        assert np.allclose(folded.exact_rows(f"{name.format(leaf)}.weight", [5]), rows[[5]], atol=1e-5)


MOE = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
LOCAL, EXPERTS = MOE | {"num_local_experts": 4}, MOE | {"num_experts": 4, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
STATE = {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1}
ALL = ["gate_up_proj", "down_proj"]

# Configuration class, what departs from SIZES, parameters of experts.
CLASSES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "granitemoe": ("GraniteMoeConfig", LOCAL, ALL),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        LOCAL | MAMBA | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
        ALL,
    ),
    "nemotron_h": (
        "NemotronHConfig",
        STATE
        | {"layers_block_type": ["linear_attention", "moe"], "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "head_dim": 16},
        ["up_proj", "down_proj"],
    ),
    "laguna": ("LagunaConfig", EXPERTS | {"shared_expert_intermediate_size": 32, "head_dim": 16}, ALL),
    "hy_v3": ("HYV3Config", EXPERTS | {"head_dim": 16}, ALL),
    "phimoe": ("PhimoeConfig", LOCAL, ALL),
    "hrm_text": ("HrmTextConfig", {"num_key_value_heads": 4}, []),
    "kimi_linear": ("KimiLinearConfig", {"num_hidden_layers": 2}, []),
    "gpt_neox": ("GPTNeoXConfig", {}, []),
}
WAYS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "experts": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "way"),
    [(family, way) for family in CLASSES for way in WAYS if way != "experts" or CLASSES[family][2]],
)
def test_a_fold_equals_peft_s_merge_where_names_differ(family: str, way: str, tmp_path: Path) -> None:
    name, departs, experts = CLASSES[family]
    torch.set_num_threads(1)
    departs = departs if family != "gpt_neox" else {"num_key_value_heads": None}
    config = getattr(transformers, name)(**(SIZES | {"pad_token_id": 0} | departs))
    base = write_model(config, tmp_path / "base", "float32", 0)
    targets: Any = "all-linear"
    if family == "nemotron_h":  # PEFT refuses its out_proj
        targets = ["in_proj", "up_proj", "down_proj"]
    if family == "gpt_neox":
        targets = ["query_key_value", "dense", "embed_out", "lm_head"]
    more: dict[str, Any] = (
        {"target_parameters": [f"experts.{leaf}" for leaf in experts]} if way == "experts" else {}
    )
    settings = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, **WAYS[way], **more)
    # Merged as it was made: loading Laguna's adapter again, PEFT 0.21 loses its shared experts to a renaming.
    model = draw(peft.get_peft_model(load(base, "float32"), settings))
    model.save_pretrained(tmp_path / "a")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    folded = Folded(Checkpoint.open(base), [(Adapter.open(tmp_path / "a"), 1.0)])
    assert set(folded.tensors) == set(merged.tensors) and len(folded.touched) > 2
    for tensor in merged.tensors:
        wanted = all_rows(merged, tensor)
        assert np.abs(all_rows(folded, tensor) - wanted).max() <= 1e-6, tensor
        if tensor in folded.touched:
            rows = np.arange(0, len(wanted), 5)
            assert np.abs(folded.exact_rows(tensor, rows) - wanted[rows]).max() <= 1e-6, tensor
