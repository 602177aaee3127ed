"""GGUF headers: what is read, and every way in which a file may be damaged."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError
from lorafold.gguf_file.checks import check_model
from lorafold.gguf_file.header import GgufArray
from lorafold.gguf_file.read import read_gguf_header


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    packed = struct.pack(f"<I{len(dims)}q", len(dims), *dims)
    return string(name) + packed + struct.pack("<IQ", kind, offset)


ARCHITECTURE = pair(b"general.architecture", 8, string(b"llama"))


def build(
    pairs: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    counted = (len(tensors), len(pairs)) if counts is None else counts
    head = magic + struct.pack("<Iqq", version, *counted) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def test_a_header_by_hand(tmp_path: Path) -> None:
    numbers = pair(b"x.numbers", 9, struct.pack("<IQ3i", 5, 3, 7, -1, 2))
    words = pair(b"x.words", 9, struct.pack("<IQ", 8, 2) + string(b"a") + string("é".encode()))
    first, second = tensor(b"a.weight", (64, 3), 8, 0), tensor(b"b", (4,), 0, 224)
    path = tmp_path / "a.gguf"
    path.write_bytes(build((ARCHITECTURE, numbers, words), (first, second), 224 + 32))
    header = read_gguf_header(path)
    assert header.architecture == "llama"
    found, texts = header.metadata["x.numbers"], header.metadata["x.words"]
    assert isinstance(found, GgufArray) and found.values() == (7, -1, 2)
    assert isinstance(texts, GgufArray) and texts.strings() == [b"a", "é".encode()]
    assert header.tensors["a.weight"].shape == (3, 64)
    assert header.tensors["a.weight"].nbytes == 3 * 2 * 34  # three rows of two Q8_0 blocks
    assert header.tensors["b"].offset - header.tensors["a.weight"].offset == 224
    assert header.quantization == "Q8_0"


DAMAGE = {
    "not a GGUF": build(magic=b"GGML"),
    "file is empty": b"",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "less than its header": b"GGUF\3\0\0\0",
    "version 9": build(version=9),
    "other byte order": build(version=3 << 24),
    "-1 tensors do not fit": build(counts=(-1, 0)),
    "-5 metadata pairs do not fit": build(counts=(0, -5)),
    "1,000,000,000 tensors do not fit": build(counts=(10**9, 1)),
    "occurs twice": build((ARCHITECTURE, ARCHITECTURE)),
    "value type 99": build((pair(b"k", 99, b""),)),
    "truth value of 7": build((pair(b"k", 7, b"\7"),)),
    "takes 9,223,372,036,854,775,807 bytes": build((pair(b"k", 8, struct.pack("<Q", 2**63 - 1)),)),
    "array k of 4,611,686,018,427,387,904 numbers": build((pair(b"k", 9, struct.pack("<IQ", 4, 2**62)),)),
    "array k of 1,000,000,000 strings": build((pair(b"k", 9, struct.pack("<IQ", 8, 10**9)),)),
    "runs past the file's end": build((pair(b"k", 9, struct.pack("<IQQ", 8, 1, 2**63)),)),
    "elements of type 9": build((pair(b"k", 9, struct.pack("<IQ", 9, 1)),)),
    "expected 1 to 65535": build((pair(b"", 7, b"\1"),)),
    "not UTF-8": build((pair(b"\xff\xfe", 7, b"\1"),)),
    "general.alignment is 24": build((pair(b"general.alignment", 4, struct.pack("<I", 24)),)),
    "general.alignment is 0": build((pair(b"general.alignment", 4, struct.pack("<I", 0)),)),
    "general.alignment is not": build((pair(b"general.alignment", 8, string(b"32")),)),
    "tensor t occurs twice": build(tensors=(tensor(b"t", (8,), 0, 0), tensor(b"t", (8,), 0, 32)), data=64),
    "5 dimensions": build(tensors=(tensor(b"t", (1, 1, 1, 1, 1), 0, 0),), data=32),
    "0 dimensions": build(tensors=(tensor(b"t", (), 0, 0),), data=32),
    "shape [-4]": build(tensors=(tensor(b"t", (-4,), 0, 0),), data=32),
    "more than any memory": build(tensors=(tensor(b"t", (2**62, 2**62), 0, 0),), data=32),
    "type 77": build(tensors=(tensor(b"t", (4,), 77, 0),), data=32),
    "blocks of 32 do not divide": build(tensors=(tensor(b"t", (33,), 8, 0),), data=64),
    "offset 64, expected 0": build(tensors=(tensor(b"t", (8,), 0, 64),), data=128),
    "truncated": build(tensors=(tensor(b"t", (8, 8), 0, 0),), data=32),
    "has 70 bytes, expected 1 to 63": build(tensors=(tensor(b"t" * 70, (8,), 0, 0),), data=32),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_named(said: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(DAMAGE[said])
    with pytest.raises(InputError) as caught:
        read_gguf_header(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "fix:" in str(caught.value)


def test_a_missing_file_and_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_gguf_header(tmp_path / "none.gguf")
    split = pair(b"split.count", 2, struct.pack("<H", 3))
    path = tmp_path / "m-00001-of-00003.gguf"
    path.write_bytes(build((ARCHITECTURE, split)))
    with pytest.raises(InputError, match=r"m-00002-of-00003\.gguf, m-00003-of-00003\.gguf"):
        read_gguf_header(path).shards()
    renamed = path.rename(tmp_path / "m.gguf")
    with pytest.raises(InputError, match="not named"):
        read_gguf_header(renamed).shards()


@pytest.fixture(scope="module")
def whole() -> bytes:
    return tiny_chat.gguf().read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_input_error(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed anywhere in the header, or the end cut off: a header or an InputError, nothing else."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 7000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(whole))))
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(bytes(changed[:cut]))
    try:
        read_gguf_header(path)
    except InputError as error:
        assert str(path) in str(error)


def test_our_export_reads_back_as_gguf_py_reads_it(whole: bytes) -> None:
    path = tiny_chat.gguf()
    ours, theirs = read_gguf_header(path), gguf.GGUFReader(path)
    assert {t.name: (int(t.tensor_type), t.data_offset, t.n_bytes) for t in theirs.tensors} == {
        t.name: (t.type, t.offset, t.nbytes) for t in ours.tensors.values()
    }
    for key, value in ours.metadata.items():
        if isinstance(value, GgufArray):
            contents = theirs.fields[key].contents()
            if value.type == 8:
                assert [text.decode() for text in value.strings()] == contents
            else:
                assert list(value.values()) == pytest.approx(contents)
        else:
            assert value == pytest.approx(theirs.fields[key].contents())


LOAD = """
import sys
from pathlib import Path
from lorafold.errors import LorafoldError
from lorafold.serve.engines.llama_model import LlamaModel
for name in sys.argv[1:]:
    print("try", name, flush=True)
    try:
        LlamaModel(Path(name)).release()
    except LorafoldError:
        pass
print("done", flush=True)
"""


@pytest.mark.slow
def test_what_passes_does_not_crash_llama_cpp(whole: bytes, tmp_path: Path) -> None:
    """Damaged headers that get past us must be refused by llama.cpp, not end the process."""
    import random

    dice = random.Random(5)
    header = read_gguf_header(tiny_chat.gguf())
    end = min(tensor.offset for tensor in header.tensors.values())
    paths = []
    for number in range(400):
        changed = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(24, end)] = dice.choice((0, 1, 255, dice.randrange(256)))
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(bytes(changed))
        paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith("done\n"), (done.stdout.splitlines()[-1], done.stderr[-1000:])


def number(key: str, value: int) -> bytes:
    return pair(key.encode(), 4, struct.pack("<I", value))


def words(key: str, *texts: bytes) -> bytes:
    return pair(key.encode(), 9, struct.pack("<IQ", 8, len(texts)) + b"".join(map(string, texts)))


LAYERS = number("llama.block_count", 2)
VOCABULARY = pair(b"tokenizer.ggml.model", 8, string(b"gpt2"))
MODELS = {
    "general.architecture is missing": (LAYERS,),
    "llama.block_count is missing": (ARCHITECTURE,),
    "llama.block_count is 0": (ARCHITECTURE, number("llama.block_count", 0)),
    "llama.block_count is 70,000, expected 1 to 512": (ARCHITECTURE, number("llama.block_count", 70000)),
    "attention.head_count is 0": (ARCHITECTURE, LAYERS, number("llama.attention.head_count", 0)),
    "expert_used_count is 3 of 2": (
        ARCHITECTURE,
        LAYERS,
        number("llama.expert_count", 2),
        number("llama.expert_used_count", 3),
    ),
    "scaling.type is 'odd'": (ARCHITECTURE, LAYERS, pair(b"llama.rope.scaling.type", 8, string(b"odd"))),
    "tokenizer.ggml.tokens is missing": (ARCHITECTURE, LAYERS, VOCABULARY),
    "tokenizer.ggml.tokens is an array of the wrong type": (
        ARCHITECTURE,
        LAYERS,
        VOCABULARY,
        pair(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ2i", 5, 2, 1, 2)),
    ),
    "token_type has 1 elements for 2 tokens": (
        ARCHITECTURE,
        LAYERS,
        VOCABULARY,
        words("tokenizer.ggml.tokens", b"a", b"b"),
        pair(b"tokenizer.ggml.token_type", 9, struct.pack("<IQi", 5, 1, 1)),
    ),
    "has b'a' twice": (ARCHITECTURE, LAYERS, VOCABULARY, words("tokenizer.ggml.tokens", b"a", b"a")),
    "eos_token_id is 7, but there are 1 tokens": (
        ARCHITECTURE,
        LAYERS,
        VOCABULARY,
        words("tokenizer.ggml.tokens", b"a"),
        number("tokenizer.ggml.eos_token_id", 7),
    ),
}


@pytest.mark.parametrize("said", MODELS)
def test_a_model_that_llama_cpp_would_abort_on(said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build(MODELS[said]))
    with pytest.raises(InputError) as caught:
        check_model(read_gguf_header(path))
    assert said in str(caught.value)


def test_a_whole_model_passes(whole: bytes) -> None:
    check_model(read_gguf_header(tiny_chat.gguf()))
