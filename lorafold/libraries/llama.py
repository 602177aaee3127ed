"""The border to llama.cpp: its log kept quiet but not lost, files looked at before it loads them.

llama-cpp-python binds llama.h by ctypes; the names `llama_*` below are that header's
(https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from lorafold.artifacts import CURES, system_fault
from lorafold.errors import InputError, SystemFault
from lorafold.gguf_file.checks import check_model
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import read_gguf_header
from lorafold.machine import has_matrix_units

FLASH_ATTENTION_OFF = 0  # llama_flash_attn_type
WARNING = 3  # GGML_LOG_LEVEL_WARN; 4 is an error, 5 continues the line before


@cache
def library() -> Any:
    """llama_cpp's ctypes module, initialised, with its log caught.

    Raises:
        SystemFault: llama-cpp-python is not installed or cannot be loaded.
    """
    try:
        import llama_cpp.llama_cpp as binding
    except (ImportError, OSError, RuntimeError) as error:
        fix = "pip install llama-cpp-python"
        raise SystemFault(f"llama.cpp cannot be loaded ({error})", fix=fix) from error
    binding.llama_log_set(_log_callback(binding), ctypes.c_void_p(0))
    binding.llama_backend_init()
    return binding


_said: deque[str] = deque(maxlen=40)  # the last warnings and errors of llama.cpp
_kept: list[Any] = []  # ctypes callbacks that C still points to


def _log_callback(binding: Any) -> Any:
    def log(level: int, text: bytes, _: Any) -> None:
        if WARNING <= level <= WARNING + 1:
            _said.append(text.decode("utf-8", errors="replace").strip())

    callback = binding.llama_log_callback(log)
    _kept.append(callback)
    return callback


def complaint() -> str:
    """What llama.cpp said last, for an error message; empties the memory of it."""
    found = [line for line in _said if line]
    _said.clear()
    told = next(
        (line for line in found if "error" in line.lower()), found[-1] if found else "no reason given"
    )
    return re.sub(r"^\w+: ", "", told)


def _refused_by_system(path: Path) -> SystemFault | None:
    """What the system answered when llama.cpp opened a file: its words stand behind the name."""
    said = [behind for line in _said for _, name, behind in [line.partition(str(path))] if name]
    refused = (n for n in CURES if any(os.strerror(n) in behind for behind in said))
    return next((system_fault(OSError(n, os.strerror(n)), path) for n in refused), None)


def look(path: Path, expected: str) -> GgufHeader:
    """Read and check the header of a file that llama.cpp is about to load.

    Args:
        path: a GGUF; the first part, if it is split.
        expected: "model" or "adapter".

    Raises:
        InputError: it is damaged, or is something else.
    """
    header = read_gguf_header(path)
    kind = header.text("general.type") or "model"
    if kind != expected:
        fix = {
            "adapter": "give it with its base: BASE.gguf+ADAPTER.gguf",
            "model": "give the adapter after the base: BASE.gguf+ADAPTER.gguf",
        }
        raise InputError(f"a GGUF of type {kind!r}, expected {expected!r}", at=path, fix=fix.get(kind))
    if kind == "model":
        check_model(header)
    for shard in header.shards():
        if shard != path:
            read_gguf_header(shard)
    return header


def load_weights(path: Path, vocab_only: bool = False, *, as_stored: bool = False) -> Any:
    """The pointer to a model that llama.cpp has loaded; `llama_model_free` gives it back.

    Args:
        path: a GGUF; the first part, if it is split.
        vocab_only: load the tokenizer alone.
        as_stored: leave the weights where the file is mapped. llama.cpp would copy most of them into another
            order, in which long prompts are read faster; the copy is as large as they are.

    Raises:
        InputError: llama.cpp refuses the file.
        SystemFault: the system does not let it be read.
    """
    binding = library()
    parameters = binding.llama_model_default_params()
    parameters.vocab_only = vocab_only
    # llama.cpp packs weights in another order for the matrix units of recent Xeons. Those kernels end the
    # process as soon as a prompt is read (seen in llama-cpp-python 0.3.36 with Q4_1 and Q8_0 on a
    # Sapphire Rapids machine).
    parameters.use_extra_bufts = not (as_stored or has_matrix_units())
    _said.clear()  # what was said of another attempt explains nothing of this one
    pointer = binding.llama_model_load_from_file(str(path).encode(), parameters)
    if not pointer:
        if fault := _refused_by_system(path):
            raise fault
        raise InputError(
            f"llama.cpp cannot load this model: {complaint()}",
            at=path,
            fix="update llama-cpp-python if the model is newer than it, else export or download it again",
        )
    return pointer


def tokenize(vocab: Any, text: str, special: bool = False) -> list[int]:
    """The ids of a text, nothing added.

    Args:
        vocab: what `llama_model_get_vocab` gave.
        special: recognise control tokens in the text.
    """
    raw = text.encode("utf-8", errors="replace")
    room = len(raw) + 8
    ids = (ctypes.c_int32 * room)()
    count = library().llama_tokenize(vocab, raw, len(raw), ids, room, False, special)
    if count < 0:
        raise InputError(f"llama.cpp cannot tokenize a text of {len(raw):,} bytes", fix="shorten it")
    return ids[:count]


def piece_of(vocab: Any, token: int, special: bool = False) -> bytes:
    """The bytes of a token.

    Args:
        vocab: what `llama_model_get_vocab` gave.
        token: its id.
        special: a control token has its name; else it has no bytes.
    """
    size = 64
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = library().llama_token_to_piece(vocab, token, buffer, size, 0, special)
        if length >= 0:
            return buffer.raw[:length]
        size = -length
