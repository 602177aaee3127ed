"""Configurations that llama.cpp would compute wrongly are refused, or said; none breaks the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from arch_headers import YARN, config_for, config_of, every_row, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError
from lorafold.export.arch import ARCHITECTURES, Architecture, caveats, find, map_tensors, metadata


def test_unknown_architecture_lists_the_table() -> None:
    """The error lists every class and says what always works."""
    with pytest.raises(InputError) as caught:
        find({"architectures": ["Rwkv9ForCausalLM"]})
    message = str(caught.value)
    assert "Rwkv9ForCausalLM" in message and "--format folder" in message
    assert all(row.classes[0] in message for row in ARCHITECTURES)


def test_model_type_stands_in_for_architectures() -> None:
    """A config without `architectures` goes by its model_type; with neither it is refused."""
    assert find({"model_type": "qwen2"}).gguf == "qwen2"
    with pytest.raises(InputError, match="model_type None"):
        find({})


ROPE = "rope_scaling"


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
        ("Qwen3_5ForCausalLM", {"linear_value_head_dim": 8}, "linear_value_head_dim"),
        ("Qwen3_5ForCausalLM", {"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ("Qwen3_5ForCausalLM", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ("Qwen3_5ForCausalLM", {"layer_types": ["linear_attention"]}, "layer_types"),
        ("Qwen3_5ForCausalLM", {"attn_output_gate": False}, "attn_output_gate"),
        ("Qwen3NextForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("GptOssForCausalLM", {"swiglu_limit": 5.0}, "swiglu_limit"),
        ("GptOssForCausalLM", {"attention_bias": False}, "attention_bias"),
        ("GptOssForCausalLM", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("GptOssForCausalLM", {"sliding_window": None}, "sliding_window"),
        ("GptOssForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("DeepseekV3ForCausalLM", {"scoring_func": "softmax"}, "scoring_func"),
        ("DeepseekV3ForCausalLM", {"q_lora_rank": None}, "q_lora_rank"),
        ("DeepseekV3ForCausalLM", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("DeepseekV3ForCausalLM", {"rope_interleave": False}, "rope_interleave"),
        ("DeepseekV2ForCausalLM", {"topk_method": "group_limited_greedy", "n_group": 2}, "topk_method"),
        ("Glm4MoeLiteForCausalLM", {"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types"),
        (
            "Gemma4ForConditionalGeneration",
            {"use_bidirectional_attention": "all"},
            "use_bidirectional_attention",
        ),
        ("Gemma4ForConditionalGeneration", {"num_kv_shared_layers": 1}, "num_kv_shared_layers"),
        ("Gemma4ForConditionalGeneration", {"num_experts": 4}, "top_k_experts"),
        ("Gemma4ForConditionalGeneration", {"per_layer_config": {"0": {"head_dim": 32}}}, "per_layer_config"),
        ("Gemma4ForConditionalGeneration", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("Gemma4ForConditionalGeneration", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("GraniteMoeHybridForCausalLM", {"layer_types": ["attention"] * 2}, "layer_types"),
        ("GraniteMoeHybridForCausalLM", {"position_embedding_type": "rope"}, "position_embedding_type"),
        ("GraniteMoeHybridForCausalLM", {"mamba_expand": 3}, "mamba_expand"),
        ("GraniteMoeHybridForCausalLM", {"mamba_n_groups": 3}, "mamba_n_groups"),
        ("GPT2LMHeadModel", {"n_embd": 65}, "n_head"),
        ("GemmaForCausalLM", {"rope_theta": 20000.0}, "rope_theta"),
        ("GemmaForCausalLM", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("GemmaForCausalLM", {"hidden_act": "relu"}, "hidden_act"),
        ("Ministral3ForCausalLM", {"model_type": "mistral4"}, "model_type"),
        ("Ministral3ForCausalLM", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("Ministral3ForCausalLM", {"model_type": "mistral", "rope_scaling": YARN | {"type": "yarn"}}, ROPE),
        ("Olmo3ForCausalLM", {"sliding_window": None}, "sliding_window"),
        (
            "Olmo3ForCausalLM",
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
            "rope_parameters.sliding_attention",
        ),
        ("OlmoeForCausalLM", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("OlmoeForCausalLM", {"clip_qkv": 8.0}, "clip_qkv"),
        ("OlmoeForCausalLM", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("CohereForCausalLM", {"use_qk_norm": True}, "use_qk_norm"),
        ("CohereForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("CohereForCausalLM", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("Cohere2ForCausalLM", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("Cohere2ForCausalLM", {"sliding_window": None}, "sliding_window"),
        ("SeedOssForCausalLM", {"attention_out_bias": True}, "attention_out_bias"),
        ("Exaone4ForCausalLM", {"sliding_window": 4096}, "sliding_window"),
        ("HunYuanDenseV1ForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling"),
        ("Ernie4_5ForCausalLM", {"use_bias": True}, "use_bias"),
        ("Ernie4_5_MoeForCausalLM", {"moe_layer_interval": 2}, "moe_layer_interval"),
        ("Ernie4_5_MoeForCausalLM", {"moe_layer_end_index": 0}, "moe_layer_end_index"),
        ("Dots1ForCausalLM", {"n_group": 2}, "n_group"),
        ("Dots1ForCausalLM", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("Qwen2VLForConditionalGeneration", {"rope_scaling": None}, "rope_scaling.mrope_section"),
        (
            "Qwen2VLForConditionalGeneration",
            {"rope_scaling": {"mrope_section": [1, 2, 3, 4, 5]}},
            "rope_scaling.mrope_section",
        ),
        ("PhiForCausalLM", {"qk_layernorm": True}, "qk_layernorm"),
        ("PhiForCausalLM", {"rope_theta": 20000.0}, "rope_theta"),
        ("Starcoder2ForCausalLM", {"use_bias": False}, "use_bias"),
        ("StableLmForCausalLM", {"rope_theta": 20000.0}, "rope_theta"),
        ("NemotronForCausalLM", {"mlp_bias": True}, "mlp_bias"),
        ("NemotronForCausalLM", {"hidden_act": "silu"}, "hidden_act"),
        ("Lfm2ForCausalLM", {"conv_bias": True}, "conv_bias"),
        ("Lfm2ForCausalLM", {"layer_types": None, "full_attn_idxs": 2}, "full_attn_idxs"),
        ("Lfm2MoeForCausalLM", {"use_expert_bias": False}, "use_expert_bias"),
        ("Lfm2MoeForCausalLM", {"routed_scaling_factor": 2.0}, "routed_scaling_factor"),
        ("ArceeForCausalLM", {"hidden_act": "silu"}, "hidden_act"),
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
    with pytest.raises(InputError, match="layer_types"):
        metadata(config_of("Olmo3ForCausalLM", layer_types=["full_attention"]), [], Path("nowhere"), 0)


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
    *("kv_lora_rank", "first_k_dense_replace", "global_head_dim", "per_layer_config", "num_kv_shared_layers"),
    *("mamba_d_head", "mamba_n_groups", "scoring_func", "mlp_layer_types", "enable_moe_block", "n_group"),
    *("full_attention_interval", "linear_num_key_heads", "linear_value_head_dim", "mtp_num_hidden_layers"),
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
    config = config_for(row)
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
