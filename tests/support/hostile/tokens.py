"""Parsers of tokenizers and chat templates, as `targets` has them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_base import CHATML

from hostile.targets import Parse, Target, dumped, one_file

_MESSAGES = [
    {"role": "user", "content": "what?"},
    {"role": "assistant", "content": "that"},
    {"role": "user", "content": "why?"},
]


def _byte_level() -> dict[str, Any]:
    from tiny_tokenizers import added

    letters = [chr(point) for point in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    vocab = {letter: index for index, letter in enumerate([*letters, "ab"])}
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(len(vocab), "<|im_end|>"), added(len(vocab) + 1, "<x>", False, lstrip=True)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [whole]},
        "post_processor": None,
        "decoder": whole,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [["a", "b"]],
            "dropout": None,
            "unk_token": None,
            "ignore_merges": False,
            "byte_fallback": False,
        },
    }


def _pieces() -> dict[str, Any]:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁a"]
    from tiny_tokenizers import added

    return {
        "version": "1.0",
        "added_tokens": [
            *(added(index, texts[index]) for index in range(3)),
            added(len(texts), "<|im_end|>"),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": {text: index for index, text in enumerate(texts)},
            "fuse_unk": True,
            "merges": ["a b", "▁ a"],
            "unk_token": "<unk>",
            "byte_fallback": True,
        },
    }


def _unigram() -> dict[str, Any]:
    texts = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "\n", "."]
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    from tiny_tokenizers import added

    return _pieces() | {
        "added_tokens": [
            *(added(index, texts[index]) for index in range(3)),
            added(len(texts), "<|im_end|>"),
        ],
        "normalizer": None,
        "pre_tokenizer": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": False,
            "vocab": [[text, -float(index)] for index, text in enumerate(texts)],
        },
    }


_EOS = {"eos_token": "<|im_end|>", "chat_template": CHATML}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": {"content": "<x>", "lstrip": True},
    "additional_special_tokens": ["<x>"],
    "added_tokens_decoder": {"258": {"content": "<x>", "special": True}},
    "add_bos_token": False,
    "chat_template": CHATML,
}


def _read_all(folder: Path) -> Callable[[], object]:
    from lorafold.chat.tokenizer import ChatTokenizer
    from lorafold.export.vocab.vocab import read_vocab

    def read() -> None:
        read_vocab(folder, {"model_type": "llama"}, 400, end_of_turn="<|im_end|>").metadata()
        tokenizer = ChatTokenizer.from_folder(folder)
        tokenizer.tokenize("a b <x> é", parse_special=True)

    return read


def _tokenizer_json(folder: Path) -> Parse:
    (folder / "tokenizer_config.json").write_bytes(dumped(_EOS))
    read, path = _read_all(folder), folder / "tokenizer.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read()

    return parse


_SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.json",
)


def _tokenizer_settings(folder: Path) -> Parse:
    """The files beside tokenizer.json, together in one object."""
    (folder / "tokenizer.json").write_bytes(dumped(_byte_level()))
    read = _read_all(folder)

    def parse(data: bytes) -> None:
        try:
            files = json.loads(data)
        except (ValueError, RecursionError):
            files = None
        for name in _SIDE_FILES:
            (folder / name).unlink(missing_ok=True)
        if isinstance(files, dict):
            for name in _SIDE_FILES:
                if name in files:
                    (folder / name).write_bytes(dumped(files[name]))
        else:
            (folder / _SIDE_FILES[0]).write_bytes(data)
        read()

    return parse


def _settings_seeds() -> list[bytes]:
    eos = {"eos_token": "<|im_end|>"}
    named = {
        "chat_template": [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "x"}]
    }
    return [
        dumped({"tokenizer_config.json": SETTINGS}),
        dumped(
            {
                "tokenizer_config.json": eos | named,
                "generation_config.json": {"eos_token_id": [257, 258]},
                "config.json": {"model_type": "qwen2", "eos_token_id": 257},
            }
        ),
        dumped(
            {
                "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>", "lstrip": False}},
                "added_tokens.json": {"<x>": 258},
                "chat_template.json": {"chat_template": CHATML},
            }
        ),
    ]


def _merges(folder: Path) -> Parse:
    """vocab.json and merges.txt, with a zero byte between them, and the settings behind another."""
    from lorafold.tokenizer.merges import from_merges, has_merges

    names = ("vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")

    def parse(data: bytes) -> None:
        for name, part in zip(names, data.split(b"\0", 3) + [b"{}"] * 3, strict=False):
            (folder / name).write_bytes(part)
        if has_merges(folder):
            from_merges(folder)

    return parse


def _merges_seeds() -> list[bytes]:
    vocab = _byte_level()["model"]["vocab"]
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {str(len(vocab)): {"content": "<y>"}},
        "additional_special_tokens": ["<z>"],
    }
    merges = b"#version: 0.2\na b\n"
    return [
        b"\0".join([dumped(vocab), merges, dumped(settings)]),
        b"\0".join(
            [
                dumped(vocab),
                merges,
                dumped({"tokenizer_class": "Qwen2Tokenizer"}),
                dumped({"<|endoftext|>": len(vocab)}),
            ]
        ),
    ]


def _tekken(path: Path) -> None:
    from lorafold.tokenizer.tekken import from_tekken

    from_tekken(path)


def _tekken_seeds() -> list[bytes]:
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()} for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": r"\s+|\S+",
        "default_vocab_size": 258 + 3,
        "default_num_special_tokens": 3,
        "version": "v7",
    }
    special = [
        {"rank": rank, "token_str": text, "is_control": True}
        for rank, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    return [
        dumped({"config": config, "special_tokens": special, "vocab": vocab}),
        dumped(
            {"config": config | {"default_num_special_tokens": 20, "default_vocab_size": 278}, "vocab": vocab}
        ),
    ]


def _model_file(folder: Path) -> Parse:
    from lorafold.export.vocab.model_file import peek_model_file
    from lorafold.export.vocab.vocab import read_vocab
    from lorafold.tokenizer.pieces import from_pieces

    path = folder / "tokenizer.model"
    (folder / "tokenizer_config.json").write_bytes(dumped({"eos_token": "</s>", "bos_token": "<s>"}))

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        peek_model_file(path)
        read_vocab(folder, {"model_type": "llama"}, 320)
        from_pieces(path)

    return parse


def _model_file_seeds() -> list[bytes]:
    from tiny_tokenizers import sentencepiece_model

    texts = ("the lamp is lit", "a ship in the sea", "the sea is a ship") * 4
    return [
        sentencepiece_model(size=290, texts=texts),
        sentencepiece_model(size=273, texts=texts, model_type="unigram"),
        sentencepiece_model(size=30, texts=texts, byte_fallback=False, symbols=("lit",)),
        sentencepiece_model(size=17, texts=texts, byte_fallback=False, model_type="unigram"),
    ]


def _template(whole: bool) -> Callable[[Path], Parse]:
    """Through the sandbox's child, as every command renders; as a whole with what is trained of it."""

    def start(folder: Path) -> Parse:
        from lorafold.chat.fragments import fragments
        from lorafold.chat.template import ChatTemplate

        path = folder / "chat_template.jinja"
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}

        def parse(data: bytes) -> None:
            path.write_bytes(data)
            template = replace(
                ChatTemplate.from_file(path), tokens=tokens, controls=frozenset(tokens.values())
            )
            if whole:
                fragments(template, _MESSAGES, add_generation_prompt=True)
            else:
                template.render(_MESSAGES, add_generation_prompt=True)

        return parse

    return start


class _Stopped(BaseException):
    """The sandbox's clock, which ends its child, ends a rendering in this process."""


def _template_alone(_: Path) -> Parse:
    """What the sandbox's child does, in this process: many more inputs a second."""
    import signal

    from lorafold.chat.sandbox_worker import render

    job = {
        "messages": _MESSAGES,
        "clock": None,
        "variables": {"add_generation_prompt": True, "eos_token": "</s>"},
    }

    def stop(*_: object) -> None:
        raise _Stopped

    def parse(data: bytes) -> None:
        signal.signal(signal.SIGPROF, stop)
        try:
            signal.setitimer(signal.ITIMER_PROF, 2)
            answer = render(data.decode("utf-8", "replace"), job)
            json.dumps(answer)
        except (_Stopped, MemoryError):
            pass
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return parse


_SHORT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}",
    "{% for m in messages %}{{ 'Q' if m.role == 'user' else 'A' }}{{ m.content ~ eos_token }}\n{% endfor %}",
    "{% set a = namespace(n=0) %}{% for m in messages %}{% set a.n = a.n + 1 %}{{ m.content }}{% endfor %}",
    "{% macro f(m) %}{{ m.role }}:{{ m.content }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson(indent=1) }}{% if add_generation_prompt %}A:{% endif %}",
    "{% for m in messages %}{{ loop.index0 }}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
)


def _template_seeds() -> Sequence[bytes]:
    from classic_templates import EXPRESSIBLE

    return [text.encode() for text in (CHATML, *_SHORT, *EXPRESSIBLE.values())]


TOKENS = (
    Target(
        "tokenizer-json",
        _tokenizer_json,
        lambda: [*map(dumped, (_byte_level(), _pieces(), _unigram()))],
        "json",
        slow=True,
    ),
    Target("tokenizer-settings", _tokenizer_settings, _settings_seeds, "json", slow=True),
    Target("merges", _merges, _merges_seeds, "text", slow=True),
    Target("tekken", one_file("tekken.json", _tekken), _tekken_seeds, "json"),
    Target("tokenizer-model", _model_file, _model_file_seeds, "protobuf", slow=True),
    Target("template", _template(False), _template_seeds, "jinja", slow=True),
    Target("template-alone", _template_alone, _template_seeds, "jinja"),
    Target("template-cut", _template(True), _template_seeds, "jinja", slow=True),
)
