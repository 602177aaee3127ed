"""The table from headers alone: order, layouts, shapes, spellings of config.json, defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from arch_headers import LLAMA3, LONGROPE, YARN, config_for, config_of, every_row, header, named, tensors_of

from lorafold.errors import InputError
from lorafold.export.arch import Architecture, map_tensors, metadata, quantize_order
from lorafold.export.gguf.rows import column_numbers

# Tensors that have rows of zeros beyond their source's, by architecture.
PADDED = (("gemma3n", "per_layer_token_embd.weight"),)


@pytest.mark.parametrize("row", every_row())
def test_rows_cover_every_source_once(row: Architecture) -> None:
    """Each number of each source goes into the GGUF exactly once, and the totals agree with the shapes."""
    for variant in range(max(len(row.variants), 1)):
        config = config_for(row)
        tensors = tensors_of(config, variant)
        taken = {name: np.zeros((info.rows, info.cols), int) for name, info in tensors.items()}
        for tensor in map_tensors(config, tensors):
            numbers = 0
            for piece in tensor.sources:
                counts = taken[piece.source][piece.start : piece.stop]
                columns = column_numbers(tensor.columns or ((0, counts.shape[1], 1),))
                counts[:, columns] += 1
                numbers += len(counts) * len(columns)
            whole = tensor.rows * tensor.cols
            assert numbers == whole or tensor.constant or (row.gguf, tensor.name) in PADDED, tensor.name
        for name, counts in taken.items():
            assert (counts == 1).all(), name


@pytest.mark.parametrize("row", every_row())
def test_names_are_those_of_gguf(row: Architecture) -> None:
    """Every GGUF name is one that gguf-py lists for the architecture."""
    number = next((key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == row.gguf), None)
    if number is None:
        pytest.skip(f"the installed gguf-py does not know {row.gguf}; test_families asks the converter")
    known = {
        gguf.TENSOR_NAMES[tensor].format(bid=layer) + suffix
        for tensor in gguf.MODEL_TENSORS[number]
        for layer in range(3)
        for suffix in (".weight", ".bias", "")
    }
    for variant in range(max(len(row.variants), 1)):
        config = config_for(row)
        assert named(map_tensors(config, tensors_of(config, variant))).keys() <= known


@pytest.mark.parametrize("row", every_row())
def test_every_missing_and_every_foreign_tensor_is_named(row: Architecture) -> None:
    """Leaving any one tensor out names it, and so does adding one."""
    config = config_for(row)
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
    config = config_for(row)
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
    if row.numbers:
        pytest.skip("a part of its header comes from tensors")
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no config class for {model_type}")
    full = CONFIG_MAPPING[model_type]().to_dict() | {"architectures": [row.classes[0]]}
    # What every published config.json holds.
    always = ("architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    routed: dict[str, Any] = {"qwen3moe": {"norm_topk_prob": True}, "glm4moe": {"head_dim": 128}}.get(
        row.gguf, {}
    )
    short = {name: full[name] for name in (*always, "vocab_size") if name in full}
    folder = Path("nowhere")
    assert metadata(short | routed, [], folder, 1) == metadata(full | routed, [], folder, 1)


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
