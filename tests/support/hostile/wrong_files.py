"""Files of strangers, each with a fault made in a copy of something that is right.

A table maps the fault, in words, to what makes it in a folder and the exit code that a command must end with.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.records import ROWS
from hostile.targets import gguf_bytes

Make = Callable[[Path], None]


def _written(name: str, content: bytes | str) -> Make:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: _write(folder / name, data)


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _removed(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def _renamed(name: str, to: str) -> Make:
    def rename(folder: Path) -> None:
        (folder / name).rename(folder / to)

    return rename


def _changed(name: str, **values: Any) -> Make:
    def change(folder: Path) -> None:
        path = folder / name
        _write(path, json.dumps({**json.loads(path.read_bytes()), **values}).encode())

    return change


_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
_PAGE = "<!DOCTYPE html><html><body>404</body></html>"
NOT_JSON = {
    "empty": "",
    "an array": "[]",
    "a number": "5",
    "cut off": '{"a": ',
    "a key twice": '{"a": 1, "a": 2}',
    "deep": '{"a":' * 3000 + "1" + "}" * 3000,
    "deep enough": '{"a":' * 150 + "1" + "}" * 150,
    "not UTF-8": b'{"a": "\xff"}',
    "zeros": bytes(200),
    "a pointer of Git LFS": _LFS,
    "a page": _PAGE,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


def _not_json(name: str) -> dict[str, tuple[Make, int]]:
    return {f"{name}: {what}": (_written(name, content), 3) for what, content in NOT_JSON.items()}


def _header(entries: Any, data: int = 0, *, length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def _entry(begin: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "5 bytes": b"12345",
    "a header of 2^63 bytes": _header({}, length=2**63),
    "a header over 100 MB": _header({}, length=100_000_001),
    "a header that is cut off": _header({"a": _entry(0, 4, [1])}, length=500),
    "no JSON": _header(b"{nothing"),
    "a list": _header([1]),
    "an overlap": _header({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, 12),
    "a hole": _header({"a": _entry(0, 4, [1]), "b": _entry(8, 12, [1])}, 12),
    "bytes behind": _header({"a": _entry(0, 4, [1])}, 9),
    "data cut off": _header({"a": _entry(0, 400, [100])}, 40),
    "a shape that overflows": _header({"a": _entry(0, 0, [2**40, 2**40, 0])}),
    "a shape that is huge": _header({"a": _entry(0, 2**62, [2**60])}, 4),
    "a shape below 0": _header({"a": _entry(0, 4, [-1])}, 4),
    "an unknown type": _header({"a": _entry(0, 4, [1], "F33")}, 4),
    "a type that is a list": _header({"a": _entry(0, 4, [1], ["F32"])}, 4),
    "offsets in reverse": _header({"a": _entry(4, 0, [1])}, 4),
    "offsets of text": _header({"a": {**_entry(0, 4, [1]), "data_offsets": "04"}}, 4),
    "metadata of numbers": _header({"__metadata__": {"a": 1}, "a": _entry(0, 4, [1])}, 4),
    "a name twice": _header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32",'
        b'"shape":[1],"data_offsets":[4,8]}}',
        8,
    ),
    "no tensors": _header({}),
    "a pointer of Git LFS": _LFS.encode(),
    "a page": _PAGE.encode(),
    "a pickle": b"\x80\x04\x95.",
}


def _weights(name: str) -> dict[str, tuple[Make, int]]:
    return {f"{name}: {what}": (_written(name, data), 3) for what, data in SAFETENSORS.items()}


def _indexed(weight_map: Any) -> Make:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return make


def _linked_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


INDEXES: dict[str, tuple[Make, int]] = {
    "index: leads out": (_indexed({"a": "../model-1.safetensors"}), 4),
    "index: an absolute path": (_indexed({"a": "/etc/passwd"}), 4),
    "index: a missing shard": (_indexed({"a": "model-9.safetensors"}), 3),
    "index: names no tensor": (_indexed({"nowhere": "model-1.safetensors"}), 3),
    "index: empty": (_indexed({}), 3),
    "index: a list": (_indexed(["a"]), 3),
    "index: a number": (_indexed({"a": 5}), 3),
    "index: a zero byte": (_indexed({"a": "\0"}), 3),
    "index: a long name": (_indexed({"a": "x" * 300}), 3),
    "index: escapes": (_indexed({"a": "\x1b]52;c;eA==\x07"}), 3),
    "weights: pickles alone": (_renamed("model.safetensors", "pytorch_model.bin"), 4),
    "weights: none": (_removed("model.safetensors"), 3),
}

BASES: dict[str, tuple[Make, int]] = {
    **_not_json("config.json"),
    **_weights("model.safetensors"),
    **INDEXES,
    "config: its own code": (_changed("config.json", auto_map={"AutoModel": "evil.Evil"}), 4),
    "config: no such class": (_changed("config.json", architectures=["EvilForCausalLM"]), 3),
    "config: a class that is a number": (_changed("config.json", architectures=5), 3),
    "config: a class that is a list": (_changed("config.json", architectures=[["x"]]), 3),
    "config: escapes": (_changed("config.json", architectures=["\x1b[2J\x1b]0;x\x07"]), 3),
    "config: layers without end": (_changed("config.json", num_hidden_layers=10**15), 3),
    "config: layers in a list": (_changed("config.json", num_hidden_layers=[10**15]), 3),
    "config: layers below 0": (_changed("config.json", num_hidden_layers=-1), 3),
    "config: other sizes": (_changed("config.json", hidden_size=32), 3),
    "config: no heads": (_changed("config.json", num_attention_heads=0), 3),
    "config: packed in no known way": (
        _changed("config.json", quantization_config={"quant_method": "evil"}),
        3,
    ),
    "config: packing that is a number": (_changed("config.json", quantization_config=5), 3),
    **_not_json("tokenizer.json"),
    "tokenizer: none": (_removed("tokenizer.json"), 3),
    "tokenizer: no model": (_written("tokenizer.json", "{}"), 3),
    "tokenizer: added tokens of numbers": (_changed("tokenizer.json", added_tokens=[1]), 3),
    "tokenizer: a normalizer that is a number": (_changed("tokenizer.json", normalizer=5), 3),
    "tokenizer: a model that is a list": (_changed("tokenizer.json", model=[]), 3),
    "tokenizer: a merge without its token": (
        _changed("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}),
        3,
    ),
    **_not_json("tokenizer_config.json"),
    "settings: special tokens of a number": (
        _changed("tokenizer_config.json", additional_special_tokens=5),
        3,
    ),
    "settings: eos of a list": (_changed("tokenizer_config.json", eos_token=["x"]), 3),
    "settings: decoder of a number": (_changed("tokenizer_config.json", added_tokens_decoder=5), 3),
}
# These are what only a command that reads all of a base can find.
NOT_INSPECTED = (
    "tokenizer",
    "settings",
    "config: no such",
    "config: escapes",
    "config: layers",
    "config: other",
    "config: no heads",
    "config: its own",
    "config: packed in",
    "config: packing",
)

ADAPTERS: dict[str, tuple[Make, int]] = {
    **_not_json("adapter_config.json"),
    **_weights("adapter_model.safetensors"),
    "adapter: no weights": (_removed("adapter_model.safetensors"), 3),
    "adapter: an unknown method": (_changed("adapter_config.json", peft_type="EVIL"), 3),
    "adapter: a method that is a list": (_changed("adapter_config.json", peft_type=["LORA"]), 3),
    "adapter: rank 0": (_changed("adapter_config.json", r=0), 3),
    "adapter: a rank of text": (_changed("adapter_config.json", r="4"), 3),
    "adapter: alpha is a list": (_changed("adapter_config.json", lora_alpha=[1]), 3),
    "adapter: alpha is not a number": (_changed("adapter_config.json", lora_alpha=float("nan")), 3),
    "adapter: a pattern that is none": (_changed("adapter_config.json", target_modules="(((("), 3),
    "adapter: targets of numbers": (_changed("adapter_config.json", target_modules=[1]), 3),
    "adapter: ranks by a number": (_changed("adapter_config.json", rank_pattern={"q_proj": "x"}), 3),
    "adapter: only pickles": (_renamed("adapter_model.safetensors", "adapter_model.bin"), 4),
}

_GGUF: dict[str, Any] = {
    "llama__block_count": 1,
    "llama__context_length": 64,
    "llama__embedding_length": 8,
    "llama__attention__head_count": 2,
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__tokens": ["<s>", "a", "b"],
}


def _gguf(**changes: Any) -> bytes:
    import numpy as np

    return gguf_bytes({"token_embd.weight": np.ones((3, 8), np.float32)}, **{**_GGUF, **changes})


def _patched(at: int, code: str, value: int) -> bytes:
    data = bytearray(_gguf())
    struct.pack_into(code, data, at, value)
    return bytes(data)


def _pair(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    """A GGUF with one pair of metadata."""
    head = b"GGUF" + struct.pack("<IqqQ", 3, 0, 1, len(key)) + key
    return head + struct.pack("<I", kind) + value + bytes(64)


def ggufs() -> dict[str, bytes]:
    """GGUF files that llama.cpp would abort on, or that are none."""
    whole = _gguf()
    cuts = {f"cut at {part}/8": whole[: len(whole) * part // 8] for part in range(1, 8)}
    return {
        **cuts,
        "empty": b"",
        "another magic": b"GGUX" + whole[4:],
        "the old magic": b"ggml" + whole[4:],
        "version 0": _patched(4, "<I", 0),
        "version 99": _patched(4, "<I", 99),
        "the other byte order": _patched(4, ">I", 3),
        "tensors below 0": _patched(8, "<q", -1),
        "tensors without end": _patched(8, "<q", 2**62),
        "pairs below 0": _patched(16, "<q", -1),
        "pairs without end": _patched(16, "<q", 2**62),
        "a key without end": _patched(24, "<Q", 2**63),
        "an empty key": _patched(24, "<Q", 0),
        "a type that is none": _pair(99, b""),
        "a truth value of 7": _pair(7, b"\x07"),
        "a text without end": _pair(8, struct.pack("<Q", 2**60)),
        "an array without end": _pair(9, struct.pack("<IQ", 4, 2**60)),
        "an array of texts without end": _pair(9, struct.pack("<IQ", 8, 2**60)),
        "an array of arrays": _pair(9, struct.pack("<IQ", 9, 1)),
        "an array of nothing known": _pair(9, struct.pack("<IQ", 77, 1)),
        "a key that is no text": _pair(4, b"\0" * 4, b"\xff"),
        "an alignment of 7": _pair(4, struct.pack("<I", 7), b"general.alignment"),
        "an alignment of 0": _pair(4, struct.pack("<I", 0), b"general.alignment"),
        "an alignment of text": _pair(8, struct.pack("<Q", 1) + b"x", b"general.alignment"),
        "a pointer of Git LFS": _LFS.encode(),
        "a page": _PAGE.encode(),
    }


def models() -> dict[str, bytes]:
    """GGUF files with a right header that say of their model what llama.cpp asserts otherwise."""
    return {
        "no layers": _gguf(llama__block_count=0),
        "layers without end": _gguf(llama__block_count=2**31),
        "no heads": _gguf(llama__attention__head_count=0),
        "no width": _gguf(llama__embedding_length=0),
        "experts without end": _gguf(llama__expert_count=5000, llama__expert_used_count=2),
        "more experts used": _gguf(llama__expert_count=2, llama__expert_used_count=9),
        "a scaling that is none": _gguf(llama__rope__scaling__type="evil"),
        "a token twice": _gguf(tokenizer__ggml__tokens=["a", "a", "b"]),
        "tokens of numbers": _gguf(tokenizer__ggml__tokens=[1, 2, 3]),
        "scores of text": _gguf(tokenizer__ggml__scores=["a", "b", "c"]),
        "fewer kinds than tokens": _gguf(tokenizer__ggml__token_type=[1]),
        "an id beyond the tokens": _gguf(tokenizer__ggml__eos_token_id=99),
    }


def data_files() -> dict[str, tuple[str, bytes, int]]:
    """Data that cannot be trained on: file name, content, exit code."""
    row = json.dumps(ROWS[0])
    texts: dict[str, tuple[str, str | bytes, int]] = {
        "empty": ("d.jsonl", "", 3),
        "blank": ("d.jsonl", "\n\n", 3),
        "cut off": ("d.jsonl", row + "\n" + row[:20], 3),
        "not UTF-8": ("d.jsonl", b'{"instruction": "\xff"}', 3),
        "a key twice": ("d.jsonl", '{"instruction": "a", "instruction": "b", "output": "c"}', 3),
        "deep": ("d.jsonl", '{"instruction": ' + "[" * 5000 + "]" * 5000 + "}", 3),
        "a number": ("d.jsonl", "5\n", 3),
        "no known fields": ("d.jsonl", '{"evil": 1}', 3),
        "fields of escapes": ("d.jsonl", json.dumps({"\x1b]0;x\x07": "y"}), 3),
        "a null": ("d.jsonl", '{"instruction": "a", "output": null}', 3),
        "an answer that is a number": ("d.jsonl", '{"instruction": "a", "output": 5}', 3),
        "a role that is none": ("d.jsonl", '{"messages": [{"role": "evil", "content": "x"}]}', 3),
        "no answer": ("d.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', 3),
        "messages of numbers": ("d.jsonl", '{"messages": [1]}', 3),
        "messages that are text": ("d.jsonl", '{"messages": "x"}', 3),
        "single quotes": ("d.jsonl", "{'instruction': 'a', 'output': 'b'}", 3),
        "an array of numbers": ("d.json", "[1, 2]", 3),
        "an object of nothing": ("d.json", "{}", 3),
        "a column twice": ("d.csv", "a,a\n1,2\n", 3),
        "a column too many": ("d.csv", "instruction,output\na,b,c\n", 3),
        "a quote that does not end": ("d.csv", 'instruction,output\n"a,b\n', 3),
        "no parquet": ("d.parquet", "PAR1", 3),
        "no Arrow": ("d.arrow", "ARROW1", 3),
        "no gzip": ("d.jsonl.gz", "nothing", 3),
        "no zip": ("d.zip", "nothing", 3),
        "no tar": ("d.tar", "nothing", 3),
        "no zstd": ("d.jsonl.zst", "nothing", 3),
        "no xz": ("d.jsonl.xz", "nothing", 3),
        "no bzip2": ("d.jsonl.bz2", "nothing", 3),
        "a pickle": ("d.pkl", b"\x80\x04.", 4),
        "a script": ("d.py", "raise SystemExit", 4),
        "a pickle called data": ("d.jsonl", b"\x80\x04\x95" + bytes(50), 3),
        "a page": ("d.jsonl", _PAGE, 3),
        "a pointer of Git LFS": ("d.jsonl", _LFS, 3),
        "an unknown type": ("d.xyz", "x", 3),
        "a sheet": ("d.xlsx", b"PK\x03\x04" + bytes(60), 3),
    }
    found = {
        what: (name, content.encode() if isinstance(content, str) else content, code)
        for what, (name, content, code) in texts.items()
    }
    return found | {"an archive that leads out": ("d.zip", _zip_out(), 4)}


def _zip_out() -> bytes:
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("../evil.jsonl"), json.dumps(ROWS[0]))
    return made.getvalue()


RECIPES = {
    "not YAML": "a: [",
    "a list": "- a",
    "a number": "5",
    "an object to build": "r: !!python/object/apply:os.system ['touch never']",
    "a tag of its own": "r: !evil 5",
    "not UTF-8": b"a: \xff",
    "a zero byte": "a: \0",
    "an alias of nothing": "a: *b",
    "deep": "[" * 5000,
    "a date that is none": "a: 2001-99-99",
    "a key that is a list": "? [a]\n: b",
}
_ALIASES = "".join(f", &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10))
BOMBS = {
    "an alias bomb": f"system: [&a0 [x, x, x, x, x, x, x, x]{_ALIASES}]",
    "a list that holds itself": "system: &a [*a]",
}
SETTINGS = {
    "an unknown key": "evil: 1",
    "a rank of text": "r: x",
    "a list for a number": "r: [1, 2]",
    "an object for a text": "base: {a: 1}",
    "a number of steps in words": "max_steps: many",
}

SESSIONS = {**NOT_JSON, "another format": '{"format": "evil"}'}
