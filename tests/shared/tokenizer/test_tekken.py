"""Mistral's tekken.json: ids of tiktoken (recorded), of the tokenizer.json made of it, and of llama.cpp."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from llama_vocab import Job, tokenize, write_header
from tiny_base import tiny_base

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export import ExportConfig, export
from lorafold.export.vocab.vocab import read_vocab
from lorafold.tokenizer.folder import with_tokenizer_json

RECORDED = json.loads(
    (Path(__file__).parents[2] / "support" / "material" / "tekken_vectors.json").read_text(encoding="utf-8")
)
ROWS, SPECIAL = 710, 30


def tekken(**changes: Any) -> dict[str, Any]:
    """The recorded vocabulary as Mistral writes it."""
    single = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]
    tokens = [*single, *RECORDED["tokens"].split()]
    return {
        "config": RECORDED["config"],
        "vocab": [{"rank": rank, "token_bytes": token} for rank, token in enumerate(tokens)],
        "special_tokens": RECORDED["special_tokens"],
        **changes,
    }


def write(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(data))
    return folder


def test_ids_are_those_of_tiktoken(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    made = with_tokenizer_json(write(tmp_path / "model", tekken()))
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    texts = [vector["text"] for vector in RECORDED["vectors"]]
    wanted = [vector["ids"] for vector in RECORDED["vectors"]]
    found = [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
    # These two write special tokens out, which tiktoken was not told of.
    apart = {index for index, text in enumerate(texts) if "<s>" in text}
    assert len(apart) == 1
    assert [ids for index, ids in enumerate(found) if index not in apart] == [
        ids for index, ids in enumerate(wanted) if index not in apart
    ]
    tokenizer.encode_special_tokens = True
    assert [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)] == wanted
    assert [tokenizer.decode(ids) for ids in wanted] == texts
    assert tokenizer.encode("a").ids[0] == 1


def test_llama_cpp_gives_the_same_ids(tmp_path: Path) -> None:
    made = with_tokenizer_json(write(tmp_path / "model", tekken()))
    vocab = read_vocab(made, {}, ROWS + 2)
    assert (vocab.model, vocab.pre, vocab.add_bos) == ("gpt2", "tekken", True)
    assert {"bos": 1, "eos": 2, "unk": 0}.items() <= vocab.special.items()
    kinds = dict(zip(vocab.texts, vocab.types.tolist(), strict=True))
    assert [kinds[text] for text in ("[INST]", "[THINK]", "<SPECIAL_7>", "[PAD711]")] == [3, 4, 3, 5]
    gguf = write_header(tmp_path / "vocab.gguf", vocab.metadata())
    texts = [vector["text"] for vector in RECORDED["vectors"]]
    (found,) = tokenize([Job(str(gguf), texts, parse_special=False)])
    compared = 0
    for text, ids, vector in zip(texts, found, RECORDED["vectors"], strict=True):
        if vocab.known_difference(text, parse_special=False) is None:
            assert ids == vector["ids"], text
            compared += 1
    assert compared > 35


def test_early_files_list_no_special_tokens(tmp_path: Path) -> None:
    config = RECORDED["config"] | {"version": "v3"}
    made = with_tokenizer_json(write(tmp_path / "early", tekken(config=config, special_tokens=None)))
    added = json.loads((made / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in added[:5]] == ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    assert (added[11]["content"], added[29]["content"], len(added)) == ("<pad>", "<SPECIAL_29>", SPECIAL)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": {"pattern": "a"}}, '"config" is not an object with pattern'),
        ({"special_tokens": None}, 'no list "special_tokens"'),
        ({"special_tokens": [{"rank": 30, "token_str": "x"}]}, "expected a text and a rank below 30"),
        ({"special_tokens": [{"rank": r, "token_str": "x"} for r in (3, 4)]}, "have the same text"),
        ({"special_tokens": [{"rank": 3, "token_str": "a"}]}, "'a' is an ordinary one"),
        ({"vocab": [{"rank": 0, "token_bytes": "?"}]}, "expected a rank and its bytes in base64"),
        ({"vocab": [{"rank": 0, "token_bytes": "YQ=="}]}, "1 tokens do not have the ranks from 0 to 679"),
        ({"vocab": None}, "expected a rank and its bytes"),
    ],
)
def test_a_damaged_file_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tekken(**changes))
    with pytest.raises(InputError, match=says) as caught:
        with_tokenizer_json(folder)
    assert caught.value.at == str(folder / "tekken.json") and caught.value.fix


def test_a_byte_without_a_token_is_refused(tmp_path: Path) -> None:
    data = tekken()
    data["vocab"][7]["token_bytes"] = base64.b64encode(b"quite another").decode()
    with pytest.raises(InputError, match="no token for the byte 7"):
        with_tokenizer_json(write(tmp_path / "model", data))


@pytest.mark.slow
def test_a_base_with_a_tekken_file_alone_is_exported_and_chatted_with(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", vocab_size=ROWS)
    template = json.loads((base / "tokenizer_config.json").read_text())["chat_template"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    (base / "chat_template.jinja").write_text(template)
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": 2, "bos_token_id": 1}
    (base / "config.json").write_text(json.dumps(config))
    write(base, tekken())
    chat = ChatTokenizer.from_folder(with_tokenizer_json(base))
    assert chat.eos_ids == (2,) and chat.encode_prompt([{"role": "user", "content": "hi"}])
    result = export(ExportConfig(str(base), out=tmp_path / "out", quant=("F32",)))
    assert {check.verdict for check in result.proof.checks} == {"passed"}, result.proof.checks
