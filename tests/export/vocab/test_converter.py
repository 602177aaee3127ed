"""The vocabulary's metadata against llama.cpp's own converter, with every departure listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_vocab import convert_vocabularies
from gguf import TokenType
from oracles import shared
from tiny_tokenizers import (
    GEMMA_NORMALIZER,
    LLAMA2_NORMALIZER,
    added,
    in_own_order,
    json_of_sentencepiece,
    sentencepiece_model,
    write_folder,
)

from lorafold.export.vocab.vocab import read_vocab

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}

ADD_BOS, ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
BOS, SPACE, PRE = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.pre"


def _folder(tmp_path: Path, name: str, architecture: str, vocab_size: int, **config: Any) -> Path:
    """A model folder without weights."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    fields = SIZES | {"architectures": [architecture], "vocab_size": vocab_size} | config
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def _shared_folder(tmp_path: Path, name: str, architecture: str, vocab_size: int, **config: Any) -> Path:
    folder = _folder(tmp_path, name, architecture, vocab_size, **config)
    for path in shared(f"tokenizers/{name}").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def _ours(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    entries = read_vocab(folder, config, config["vocab_size"]).metadata()
    return {
        entry.key: entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
        for entry in entries
    }


def _departures(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ: (theirs, ours). Lists that differ are reduced to the items that do."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
            pairs = [(index, a, b) for index, (a, b) in enumerate(zip(other, mine, strict=True)) if a != b]
            if pairs:
                found[key] = ([(index, a) for index, a, _ in pairs], [(index, b) for index, _, b in pairs])
        elif mine != other:
            found[key] = (other, mine)
    return found


def test_real_tokenizers_equal_the_converters_but_for_listed_departures(tmp_path: Path) -> None:
    folders = [
        _shared_folder(
            tmp_path, "qwen2", "Qwen2ForCausalLM", 151_936, bos_token_id=151_643, model_type="qwen2"
        ),
        _shared_folder(tmp_path, "llama3", "LlamaForCausalLM", 128_256, model_type="llama"),
        _shared_folder(tmp_path, "llama2", "LlamaForCausalLM", 32_000, model_type="llama"),
        _shared_folder(tmp_path, "deepseek-llm", "LlamaForCausalLM", 102_400, model_type="llama"),
    ]
    qwen2, llama3, llama2, deepseek = (
        _departures(_ours(folder), theirs)
        for folder, theirs in zip(folders, convert_vocabularies(folders), strict=True)
    )
    # add_eos_token is always written: llama.cpp's default goes by the tokenizer's kind.
    # tokenizer.chat_template is the business of lorafold.export.modelfile.plan.
    assert qwen2.pop("tokenizer.chat_template")
    assert qwen2 == {ADD_EOS: (None, False)}
    # This tokenizer.json adds no BOS. The converter writes nothing then, where llama.cpp's default is to add
    # one for "llama-bpe"; and it knows "llama-bpe" by ids that begin with BOS, so that it takes this one for
    # the same pre-tokenizer without `ignore_merges`, which tokenizer.json sets.
    assert llama3 == {PRE: ("smaug-bpe", "llama-bpe"), ADD_BOS: (None, False), ADD_EOS: (None, False)}
    # No file says whether a space is put before a text but the normalizer of tokenizer.json, which the
    # converter does not look at; llama.cpp's default is the same. add_sep_token is for models like BERT.
    assert llama2 == {"tokenizer.ggml.add_sep_token": (False, None), SPACE: (None, True)}
    # Ten bytes that never occur in UTF-8 are added tokens; the converter decodes them into U+FFFD.
    tokens, types = (
        deepseek.pop("tokenizer.ggml.tokens", ([], [])),
        deepseek.pop("tokenizer.ggml.token_type", None),
    )
    assert {text for _, text in tokens[0]} <= {"\ufffd"}
    assert {text for _, text in tokens[1]} <= set("øöúÿõ÷ûýÀùÁþü")
    assert types is None
    assert deepseek == {}


def _sentencepiece_folder(
    tmp_path: Path,
    name: str,
    architecture: str,
    *,
    normalizer: Any = None,
    further: tuple[str, ...] = (),
    spare: int = 0,
    padding: int = 0,
    dummy_prefix: bool = True,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder with a trained tokenizer.model, `further` special tokens and `padding` rows without a token.

    With `spare` pieces "[UNUSED_TOKEN_0]" and so on in the model, `further` replaces those.
    """
    symbols = tuple(f"[UNUSED_TOKEN_{index}]" for index in range(spare))
    model = sentencepiece_model(dummy_prefix=dummy_prefix, symbols=symbols)
    first = 3 if spare else 1200
    size = 1200 + padding + (0 if spare else len(further))
    folder = _folder(tmp_path, name, architecture, size, **(config or {}))
    (folder / "tokenizer.model").write_bytes(model)
    decoder = {
        str(first + index): added(0, text) | {"__type": "AddedToken"} for index, text in enumerate(further)
    }
    plain = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = None
    if normalizer is not None:
        tokenizer = json_of_sentencepiece(model, normalizer)
        tokenizer["added_tokens"] += [added(first + index, text) for index, text in enumerate(further)]
    return write_folder(folder, tokenizer, **(plain | {"added_tokens_decoder": decoder} | settings))


def test_sentencepiece_families_equal_the_converters_but_for_listed_departures(tmp_path: Path) -> None:
    adds = {"add_bos_token": True, "add_eos_token": False}
    original = {"original_max_position_embeddings": 128, "rope_theta": 10000.0}
    folders = [
        _sentencepiece_folder(tmp_path, "llama", "LlamaForCausalLM", normalizer=LLAMA2_NORMALIZER, **adds),
        _sentencepiece_folder(
            tmp_path,
            "gemma2",
            "Gemma2ForCausalLM",
            normalizer=GEMMA_NORMALIZER,
            dummy_prefix=False,
            config={"head_dim": 16, "sliding_window": 32},
            further=("<start_of_turn>", "<end_of_turn>"),
            padding=5,
            **adds,
        ),
        _sentencepiece_folder(
            tmp_path,
            "internlm2",
            "InternLM2ForCausalLM",
            spare=4,
            further=("<|im_start|>", "<|im_end|>"),
            config={"bos_token_id": 1, "eos_token_id": 2},
            eos_token="<|im_end|>",
            **adds,
        ),
        _sentencepiece_folder(
            tmp_path,
            "phi3",
            "Phi3ForCausalLM",
            normalizer=LLAMA2_NORMALIZER,
            further=("<|endoftext|>", "<|end|>"),
            padding=3,
            config=original,
            eos_token="<|endoftext|>",
            tokenizer_class="LlamaTokenizer",
            **(adds | {"add_bos_token": False}),
        ),
    ]
    theirs = convert_vocabularies(folders)
    llama, gemma2, internlm2, phi3 = (
        _departures(_ours(folder), other) for folder, other in zip(folders, theirs, strict=True)
    )
    control, unknown = int(TokenType.CONTROL), int(TokenType.UNKNOWN)
    assert llama == {SPACE: (None, True)}
    assert gemma2 == {}
    # Without a tokenizer.json the converter finds special tokens in config.json only, which names no <unk>.
    assert internlm2 == {"tokenizer.ggml.unknown_token_id": (None, 0)}
    # tokenizer.json marks <unk> as special, and the converter for Phi-3 then calls it a control token;
    # llama.cpp treats both kinds alike. It also gives new scores to the three, which no merge looks at.
    assert phi3.pop("tokenizer.ggml.token_type") == ([(0, control)], [(0, unknown)])
    assert phi3.pop("tokenizer.ggml.scores") == (
        [(index, -1000.0) for index in range(3)],
        [(index, 0.0) for index in range(3)],
    )
    assert phi3 == {SPACE: (None, True)}


def test_gemma4_equals_the_converters_but_for_listed_departures(tmp_path: Path) -> None:
    spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    model = sentencepiece_model(dummy_prefix=False)
    tokenizer = in_own_order(json_of_sentencepiece(model, GEMMA_NORMALIZER, spaces))
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
    ]
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [*decoders, {"type": "Fuse"}]}
    count = len(tokenizer["model"]["vocab"])
    further = ("<|turn>", "<turn|>", "<|channel>", "<channel|>")
    tokenizer["added_tokens"] += [added(count + index, text) for index, text in enumerate(further)]
    config = {"model_type": "gemma4_text", "layer_types": ["full_attention"], "head_dim": 16}
    folder = _folder(tmp_path, "gemma4", "Gemma4ForCausalLM", count + len(further), **config)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_folder(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", **named)
    (theirs,) = convert_vocabularies([folder])
    found = _departures(_ours(folder), theirs)
    # The converter calls <unk> a control token, which llama.cpp treats alike, and special tokens that no
    # setting names parts of the text; tokenizer.json marks those as special.
    control, unknown, shown = (
        int(getattr(TokenType, name)) for name in ("CONTROL", "UNKNOWN", "USER_DEFINED")
    )
    assert found.pop("tokenizer.ggml.token_type") == (
        [(0, control), (count, shown), (count + 1, shown)],
        [(0, unknown), (count, control), (count + 1, control)],
    )
    assert found == {ADD_EOS: (None, False)}
