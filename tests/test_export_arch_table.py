"""The table from headers alone: order, layouts, spellings of config.json, defaults, and every refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError
from lorafold.export.arch import (
    ARCHITECTURES,
    Architecture,
    caveats,
    find,
    map_tensors,
    metadata,
    quantize_order,
    skipped_tensors,
)
from lorafold.export.hyperparameters import Config, dimensions
from lorafold.export.mapped_tensor import MappedTensor
from lorafold.weights import TensorInfo

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
EXPERTS = {"num_experts": 12, "num_local_experts": 12}


def config_of(class_name: str, **changes: Any) -> dict[str, Any]:
    """A small config.json of a class that passes every condition."""
    fixed = {
        "Gemma2ForCausalLM": {"head_dim": 16, "query_pre_attn_scalar": 16},
        "Gemma3ForCausalLM": {"head_dim": 16, "query_pre_attn_scalar": 16},
        "Qwen2MoeForCausalLM": EXPERTS,
        "Qwen3MoeForCausalLM": EXPERTS | {"norm_topk_prob": True},
        "MixtralForCausalLM": EXPERTS,
        "GPT2LMHeadModel": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "vocab_size": 320},
    }
    own: dict[str, Any] = fixed.get(class_name, {})
    sizes = {} if class_name == "GPT2LMHeadModel" else SMALL
    return {"architectures": [class_name], **sizes, **own, **changes}


def tensors_of(config: Mapping[str, Any], variant: int = 0) -> dict[str, TensorInfo]:
    """Headers of every tensor that a config asks for, as one file would hold them."""
    row = find(config)
    view = Config(config, row.defaults, row.aliases)
    sizes = dimensions(view)
    found = {}
    for rule in (*row.tensors, *(row.variants[variant] if row.variants else ())):
        if rule.when and view.flag(rule.when.removeprefix("not ")) == rule.when.startswith("not "):
            continue
        if rule.unless and view.flag(rule.unless):
            continue
        for layer in range(sizes["layers"]):
            for expert in range(sizes.get("experts", 1)):
                name = rule.source.format(layer=layer, expert=expert)
                found[name] = header(name, *(sizes[size] for size in rule.shape))
    return found


def header(name: str, *shape: int, file: str = "model.safetensors") -> TensorInfo:
    """A tensor's header."""
    return TensorInfo(name, "BF16", shape, Path(file), 0, 0)


def every_row() -> list[Any]:
    """Each row of the table by its class."""
    return [pytest.param(row, id=row.classes[0]) for row in ARCHITECTURES]


def named(tensors: list[MappedTensor]) -> dict[str, MappedTensor]:
    """Tensors by name; each name once."""
    found = {tensor.name: tensor for tensor in tensors}
    assert len(found) == len(tensors)
    return found


@pytest.mark.parametrize("row", every_row())
def test_rows_cover_every_source_once(row: Architecture) -> None:
    """Each row of each source goes into the GGUF exactly once, and the totals agree with the shapes."""
    for variant in range(max(len(row.variants), 1)):
        config = config_of(row.classes[0])
        tensors = tensors_of(config, variant)
        taken: dict[str, list[tuple[int, int]]] = {name: [] for name in tensors}
        for tensor in map_tensors(config, tensors):
            for piece in tensor.sources:
                taken[piece.source].append((piece.start, piece.stop))
            if not tensor.transpose:
                assert sum(piece.stop - piece.start for piece in tensor.sources) == tensor.rows, tensor.name
        for name, ranges in taken.items():
            ends = [0, *(stop for _, stop in sorted(ranges))]
            assert [start for start, _ in sorted(ranges)] == ends[:-1], name
            assert ends[-1] == tensors[name].rows, name


@pytest.mark.parametrize("row", every_row())
def test_names_are_those_of_gguf(row: Architecture) -> None:
    """Every GGUF name is one that gguf-py lists for the architecture."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == row.gguf)
    known = {
        gguf.TENSOR_NAMES[tensor].format(bid=layer) + suffix
        for tensor in gguf.MODEL_TENSORS[number]
        for layer in range(2)
        for suffix in (".weight", ".bias")
    }
    for variant in range(max(len(row.variants), 1)):
        config = config_of(row.classes[0])
        assert named(map_tensors(config, tensors_of(config, variant))).keys() <= known


@pytest.mark.parametrize("row", every_row())
def test_every_missing_and_every_foreign_tensor_is_named(row: Architecture) -> None:
    """Leaving any one tensor out names it, and so does adding one."""
    config = config_of(row.classes[0])
    tensors = tensors_of(config)
    for name in tensors:
        rest = {key: info for key, info in tensors.items() if key != name}
        with pytest.raises(InputError, match=re.escape(name)):
            map_tensors(config, rest)
    extra = "model.layers.0.self_attn.rotary.weight"
    with pytest.raises(InputError, match=re.escape(extra)) as caught:
        map_tensors(config, tensors | {extra: header(extra, 4)})
    assert "--format folder" in str(caught.value)


@pytest.mark.parametrize("row", every_row())
def test_every_shape_is_checked(row: Architecture) -> None:
    """A tensor with one row more is refused with its name, its shape and the expected one."""
    config = config_of(row.classes[0])
    tensors = tensors_of(config)
    for name, info in tensors.items():
        grown = (info.shape[0] + 1, *info.shape[1:])
        with pytest.raises(InputError) as caught:
            map_tensors(config, tensors | {name: header(name, *grown)})
        message = str(caught.value)
        assert all(text in message for text in (name, str(grown), str(info.shape)))


@pytest.mark.parametrize("row", every_row())
def test_defaults_are_those_of_transformers(row: Architecture) -> None:
    """A config.json with sizes alone gives the header that transformers' own defaults give."""
    pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING

    model_type = row.model_types[0]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no config class for {model_type}")
    full = CONFIG_MAPPING[model_type]().to_dict() | {"architectures": [row.classes[0]]}
    # What every published config.json holds.
    always = ("architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    routed = {"norm_topk_prob": True} if row.gguf == "qwen3moe" else {}
    short = {name: full[name] for name in (*always, "vocab_size") if name in full}
    folder = Path("nowhere")
    assert metadata(short | routed, [], folder, 1) == metadata(full | routed, [], folder, 1)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32, "attention_factor": 1.1}
LONGROPE = {"long_factor": [1.5] * 8, "short_factor": [1.0] * 8}


@pytest.mark.parametrize(
    ("class_name", "old", "new"),
    [
        (
            "LlamaForCausalLM",
            {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
            {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 500000.0}},
        ),
        (
            "LlamaForCausalLM",
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}},
        ),
        (
            "Qwen2ForCausalLM",
            {"rope_theta": 1e6, "rope_scaling": YARN | {"type": "yarn"}},
            {"rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 1e6}},
        ),
        (
            "Phi3ForCausalLM",
            {
                "rope_theta": 1e4,
                "rope_scaling": LONGROPE | {"type": "su"},
                "original_max_position_embeddings": 4096,
                "max_position_embeddings": 131072,
            },
            {
                "rope_parameters": LONGROPE
                | {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096},
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
            },
        ),
        (
            "Gemma3ForCausalLM",
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"type": "linear", "factor": 8.0},
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
        (
            "Glm4ForCausalLM",
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25, "torch_dtype": "bfloat16"},
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}, "dtype": "bfloat16"},
        ),
    ],
)
def test_both_spellings_of_rope(class_name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """transformers 4's and 5's config.json give the same header and the same factor tensors."""
    results = []
    for changes in (old, new):
        config = config_of(class_name, **changes)
        tensors = map_tensors(config, tensors_of(config))
        results.append((metadata(config, tensors, Path("nowhere"), 0), tensors))
    assert results[0] == results[1]


def test_llama3_factors_by_hand() -> None:
    """Short waves keep their speed, long ones are slowed by the factor, those between blend."""
    rope = LLAMA3 | {"rope_type": "llama3", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    config = config_of("LlamaForCausalLM", rope_parameters=rope)
    factors = named(map_tensors(config, tensors_of(config)))["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert factors.constant is not None and not factors.sources
    # Wavelengths 2 pi 10000^(i/8): 6.28, 19.87, 62.83, 198.7, …; the second and third lie between 64/4 and
    # 64/1: smooth = (64/19.87 - 1) / (4 - 1) = 0.7404, factor 1 / ((1 - 0.7404) / 8 + 0.7404) = 1.2940
    # smooth = (64/62.83 - 1) / (4 - 1) = 0.0062, factor 1 / ((1 - 0.0062) / 8 + 0.0062) = 7.6677
    assert factors.constant == pytest.approx((1.0, 1.2940, 7.6677, *[8.0] * 5), abs=4e-4)


def test_order_follows_files_then_names() -> None:
    """Shards by name, in a shard tensors by name, and a stack of experts where the last of them stands."""
    config = config_of("MixtralForCausalLM", num_hidden_layers=1)
    tensors = tensors_of(config)
    late = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    shards = {
        name: header(name, *info.shape, file="b" if name in (late, "lm_head.weight") else "a")
        for name, info in tensors.items()
    }
    names = [tensor.name for tensor in map_tensors(config, shards)]
    assert names == [
        "token_embd.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.attn_norm.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_output.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_v.weight",
        "output_norm.weight",
        "output.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_down_exps.weight",
        "blk.0.ffn_up_exps.weight",
    ]


def test_experts_stack_in_their_order() -> None:
    """Expert 10 comes after expert 9, not after expert 1."""
    config = config_of("Qwen3MoeForCausalLM")
    stack = named(map_tensors(config, tensors_of(config)))["blk.1.ffn_up_exps.weight"]
    assert stack.shape == (12, 48, 64)
    assert [piece.source for piece in stack.sources] == [
        f"model.layers.1.mlp.experts.{expert}.up_proj.weight" for expert in range(12)
    ]


def test_fused_experts_split_into_gate_and_up() -> None:
    """transformers 5's fused tensor holds, for each expert, the gate's rows above the up projection's."""
    config = config_of("Qwen3MoeForCausalLM")
    tensors = named(map_tensors(config, tensors_of(config, variant=1)))
    gate, up = (tensors[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    assert gate.shape == up.shape == (12, 48, 64)
    assert [(piece.start, piece.stop) for piece in gate.sources[:2]] == [(0, 48), (96, 144)]
    assert [(piece.start, piece.stop) for piece in up.sources[:2]] == [(48, 96), (144, 192)]


def test_internlm2_parts_by_hand() -> None:
    """Two groups of two query heads, a key head and a value head, each of 16 rows."""
    config = config_of("InternLM2ForCausalLM")
    tensors = named(map_tensors(config, tensors_of(config)))
    parts = {
        part: [(piece.start, piece.stop) for piece in tensors[f"blk.0.attn_{part}.weight"].sources]
        for part in ("q", "k", "v")
    }
    assert parts == {"q": [(0, 32), (64, 96)], "k": [(32, 48), (96, 112)], "v": [(48, 64), (112, 128)]}


@pytest.mark.parametrize("tied", [True, False])
def test_head(tied: bool) -> None:
    """A tied model has no output tensor unless the file holds one; an untied one must hold it."""
    config = config_of("LlamaForCausalLM", tie_word_embeddings=tied)
    tensors = tensors_of(config)
    assert ("lm_head.weight" in tensors) is not tied
    assert ("output.weight" in named(map_tensors(config, tensors))) is not tied
    both = tensors | {"lm_head.weight": header("lm_head.weight", 320, 64)}
    assert "output.weight" in named(map_tensors(config, both))


def test_head_of_an_architecture_that_insists_on_one() -> None:
    """llama.cpp's olmo2 has no tied head, so the embedding is written twice."""
    config = config_of("Olmo2ForCausalLM", tie_word_embeddings=True)
    tensors = named(map_tensors(config, tensors_of(config)))
    assert tensors["output.weight"].sources == tensors["token_embd.weight"].sources


def test_gemma2_head_is_the_embedding() -> None:
    """A copy of the tied head is skipped with its reason; a head of its own is refused."""
    config = config_of("Gemma2ForCausalLM")
    tensors = tensors_of(config) | {"lm_head.weight": header("lm_head.weight", 320, 64)}
    assert "output.weight" not in named(map_tensors(config, tensors))
    assert list(skipped_tensors(config, tensors)) == ["lm_head.weight"]
    with pytest.raises(InputError, match="tie_word_embeddings is False"):
        map_tensors(config | {"tie_word_embeddings": False}, tensors)


def test_index_normalises_its_head() -> None:
    """With norm_head the output's rows are normalised, without it they are not."""
    for switch, op in ((1, "l2_normalize"), (0, None)):
        config = config_of("IndexForCausalLM", norm_head=switch)
        tensors = named(map_tensors(config, tensors_of(config)))
        assert tensors["output.weight"].op == op
        assert tensors["token_embd.weight"].op is None


def test_old_buffers_are_skipped() -> None:
    """Masks and frequencies of old checkpoints are no error."""
    config = config_of("GPT2LMHeadModel")
    buffers = {name: header(name, 1) for name in ("h.0.attn.bias", "h.0.attn.masked_bias")}
    tensors = tensors_of(config)
    assert map_tensors(config, tensors | buffers) == map_tensors(config, tensors)
    assert skipped_tensors(config, tensors | buffers).keys() == buffers.keys()
    llama = config_of("LlamaForCausalLM")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert buffer in skipped_tensors(llama, [buffer])


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_multimodal_gemma3(prefix: str) -> None:
    """Both spellings of the text part give the text model's tensors; what sees images is skipped."""
    text = config_of("Gemma3ForCausalLM")
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    plain = map_tensors(text, tensors_of(text))
    tensors = {
        prefix + name.removeprefix("model."): header(prefix + name.removeprefix("model."), *info.shape)
        for name, info in tensors_of(text).items()
    }
    images = ("vision_tower.vision_model.head.weight", "multi_modal_projector.mm_soft_emb_norm.weight")
    mapped = map_tensors(whole, tensors | {name: header(name, 4) for name in images})
    assert [(t.name, t.shape, t.op) for t in mapped] == [(t.name, t.shape, t.op) for t in plain]
    assert skipped_tensors(whole, images).keys() == set(images)
    assert metadata(whole, mapped, Path("nowhere"), 0) == metadata(text, plain, Path("nowhere"), 0)


def test_tie_of_a_multimodal_model_is_the_outer_one() -> None:
    """transformers ties by the whole model's config, whatever the text part says."""
    text = config_of("Gemma3ForCausalLM", tie_word_embeddings=True)
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "tie_word_embeddings": False,
    }
    with pytest.raises(InputError, match=re.escape("lm_head.weight is missing")):
        map_tensors(whole, tensors_of(text))


def test_unknown_architecture_lists_the_table() -> None:
    """The error lists every class and says what always works."""
    with pytest.raises(InputError) as caught:
        find({"architectures": ["MambaForCausalLM"]})
    message = str(caught.value)
    assert "MambaForCausalLM" in message and "--format folder" in message
    assert all(row.classes[0] in message for row in ARCHITECTURES)


def test_model_type_stands_in_for_architectures() -> None:
    """A config without `architectures` goes by its model_type; with neither it is refused."""
    assert find({"model_type": "qwen2"}).gguf == "qwen2"
    with pytest.raises(InputError, match="model_type None"):
        find({})


@pytest.mark.parametrize(
    ("class_name", "changes", "field"),
    [
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "spiral"}}, "rope_scaling"),
        ("LlamaForCausalLM", {"rope_scaling": "linear"}, "rope_scaling"),
        ("LlamaForCausalLM", {"num_attention_heads": 5}, "num_key_value_heads"),
        ("LlamaForCausalLM", {"num_attention_heads": 6}, "num_attention_heads"),
        ("LlamaForCausalLM", {"hidden_size": None}, "hidden_size"),
        ("LlamaForCausalLM", {"num_hidden_layers": 0}, "num_hidden_layers"),
        ("LlamaForCausalLM", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling.factor"),
        ("LlamaForCausalLM", {"rope_theta": float("nan")}, "rope_scaling.rope_theta"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.factor"),
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters"),
        ("LlamaForCausalLM", {"rope_scaling": YARN | {"type": "yarn", "beta_fast": 16}}, "rope_scaling"),
        ("LlamaForCausalLM", {"rope_scaling": YARN | {"type": "yarn", "truncate": False}}, "rope_scaling"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("LlamaForCausalLM", {"head_dim": 15}, "head_dim"),
        ("Gemma3ForCausalLM", {"rope_scaling": YARN | {"type": "yarn"}}, "rope_scaling"),
        ("LlamaForCausalLM", {"quantization_config": "awq"}, "quantization_config"),
        ("LlamaForCausalLM", {"vocab_size": "many"}, "vocab_size"),
        ("MixtralForCausalLM", {"num_local_experts": 10**9}, "num_hidden_layers"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("Qwen2ForCausalLM", {"head_dim": 32}, "head_dim"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("SmolLM3ForCausalLM", {"attention_bias": True}, "attention_bias"),
        ("Qwen2MoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("Qwen3MoeForCausalLM", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar"),
        ("Gemma2ForCausalLM", {"rope_theta": 5000.0}, "rope_theta"),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 4}, "layer_types"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": None}, "final_logit_softcapping"),
        ("Gemma2ForCausalLM", {"sliding_window": None}, "sliding_window"),
        ("Gemma3ForCausalLM", {"hidden_activation": "relu"}, "hidden_activation"),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        (
            "Phi3ForCausalLM",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
            "rope_scaling.long_factor",
        ),
        ("SmolLM3ForCausalLM", {"no_rope_layers": 4}, "no_rope_layers"),
        ("Gemma3ForCausalLM", {"layer_types": 6}, "layer_types"),
        ("IndexForCausalLM", {"rope_ratio": "32"}, "rope_ratio"),
        ("InternLM2ForCausalLM", {"bias": True}, "bias"),
        ("GPT2LMHeadModel", {"activation_function": "relu"}, "activation_function"),
        ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("GPT2LMHeadModel", {"n_embd": 65}, "n_head"),
    ],
)
def test_refused(class_name: str, changes: dict[str, Any], field: str) -> None:
    """What llama.cpp would compute otherwise, or what makes no sense, is refused and the field is named."""
    config = config_of(class_name)
    tensors = tensors_of(config)
    with pytest.raises(InputError) as caught:
        map_tensors(config | changes, tensors)
    assert str(caught.value.at).startswith(f"config.json: {field}")
    assert caught.value.fix


def test_wrong_values_of_the_header_are_refused() -> None:
    """A header entry of the wrong kind names its field."""
    for changes, field in (
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"max_position_embeddings": 1 << 32}, "max_position_embeddings"),
        ({"max_position_embeddings": 4.5}, "max_position_embeddings"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ):
        with pytest.raises(InputError, match=field):
            metadata(config_of("LlamaForCausalLM", **changes), [], Path("nowhere"), 0)


def test_caveats() -> None:
    """What llama.cpp leaves out is said, and only where it matters."""
    assert caveats(config_of("LlamaForCausalLM")) == []
    windowed = config_of("MistralForCausalLM", sliding_window=4096, max_position_embeddings=32768)
    assert len(caveats(windowed)) == 1 and "sliding_window is 4096" in caveats(windowed)[0]
    assert caveats(windowed | {"max_position_embeddings": 4096}) == []
    dynamic = config_of("InternLM2ForCausalLM", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "dynamic" in caveats(dynamic)[0]
    unused = config_of("Qwen2ForCausalLM", sliding_window=4096, max_position_embeddings=32768)
    assert caveats(unused) == []
    assert len(caveats(unused | {"use_sliding_window": True})) == 1


def test_quantize_order_by_hand() -> None:
    """Tensors of no layer come first, layer 10 after layer 9, names byte by byte within."""
    names = ["blk.10.a.weight", "output.weight", "blk.9.b.weight", "blk.9.a.weight", "token_embd.weight"]
    assert quantize_order(names) == [
        "output.weight",
        "token_embd.weight",
        "blk.9.a.weight",
        "blk.9.b.weight",
        "blk.10.a.weight",
    ]


ODD = [None, -1, 0, 7, 1 << 40, 0.5, float("inf"), True, "", "text", [], [1], ["x", None], {}, {"a": 1}]
FIELDS = (
    *("architectures", "model_type", "text_config", "quantization_config", "vocab_size", "hidden_size"),
    *("intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "partial_rotary_factor"),
    *("original_max_position_embeddings", "max_position_embeddings", "rms_norm_eps", "hidden_act"),
    *("sliding_window", "use_sliding_window", "layer_types", "sliding_window_pattern", "no_rope_layers"),
    *("no_rope_layer_interval", "rope_ratio", "norm_head", "num_experts", "num_local_experts", "n_embd"),
    *("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts_per_tok", "norm_topk_prob"),
    *("decoder_sparse_step", "mlp_only_layers", "query_pre_attn_scalar", "attn_logit_softcapping", "n_head"),
    *(
        "final_logit_softcapping",
        "attention_multiplier",
        "logits_scaling",
        "n_layer",
        "n_inner",
        "n_positions",
    ),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "layer_norm_epsilon"),
)
ROPE_FIELDS = (
    *("type", "rope_type", "factor", "rope_theta", "long_factor", "short_factor", "attention_factor"),
    *("full_attention", "sliding_attention", "beta_fast", "mscale", "mscale_all_dim", "truncate"),
)
ROPE_VALUES = [*ODD, "yarn", "linear", "longrope", "llama3", "dynamic", 4.0, [1.0] * 8]
SCALINGS = st.dictionaries(st.sampled_from(ROPE_FIELDS), st.sampled_from(ROPE_VALUES))
ROPES = st.fixed_dictionaries({}, optional={"rope_scaling": SCALINGS, "rope_parameters": SCALINGS})


@pytest.mark.parametrize("row", every_row())
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_config_breaks_it(row: Architecture, data: st.DataObject) -> None:
    """Whatever stands in config.json, there is a result or an InputError that names a place and a fix."""
    config = config_of(row.classes[0])
    tensors = tensors_of(config)
    odd = data.draw(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ODD), max_size=3))
    rope = data.draw(ROPES)
    changed = config | odd | rope
    for call in (
        lambda: map_tensors(changed, tensors),
        lambda: metadata(changed, [], Path("nowhere"), 0),
        lambda: caveats(changed),
    ):
        try:
            call()
        except InputError as error:
            assert error.at and error.fix
