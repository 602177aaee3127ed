"""The transformers engine: token for token what llama.cpp and PEFT itself say, on tiny float32 models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from lorafold.artifacts import write_manifest
from lorafold.errors import InputError
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.engines.llama import LlamaEngine
from lorafold.serve.engines.llama_model import LlamaModel
from lorafold.serve.engines.open import opened
from lorafold.serve.engines.sampling import draw
from lorafold.serve.lens import look_through
from lorafold.serve.protocol import Cancel, Engine, Started, Token

GREEDY = Sampling(temperature=0, seed=0, max_tokens=48)
QUESTIONS = ("Hello there", "What about 中文?", "<|im_end|> is text", "x y z " * 30)


def ids(engine: Engine, *texts: str) -> list[int]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    found = []
    for event in engine.stream(messages, GREEDY, Cancel()):
        if isinstance(event, Token):
            assert event.id is not None
            found.append(event.id)
    return found


@pytest.fixture(scope="module")
def folders() -> Iterator[list[Engine]]:
    """The base, base+adapter, and the adapter that brings its base, by transformers."""
    base, adapter = str(tiny_chat.folder()), str(tiny_chat.adapter())
    with opened(ChatConfig(models=(base, f"{base}+{adapter}", adapter), threads=1)) as engines:
        yield engines


@pytest.fixture(scope="module")
def files() -> Iterator[list[LlamaEngine]]:
    """The same by llama.cpp: the base, and base+adapter on the same weights."""
    model = LlamaModel(tiny_chat.gguf())
    engines = [
        LlamaEngine(model, adapters, source="tiny", threads=1, exact=True)
        for adapters in ((), (tiny_chat.adapter_gguf(),))
    ]
    yield engines
    for engine in engines:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_equal(question: str, folders: list[Engine], files: list[LlamaEngine]) -> None:
    plain, tuned, alone = (ids(engine, question) for engine in folders)
    assert plain == ids(files[0], question)
    assert tuned == alone == ids(files[1], question)
    assert plain != tuned


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_prompts_are_told_alike(question: str, folders: list[Engine], files: list[LlamaEngine]) -> None:
    messages = [{"role": "user", "content": question}]
    told = folders[0].prompt(messages)
    assert told == files[0].prompt(messages)
    assert told == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_scores_are_equal(folders: list[Engine], files: list[LlamaEngine]) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    answer = ids(folders[0], "Hello there")
    for ours, theirs in zip(files, folders, strict=False):
        assert theirs.scorer is not None and ours.vocabulary == theirs.scorer.vocabulary
        first = np.array(list(ours.log_probabilities(messages, answer)))[:, :259]
        second = np.array(list(theirs.scorer.log_probabilities(messages, answer)))[:, :259]
        assert np.abs(first - second).max() < 1e-4
    base, tuned = (engine.scorer for engine in folders[:2])
    assert base is not None and tuned is not None
    across = look_through(files[1], base, messages, "", answer)
    within = look_through(tuned, base, messages, "", answer)
    assert across.kl == pytest.approx(within.kl, abs=1e-4) and (within.kl or 0) > 0.1


@pytest.mark.slow
def test_a_turn_reads_only_what_is_new(folders: list[Engine]) -> None:
    ids(folders[0], "hello there")
    messages = [{"role": "user", "content": "hello there"}]
    messages += [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
    started = next(iter(folders[0].stream(messages, GREEDY, Cancel())))
    assert isinstance(started, Started)
    assert started.reused >= len("<user\nhello there>")  # a token a character, markers one


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "p_tuning"])
def test_every_method_answers_as_peft_does(method: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = str(tiny_chat.folder()), str(tiny_chat.adapter(method))
    with opened(ChatConfig(models=(f"{base}+{adapter}",), threads=1)) as engines:
        first = ids(engines[0], "Hello there")
        assert ids(engines[0], "Other") != first
        assert ids(engines[0], "Hello there") == first  # the learned prompt outlives a change of conversation
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello there"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.inference_mode():
        whole = model.generate(
            **prompt, max_new_tokens=48, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
        )[0].tolist()
    asked = prompt["input_ids"][0].tolist()
    answer = whole[len(asked) :] if whole[: len(asked)] == asked else whole
    assert first == [token for token in answer if token != tokenizer.eos_token_id]


@pytest.mark.slow
def test_folders_that_are_not_what_they_should_be(tmp_path: Any) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_chat.adapter(), other)
    write_manifest(other, "adapter", {"base": {"id": "x", "fingerprint": "0" * 64}})
    for model, said in (
        (f"{tiny_chat.folder()}+{tmp_path}", "no adapter_config.json"),
        (str(tmp_path), "no config.json"),
        (f"{tiny_chat.folder()}+{other}", "made for another base"),
    ):
        with pytest.raises(InputError, match=said), opened(ChatConfig(models=(model,))):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_a_download_that_failed_is_called_so(file: str, tmp_path: Path) -> None:
    """A page under the name of a file: the library's own words would be "header too large"."""
    shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    (tmp_path / "adapter" / "lorafold.json").unlink(missing_ok=True)
    damaged = tmp_path / ("base" if file.startswith("model") else "adapter") / file
    damaged.write_bytes(b"<!DOCTYPE html><html></html>")
    with (
        pytest.raises(InputError, match=r"this is a web page \(HTML\), not the") as caught,
        opened(ChatConfig(models=(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}",), threads=1)),
    ):
        pass
    assert caught.value.at == str(damaged)


def drawn(logits: Sequence[float], said: Sequence[int] = (), **settings: Any) -> set[int]:
    dice = np.random.default_rng(0)
    sampling = Sampling(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, **settings})
    return {draw(np.array(logits, np.float32), sampling, said, dice) for _ in range(300)}


def test_samplers_by_hand() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert drawn(logits) == {0, 1, 2, 3}
    assert drawn(logits, temperature=0) == {0}
    assert drawn(logits, top_k=2) == {0, 1}
    assert drawn(logits, top_p=0.7) == {0, 1}  # 0.5 < 0.7, so the next one is still in
    assert drawn(logits, min_p=0.29) == {0, 1, 2}  # 0.15 >= 0.29 * 0.5
    assert drawn([2.0, 1.9, -3.0], said=[0], repeat_penalty=1.5, temperature=0) == {1}
    assert drawn([-1.0, -1.2], said=[0], repeat_penalty=1.5, temperature=0) == {1}


def test_samplers_draw_by_probability() -> None:
    dice = np.random.default_rng(1)
    sampling = Sampling(top_k=0, top_p=1, min_p=0, temperature=2.0)
    logits = np.log(np.array([0.64, 0.36], np.float32))
    counts = sum(draw(logits, sampling, [], dice) == 0 for _ in range(4000))
    expected = 0.8 / (0.8 + 0.6)  # at temperature 2 the square roots
    assert counts / 4000 == pytest.approx(expected, abs=0.03)


def test_an_adapter_that_peft_would_misread(tmp_path: Path) -> None:
    """A wrapper's name hides it from PEFT, which would answer with the base alone and say nothing."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_chat.adapter(), tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    save_file({f"_orig_mod.{key}": tensor for key, tensor in load_file(weights).items()}, weights)
    (tmp_path / "a" / "lorafold.json").unlink(missing_ok=True)
    with (
        pytest.raises(InputError, match="read another adapter from it: its tensors carry the") as caught,
        opened(ChatConfig(models=(f"{tiny_chat.folder()}+{tmp_path / 'a'}",), threads=1)),
    ):
        pass
    assert f"lorafold export {tmp_path / 'a'} --base {tiny_chat.folder()}" in (caught.value.fix or "")
