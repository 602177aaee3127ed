"""What becomes of single parts: heads, tied or not, buffers of old files, parts that see images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from arch_headers import config_of, header, named, tensors_of

from lorafold.errors import InputError
from lorafold.export.arch import map_tensors, metadata, skipped_tensors
from lorafold.export.arch.wrappers import TEXT_SIZES


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


@pytest.mark.parametrize(
    ("outer", "inner", "prefix", "tower"),
    [
        ("LlavaForConditionalGeneration", "LlamaForCausalLM", "language_model.model.", "vision_tower.x"),
        ("SmolVLMForConditionalGeneration", "LlamaForCausalLM", "model.text_model.", "model.connector.x"),
        ("InternVLForConditionalGeneration", "Qwen2ForCausalLM", "language_model.model.", "vision_tower.x"),
    ],
)
def test_text_part_of_a_wrapper(outer: str, inner: str, prefix: str, tower: str) -> None:
    """A class that wraps a language model gives the tensors and the header of the model inside."""
    text = config_of(inner)
    whole = {"architectures": [outer], "text_config": text, "vision_config": {}}
    plain = map_tensors(text, tensors_of(text))
    tensors = {
        name: header(name, *info.shape)
        for name, info in (
            (original.replace("model.", prefix, 1), info) for original, info in tensors_of(text).items()
        )
    }
    mapped = map_tensors(whole, tensors | {tower: header(tower, 4)})
    assert {(t.name, t.shape, t.op) for t in mapped} == {(t.name, t.shape, t.op) for t in plain}
    assert metadata(whole, mapped, Path("nowhere"), 0) == metadata(text, plain, Path("nowhere"), 0)
    assert list(skipped_tensors(whole, [tower, *tensors])) == [tower]


def test_wrapped_sizes_are_those_of_transformers() -> None:
    """A text_config may leave out what is as in the class inside: LLaVA 1.5 gives no width at all."""
    transformers = pytest.importorskip("transformers")
    for model_type, sizes in TEXT_SIZES.items():
        full = transformers.CONFIG_MAPPING[model_type]().to_dict()
        assert sizes == {name: full[name] for name in sizes}
    whole = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    }
    entries = {entry.key: entry.value for entry in metadata(whole, [], Path("nowhere"), 0)}
    assert entries["llama.embedding_length"] == 4096 and entries["llama.block_count"] == 32


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


def test_prediction_of_further_tokens_is_kept() -> None:
    """Qwen's mtp becomes a block of its own, counted in the header; without it there is none."""
    config = config_of("Qwen3_5ForCausalLM")
    tensors = tensors_of(config)
    plain = {
        entry.key: entry.value for entry in metadata(config, map_tensors(config, tensors), Path("no"), 0)
    }
    assert plain["qwen35.block_count"] == 2 and "qwen35.nextn_predict_layers" not in plain
    added = {
        name.replace("model.layers.1.", "mtp.layers.0."): info.shape
        for name, info in tensors.items()
        if name.startswith("model.layers.1.")
    } | {"mtp.fc.weight": (64, 128)}
    added |= {f"mtp.{norm}.weight": (64,) for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    both = tensors | {name: header(name, *shape) for name, shape in added.items()}
    mapped = named(map_tensors(config, both))
    assert mapped["blk.2.nextn.eh_proj.weight"].sources[0].source == "mtp.fc.weight"
    assert mapped["blk.2.attn_q.weight"].sources[0].source == "mtp.layers.0.self_attn.q_proj.weight"
    assert mapped["blk.2.nextn.shared_head_norm.weight"].op == "add_one"
    entries = metadata(config, list(mapped.values()), Path("no"), 0)
    counts = {entry.key: entry.value for entry in entries}
    assert counts["qwen35.block_count"] == 3 and counts["qwen35.nextn_predict_layers"] == 1
    both.pop("mtp.fc.weight")
    with pytest.raises(InputError, match=re.escape("model.layers.2.eh_proj.weight is missing")):
        map_tensors(config, both)


def test_value_heads_are_repeated_in_llama_cpps_order() -> None:
    """Heads 0 1 | 2 3 of two key heads become 0 2 | 1 3: rows, columns of the output, numbers of vectors."""
    config = config_of("Qwen3_5ForCausalLM")
    tensors = named(map_tensors(config, tensors_of(config)))

    def rows(name: str) -> list[int]:
        return [piece.start for piece in tensors[f"blk.0.{name}"].sources]

    assert rows("attn_qkv.weight") == [0, 64, 96, 80, 112]
    assert rows("attn_gate.weight") == [0, 32, 16, 48]
    assert rows("ssm_alpha.weight") == rows("ssm_beta.weight") == [0, 2, 1, 3]
    assert [start for start, _, _ in tensors["blk.0.ssm_out.weight"].columns] == [0, 32, 16, 48]
    assert [start for start, _, _ in tensors["blk.0.ssm_a"].columns] == [0, 2, 1, 3]
    assert [start for start, _, _ in tensors["blk.0.ssm_dt.bias"].columns] == [0, 2, 1, 3]


def test_prediction_of_glm_flash_is_kept_and_of_deepseek_left_out() -> None:
    """GLM's layer behind the last becomes a block, its own embedding and head only if they are there."""
    for class_name, kept in (("Glm4MoeLiteForCausalLM", True), ("DeepseekV3ForCausalLM", False)):
        config = config_of(class_name)
        further = tensors_of(config | {"num_hidden_layers": 3})
        shapes = {"eh_proj": (64, 128), "enorm": (64,), "hnorm": (64,), "shared_head.norm": (64,)}
        for name, shape in shapes.items():
            full = f"model.layers.2.{name}.weight"
            further[full] = header(full, *shape)
        mapped = map_tensors(config, further)
        blocks = {tensor.name.split(".")[1] for tensor in mapped if tensor.name.startswith("blk.")}
        assert blocks == ({"0", "1", "2"} if kept else {"0", "1"})
        assert ("blk.2.nextn.eh_proj.weight" in named(mapped)) is kept
        assert "blk.2.nextn.embed_tokens.weight" not in named(mapped)
        left_out = [name for name in further if name.startswith("model.layers.2.")]
        assert set(skipped_tensors(config, further)) == (set() if kept else set(left_out))
        head = "model.layers.2.shared_head.head.weight"
        with_head = further | {head: header(head, 320, 64)}
        assert ("blk.2.nextn.shared_head_head.weight" in named(map_tensors(config, with_head))) is kept


def test_keys_and_values_of_latent_attention_by_hand() -> None:
    """Each of four heads has 24 rows of keys, which are transposed, then 16 of values."""
    config = config_of("DeepseekV3ForCausalLM")
    tensors = named(map_tensors(config, tensors_of(config)))
    keys, values = tensors["blk.0.attn_k_b.weight"], tensors["blk.0.attn_v_b.weight"]
    assert (keys.shape, keys.transpose) == ((4, 32, 24), True)
    assert (values.shape, values.transpose) == ((4, 16, 32), False)
    assert [(piece.start, piece.stop) for piece in keys.sources] == [(0, 24), (40, 64), (80, 104), (120, 144)]
    assert [(p.start, p.stop) for p in values.sources] == [(24, 40), (64, 80), (104, 120), (144, 160)]


def test_experts_of_gpt_oss_by_hand() -> None:
    """Even columns of each expert are the gate, odd ones the up projection; both are transposed."""
    config = config_of("GptOssForCausalLM", num_local_experts=2)
    tensors = named(map_tensors(config, tensors_of(config)))
    gate, up = (tensors[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    assert gate.shape == up.shape == (2, 160, 64) and gate.transpose and up.transpose
    assert (gate.columns, up.columns) == (((0, 320, 2),), ((1, 320, 2),))
    assert [(piece.start, piece.stop) for piece in gate.sources] == [(0, 64), (64, 128)]
