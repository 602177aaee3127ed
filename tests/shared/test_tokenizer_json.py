"""vocab.json and merges.txt become the tokenizer.json that transformers makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from oracles import shared
from tiny_tokenizers import BYTE_LEVEL, CHATML, byte_level, sequence, split

from lorafold.errors import InputError
from lorafold.export import ExportConfig, export
from lorafold.export.vocab.pre_tokenizers import QWEN2_WORDS
from lorafold.export.vocab.probe import EDGE_CASES, probe_texts
from lorafold.gguf_file.read import read_gguf_header
from lorafold.tokenizer.folder import with_tokenizer_json

GPT2_WORDS = {**BYTE_LEVEL, "use_regex": True}
NAMED = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}


def two_files(folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any]) -> Path:
    """A folder as it was released before there was a tokenizer.json."""
    folder.mkdir(exist_ok=True)
    model = tokenizer["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def decoder_of(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """`added_tokens_decoder` of a tokenizer_config.json."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer["added_tokens"]
    }


def as_transformers_has_it(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)._tokenizer


def assert_same(folder: Path) -> None:
    """The same structure as transformers', and the same ids."""
    from tokenizers import Tokenizer

    made = with_tokenizer_json(folder)
    assert made != folder and (made / "tokenizer_config.json").is_file()
    ours, theirs = Tokenizer.from_file(str(made / "tokenizer.json")), as_transformers_has_it(folder)
    mine, wanted = json.loads(ours.to_str()), json.loads(theirs.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert mine[part] == wanted[part], part
    for part in ("vocab", "merges"):
        assert mine["model"][part] == wanted["model"][part], part
    for text in [*EDGE_CASES, *probe_texts(300), "a<|im_end|> b<|endoftext|>", "<|im_start|><pad>x"]:
        encoded = (each.encode(text, add_special_tokens=False).ids for each in (ours, theirs))
        assert next(encoded) == next(encoded), text


@pytest.mark.parametrize("class_name", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer"])
def test_it_is_that_of_transformers(class_name: str, tmp_path: Path) -> None:
    words = GPT2_WORDS if class_name.startswith("GPT2") else sequence(split(QWEN2_WORDS), BYTE_LEVEL)
    tokenizer = byte_level(words)
    settings = NAMED | {"tokenizer_class": class_name, "added_tokens_decoder": decoder_of(tokenizer)}
    assert_same(two_files(tmp_path / "model", tokenizer, settings))


def test_flags_and_tokens_that_nobody_lists(tmp_path: Path) -> None:
    """White space beside a token, one that is no special token, one that only the settings name."""
    tokenizer = byte_level(GPT2_WORDS)
    listed = decoder_of(tokenizer)
    last = max(map(int, listed))
    listed[str(last)] |= {"rstrip": True, "lstrip": True}
    listed[str(last + 1)] = {"content": "<pad>", "special": False, "normalized": True}
    settings = NAMED | {"added_tokens_decoder": listed, "additional_special_tokens": ["<|extra|>"]}
    assert_same(two_files(tmp_path / "model", tokenizer, settings | {"tokenizer_class": "GPT2Tokenizer"}))


@pytest.mark.slow
def test_the_real_one_of_qwen2(tmp_path: Path) -> None:
    tokenizer = json.loads((shared("tokenizers/qwen2") / "tokenizer.json").read_text(encoding="utf-8"))
    settings = NAMED | {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder_of(tokenizer)}
    made = with_tokenizer_json(two_files(tmp_path / "model", tokenizer, settings))
    mine = json.loads((made / "tokenizer.json").read_text(encoding="utf-8"))
    for part in ("pre_tokenizer", "added_tokens", "decoder"):
        assert mine[part] == tokenizer[part], part
    assert mine["model"]["vocab"] == tokenizer["model"]["vocab"]


def test_added_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    """As before transformers 4.34: added_tokens.json and special_tokens_map.json."""
    tokenizer = byte_level(GPT2_WORDS)
    folder = two_files(tmp_path / "model", tokenizer, {"tokenizer_class": "GPT2Tokenizer"})
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    named = {"eos_token": {"content": "<|im_end|>", "rstrip": False}, "additional_special_tokens": [*CHATML]}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    mine = json.loads((with_tokenizer_json(folder) / "tokenizer.json").read_text())
    assert mine["added_tokens"] == tokenizer["added_tokens"]


def test_other_folders_are_left_as_they_are(tmp_path: Path) -> None:
    tokenizer = byte_level(GPT2_WORDS)
    folder = two_files(tmp_path / "unknown", tokenizer, {"tokenizer_class": "OwnTokenizer"})
    assert with_tokenizer_json(folder) == folder
    folder = two_files(tmp_path / "complete", tokenizer, {"tokenizer_class": "GPT2Tokenizer"})
    (folder / "tokenizer.json").write_text("{}")
    assert with_tokenizer_json(folder) == folder
    assert with_tokenizer_json(tmp_path) == tmp_path


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    tokenizer = byte_level(GPT2_WORDS)
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    wrong = {"5000": {"content": "<|im_end|>", "special": True}}
    folder = two_files(tmp_path / "ids", tokenizer, settings | {"added_tokens_decoder": wrong})
    with pytest.raises(InputError, match=r"'<\|im_end\|>' would get the id 900, expected 5000"):
        with_tokenizer_json(folder)
    folder = two_files(tmp_path / "merges", tokenizer, settings)
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt make no tokenizer") as caught:
        with_tokenizer_json(folder)
    assert caught.value.fix and "\n" not in str(caught.value)


def test_a_base_with_the_two_files_alone_is_exported_and_proven(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    config = (base / "config.json").read_text()
    (base / "tokenizer.json").unlink()
    settings |= NAMED | {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder_of(tokenizer)}
    two_files(base, tokenizer, settings)
    (base / "config.json").write_text(config)
    result = export(ExportConfig(str(base), out=tmp_path / "slow", quant=("F32",)))
    assert all(check.verdict == "passed" for check in result.proof.checks)
    ours, fast = (read_gguf_header(path) for path in (*tmp_path.glob("slow/*.gguf"), tiny_chat.gguf()))
    for key in {*ours.metadata, *fast.metadata}:
        if key.startswith("tokenizer."):
            assert ours.metadata[key] == fast.metadata[key], key
    merged = ExportConfig(str(base), out=tmp_path / "folder", format="folder")
    assert "tokenizer.json" in export(merged).files
