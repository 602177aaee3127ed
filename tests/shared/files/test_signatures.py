"""Files that are something else than their name says, written by the programs whose formats they are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_folders import adapter_folder, base_folder
from safetensors.numpy import save, save_file

from lorafold.adapters.folder import Adapter
from lorafold.artifacts import read_manifest
from lorafold.chat.sources import folder_source
from lorafold.errors import InputError, UnsafeInputError
from lorafold.export.imatrix.file import read_imatrix
from lorafold.export.vocab.model_file import read_model_file
from lorafold.files.jsonfile import read_object
from lorafold.files.signatures import SIGNATURES, told_by
from lorafold.gguf_file.read import read_gguf_header
from lorafold.inspection import inspect_path
from lorafold.tokenizer.merges import from_merges
from lorafold.tokenizer.pieces import from_pieces
from lorafold.weights import Checkpoint

JSON = json.dumps({"model_type": "llama", "peft_type": "LORA"})


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"))
    return file.getvalue()


def _sqlite(folder: Path) -> bytes:
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table a (b)")
    return (folder / "a.db").read_bytes()


def _array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


REFUSED = b"Access to model meta-llama/Llama-3.1-8B is restricted. You must be authenticated to access it."
# What is written: the words that name it, and a part of the cure.
FILES: dict[str, tuple[bytes | Callable[[Path], bytes], str, str]] = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer", "lfs pull"),
    "Xet": (b"# xet version 0\nfilesize = 3\n", "Git Xet pointer", "download"),
    "annex": (b"/annex/objects/MD5E-s1--0", "git-annex pointer", "git annex get"),
    "link": (b"../../blobs/" + b"0f" * 20, "text of a link into the hub's cache", "download"),
    "HTML": (b"\n<!DOCTYPE html>\n<html lang='en'><head></head></html>", r"web page \(HTML\)", "/resolve/"),
    "html": (b"<html><body>502 Bad Gateway</body></html>", r"web page \(HTML\)", "/resolve/"),
    "XML": (b"<?xml version='1.0'?><Error><Code>Denied</Code></Error>", r"answer \(XML\)", "auth login"),
    "no entry": (b"Entry not found", "server's refusal, not .*: 'Entry not found'", "auth login"),
    "gated": (REFUSED, "server's refusal, not .*: 'Access to model meta-llama", "auth login"),
    "JSON error": (b'{"error":"Repository not found"}', r"refusal \(JSON\), .*Repository not", "auth login"),
    "gzip": (gzip.compress(JSON.encode(), mtime=0), "a gzip file", "unpack"),
    "bzip2": (bz2.compress(JSON.encode()), "a bzip2 file", "unpack"),
    "xz": (lzma.compress(JSON.encode()), "an xz file", "unpack"),
    "zip": (_zip("config.json"), "a zip archive", "unpack"),
    "torch": (_zip("archive/data.pkl"), r"a PyTorch file \(a pickle\)", "save it as safetensors"),
    "tar": (_tar(), "a tar archive", "unpack"),
    "pickle": (pickle.dumps({"a": np.zeros(2)}), "a pickle", "save it as safetensors"),
    "Parquet": (b"PAR1\x15\x04\x15", r"a Parquet file \(a data set\)", "own file"),
    "NumPy": (_array(), "a NumPy array", "save it as safetensors"),
    "SQLite": (_sqlite, "a SQLite database", "own file"),
    "UTF-16": (JSON.encode("utf-16"), "UTF-16 text, not UTF-8", "iconv"),
    "UTF-16 without mark": (JSON.encode("utf-16-le"), "UTF-16 text, not UTF-8", "iconv"),
    "UTF-16 of the other order": (JSON.encode("utf-16-be"), "UTF-16 text, not UTF-8", "iconv"),
    "UTF-32": (JSON.encode("utf-32"), "UTF-32 text, not UTF-8", "iconv"),
    "conflict": (b'{\n<<<<<<< HEAD\n"a": 1\n=======\n', "an open git conflict", "one of the two sides"),
    "zeros": (bytes(4096), "nothing but zero bytes: a download that was interrupted", "download"),
}  # fmt: skip


def _index(folder: Path, raw: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(raw)
    Checkpoint.open(folder)


def _weights(folder: Path, raw: bytes) -> None:
    (folder / "model.safetensors").write_bytes(raw)
    Checkpoint.open(folder)


def _adapter(folder: Path, raw: bytes) -> None:
    (adapter_folder(folder) / "adapter_model.safetensors").write_bytes(raw)
    Adapter.open(folder)


def _adapter_config(folder: Path, raw: bytes) -> None:
    (adapter_folder(folder) / "adapter_config.json").write_bytes(raw)
    Adapter.open(folder)


def _named(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], None]:
    def reader(folder: Path, raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        read(folder / name)

    return reader


def _merges(folder: Path, raw: bytes) -> None:
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "merges.txt").write_bytes(raw)
    from_merges(folder)


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "config.json": _named("config.json", read_object),
    "adapter_config.json": _adapter_config,
    "adapter's weights": _adapter,
    "base's weights": _weights,
    "index": _index,
    "GGUF": _named("model.gguf", read_gguf_header),
    "imatrix": _named("imatrix.dat", read_imatrix),
    "chat_template.jinja": _named("chat_template.jinja", lambda path: folder_source(path.parent)),
    "tokenizer.model": _named("tokenizer.model", read_model_file),
    "tokenizer.model for tokenizer.json": _named("tokenizer.model", from_pieces),
    "manifest": _named("lorafold.json", lambda path: read_manifest(path.parent)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_says_what_a_file_really_is(name: str, reader: str, tmp_path: Path) -> None:
    raw, what, fix = FILES[name]
    raw = raw(tmp_path) if callable(raw) else raw
    with pytest.raises(InputError, match=what) as caught:
        READERS[reader](tmp_path, raw)
    assert fix in str(caught.value.fix) and "\n" not in str(caught.value)
    assert caught.value.at is not None and Path(caught.value.at).parent == tmp_path


@pytest.mark.parametrize("name", ["LFS", "HTML", "gzip", "UTF-16"])
def test_merges_that_are_something_else(name: str, tmp_path: Path) -> None:
    raw, what, _ = FILES[name]
    assert isinstance(raw, bytes)
    with pytest.raises(InputError, match=what):
        _merges(tmp_path, raw)


def test_weights_and_configurations_under_each_other_s_names(tmp_path: Path) -> None:
    tensors = save({"a": np.zeros((2, 2), np.float32)})
    with pytest.raises(InputError, match="this is a safetensors file, not the file itself"):
        READERS["config.json"](tmp_path, tensors)
    with pytest.raises(InputError, match="this is a safetensors file, not the file itself"):
        READERS["GGUF"](tmp_path, tensors)
    with pytest.raises(InputError, match="this is a GGUF file, not the weights") as caught:
        READERS["base's weights"](tmp_path, b"GGUF\x03\0\0\0" + bytes(64))
    assert "Hugging Face folder" in str(caught.value)


def test_a_right_header_may_look_like_anything(tmp_path: Path) -> None:
    """The first bytes of safetensors are a length: here one that begins like a gzip file."""
    from safetensors.numpy import load_file

    length = 0x8B1F
    tensor = {"a": np.ones(2, np.float32)}
    plain = save(tensor)
    header = plain[8 : 8 + int.from_bytes(plain[:8], "little")].rstrip()
    raw = length.to_bytes(8, "little") + header.ljust(length) + tensor["a"].tobytes()
    assert told_by(raw[:512])
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    assert (load_file(path)["a"] == Checkpoint.open(tmp_path).rows("a", 0, 1)).all()


@pytest.mark.parametrize(
    "text",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "<|im_start|>{{ x }}",
        " \n{#- a -#}",
    ],
)
def test_a_template_is_not_taken_for_a_page(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text)
    source = folder_source(tmp_path)
    assert source is not None and source.text == text


def test_an_empty_template_is_none(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(" \n")
    with pytest.raises(InputError, match="the chat template is empty"):
        folder_source(tmp_path)


def test_a_file_of_weights_is_inspected_as_what_it_is(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "a")
    lines = dict(inspect_path(str(adapter / "adapter_model.safetensors")).lines)
    assert lines["given"].endswith(f"is one file of a folder; this is {adapter}") and "method" in lines
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="a Git LFS pointer, not the weights"):
        inspect_path(str(tmp_path / "w.safetensors"))
    save_file({"a": np.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="weights without the folder"):
        inspect_path(str(tmp_path / "w.safetensors"))


def test_a_link_whose_target_is_gone(tmp_path: Path) -> None:
    """A snapshot of the hub's cache that was copied without the files behind its links."""
    adapter = adapter_folder(tmp_path / "a")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).unlink()
        (adapter / name).symlink_to("../../blobs/0f0f")
        with pytest.raises(InputError, match=r"a link to \.\./\.\./blobs/0f0f, which is not there") as caught:
            Adapter.open(adapter)
        assert caught.value.at == str(adapter / name) and "cp -rL" in str(caught.value)


# What lies in the folder instead of adapter_model.safetensors: its name, the words, the cure.
INSTEAD = {
    "adapter_model.safetensors.incomplete": ("a download that has not ended", "finish"),
    "adapter_model-00001-of-00002.safetensors": ("but shards of it", "join"),
    "adapters.safetensors": ("mlx-lm's weights beside a configuration that is not", "mlx-lm saved"),
    "pytorch_model_fsdp_0/__0_0.distcp": ("a training with FSDP: pytorch_model_fsdp_0;", "merge-weights"),
    "global_step50/mp_rank_00_model_states.pt": ("shards of a training with DeepSpeed", "zero_to_fp32"),
    "model.safetensors": ("but a whole model", "remove adapter_config.json"),
    "adapter-F16.gguf": ("but a GGUF file", "as it was trained"),
    "lora.safetensors": ("but another file: lora.safetensors", "call it adapter_model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTEAD)
def test_what_lies_there_instead_of_the_weights(name: str, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "a")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / name).parent.mkdir(exist_ok=True)
    save_file({"a": np.zeros(1)}, adapter / name)
    what, fix = INSTEAD[name]
    with pytest.raises(InputError, match=f"no adapter_model.safetensors, .*{what}") as caught:
        Adapter.open(adapter)
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_0.pt", "adapter_model.pth"])
def test_an_adapter_in_a_pickle_alone(name: str, tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "a")
    (adapter / "adapter_model.safetensors").rename(adapter / name)
    with pytest.raises(UnsafeInputError, match=f"weights only as a pickle.*{name}"):
        Adapter.open(adapter)


def test_every_row_is_tried() -> None:
    words = {row.what for row in SIGNATURES}
    others = {"a 7-Zip archive", "a RAR archive", "a Zstandard file", "an Arrow file (a data set)"}
    others |= {
        "an HDF5 file (Keras)",
        "a GGML file, from before GGUF",
        "a PDF",
        "an image (PNG)",
        "a GGUF file",
    }
    tried = {
        row.what for raw, _, _ in FILES.values() if isinstance(raw, bytes) and (row := told_by(raw[:512]))
    }
    assert words - tried - others == {"a SQLite database", "a safetensors file"}


def test_a_base_folder_is_still_read(tmp_path: Path) -> None:
    assert base_folder(tmp_path / "base").tensors
