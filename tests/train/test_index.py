"""Index-1.9B from its recipe to an answer: norm_head, remote code, a tokenizer.model, no end of turn."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from known_recipes import recipe
from oracles import llama_logits
from tiny_index import index_tokenizer, tiny_index
from tiny_tokenizers import sentencepiece_model

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError, UnsafeInputError
from lorafold.export import ExportConfig, export
from lorafold.export.vocab.probe import probe_texts
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.train import TrainConfig, describe_data, train

PAIRS = [("你是谁？", "我是甄嬛。"), ("几岁了？", "十七岁。"), ("喝什么？", "喝茶。")]
SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_index(tmp_path_factory.mktemp("index") / "base")


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_a_tokenizer_model_becomes_a_tokenizer_json_with_the_same_ids(
    tmp_path: Path, dummy_prefix: bool
) -> None:
    from tokenizers import Tokenizer

    model = sentencepiece_model(dummy_prefix=dummy_prefix, symbols=("reserved_0", "reserved_1"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.model").write_bytes(model)
    made = with_tokenizer_json(tmp_path / "base")
    assert made != tmp_path / "base" and not (tmp_path / "base" / "tokenizer.json").exists()
    assert with_tokenizer_json(made) == made
    ours = Tokenizer.from_file(str(made / "tokenizer.json"))
    ours.encode_special_tokens = True
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in probe_texts(500, seed=5):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    # Beside a marker a text is encoded by itself, as llama.cpp and the vendor's demo do.
    parted = [*theirs.encode("a"), 3, *theirs.encode("b "), 4, *theirs.encode("c")]
    assert ours.encode("areserved_0b reserved_1c", add_special_tokens=False).ids == parted


@pytest.mark.parametrize("change", [{"normalization": "nfkc"}, {"collapse": True}])
def test_a_tokenizer_model_that_would_change_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model(**change))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"tokenizer\.model: .* would get other tokens"):
        with_tokenizer_json(tmp_path)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a readable SentencePiece model"):
        with_tokenizer_json(tmp_path)


def test_a_unigram_model_keeps_its_ids(tmp_path: Path) -> None:
    """But for runs of one character, which have many cuts of one score: there both sides round."""
    from tokenizers import Tokenizer

    model = sentencepiece_model(model_type="unigram")
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = Tokenizer.from_file(str(with_tokenizer_json(tmp_path) / "tokenizer.json"))
    ours.encode_special_tokens = True
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [text for text in probe_texts(300, seed=6) if not re.search(r"(.)\1", text)]
    assert len(texts) > 50
    for text in texts:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


def test_the_tutorials_prompt_and_its_ids(tmp_path: Path) -> None:
    folder = with_tokenizer_json(index_tokenizer(tmp_path / "base"))
    tokenizer = ChatTokenizer.from_folder(folder, "index")
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "你是谁？"}]
    prompt = tokenizer.template.render(turns, add_generation_prompt=True)
    assert prompt == f"<unk>system{SYSTEM}reserved_0user你是谁？reserved_1assistant"
    ids = tokenizer.encode_chat(turns, add_generation_prompt=True).ids
    assert [id for id in ids if id < 5] == [0, 3, 4]
    assert tokenizer.eos_ids == (2,)


def test_remote_code_is_explained_before_any_of_it_runs(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(UnsafeInputError) as caught:
        train(recipe("index-1.9b-persona", base=str(base), data=(str(data),), out=tmp_path / "out"))
    assert caught.value.exit_code == 4
    assert "its own Python code (auto_map: modeling_index.py), which would run" in str(caught.value)
    assert "read that code, then pass --trust-remote-code" in str(caught.value)
    assert not list(base.rglob("it-ran")) and not (tmp_path / "out").exists()


def test_inspect_counts_its_tokens_without_running_its_code(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "你是谁？", "completion": "我是甄嬛。"}, ensure_ascii=False))
    bare = index_tokenizer(tmp_path / "bare")  # tokenizer.model alone, as the vendor brings it
    for name in ("config.json", "modeling_index.py"):
        shutil.copyfile(base / name, bare / name)
    before = sorted(bare.iterdir())
    report = describe_data(TrainConfig(data=(str(data),), base=str(bare), chat_template="index"))
    pieces = report.samples[0].pieces
    assert [text for text, trained in pieces if trained] == ["我是甄嬛。</s>"]
    assert sorted(bare.iterdir()) == before


CHECKS = ("tokenizer", "special tokens", "tensors index-F32.gguf", "prompt", "prompt tokens")


@pytest.mark.slow
def test_from_the_recipe_to_an_answer_that_ends(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = tmp_path / "data.json"
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in PAIRS]
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    changes = {
        "num_train_epochs": 1,
        "max_steps": 120,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
    }
    config = recipe(
        "index-1.9b-persona",
        base=str(base),
        data=(str(data),),
        out=tmp_path / "adapter",
        trust_remote_code=True,
        lora_dropout=0.0,
        save_steps=0,
        gradient_checkpointing=False,
        **changes,
    )
    result = train(config)
    assert result.loss < 0.05
    out = tmp_path / "export"
    made = export(
        ExportConfig(str(result.folder), out=out, quant=("F32",), trust_remote_code=True, name="index")
    )
    verdicts = {check.name: check.verdict for check in made.proof.checks}
    # An export runs no code of the base's, so the logits are compared below.
    assert verdicts.pop("logits index-F32.gguf") == "not checked"
    assert verdicts == dict.fromkeys(CHECKS, "passed")
    modelfile = (out / "Modelfile").read_text()
    assert "PARAMETER stop </s>" in modelfile and "PARAMETER stop reserved_0user" in modelfile

    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, result.folder).eval()
    tokenizer = ChatTokenizer.from_folder(result.folder)
    for question, answer in PAIRS:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        ids = tokenizer.encode_chat(turns, add_generation_prompt=True).ids
        with torch.no_grad():
            reference = model(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(llama_logits(out / "index-F32.gguf", ids) - reference).max() < 1e-3
        # The GGUF alone, greedily: the answer, and then the token that stops Ollama and chat.
        said: list[int] = []
        while len(said) < 20 and (not said or said[-1] not in tokenizer.eos_ids):
            said.append(int(llama_logits(out / "index-F32.gguf", [*ids, *said])[-1].argmax()))
        assert said[-1] == 2 and tokenizer.decode(said) == answer
