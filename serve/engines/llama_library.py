"""The border to llama.cpp: its log kept quiet but not lost, files looked at before it sees them.

llama-cpp-python binds llama.h by ctypes; the names `llama_*` below are that header's
(https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h).
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from lorafold.errors import InputError, SystemFault
from lorafold.gguf_file.checks import check_model
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import read_gguf_header

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


def look(path: Path, expected: str) -> GgufHeader:
    """Read and check the header of a file that llama.cpp is about to load.

    Args:
        path: a GGUF; the first part, where it is split.
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
