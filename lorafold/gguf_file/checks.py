"""What a GGUF model must say about itself so that llama.cpp loads or refuses it, and does not abort.

llama.cpp asserts these while loading (GGML_ASSERT ends the whole process). Each row below is one of its
assertions, in a form that names the key.
"""

from __future__ import annotations

from lorafold.errors import InputError
from lorafold.gguf_file.header import FLOAT32, INT32, STRING, GgufArray, GgufHeader

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# Key of the tokenizer -> type of its elements; all have one element per token but the merges.
_ARRAYS = {
    "tokenizer.ggml.tokens": STRING,
    "tokenizer.ggml.scores": FLOAT32,
    "tokenizer.ggml.token_type": INT32,
    "tokenizer.ggml.merges": STRING,
}
# Their head count is 0.
WITHOUT_ATTENTION = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")
# Key below the architecture -> least and greatest value, if it is given as one number.
_RANGES = {
    "block_count": (1, MAX_LAYERS),
    "embedding_length": (1, 1 << 24),
    "context_length": (1, 1 << 31),
    "attention.head_count": (1, 1 << 16),
    "expert_count": (0, MAX_EXPERTS),
    "expert_used_count": (0, MAX_EXPERTS),
}


def check_model(header: GgufHeader) -> None:
    """Check a model's hyper-parameters and tokenizer.

    Args:
        header: of a model (not of an adapter); of the first part if it is split.

    Raises:
        InputError: a key is missing, of a wrong type or out of range; the message names it.
    """
    architecture = header.architecture
    if not architecture:
        raise _wrong(header, "general.architecture", "is missing")
    for name, (low, high) in _RANGES.items():
        key = f"{architecture}.{name}"
        value = header.number(key)
        if value == 0 and name == "attention.head_count" and architecture in WITHOUT_ATTENTION:
            continue
        if value is None and name == "block_count":
            raise _wrong(header, key, "is missing, or not a whole number")
        if value is not None and not low <= value <= high:
            raise _wrong(header, key, f"is {value:,}, expected {low:,} to {high:,}")
    experts = header.number(f"{architecture}.expert_count") or 0
    used = header.number(f"{architecture}.expert_used_count") or 0
    if used > experts or (experts and not used):
        raise _wrong(header, f"{architecture}.expert_used_count", f"is {used:,} of {experts:,} experts")
    scaling = header.text(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        key = f"{architecture}.rope.scaling.type"
        raise _wrong(header, key, f"is {scaling!r}, expected {', '.join(ROPE_SCALINGS)}")
    _check_tokenizer(header)


def _check_tokenizer(header: GgufHeader) -> None:
    if "tokenizer.ggml.model" not in header.metadata:
        return  # a later part, or a model without text; llama.cpp says so itself
    for key, kind in _ARRAYS.items():
        value = header.metadata.get(key)
        if value is not None and (not isinstance(value, GgufArray) or value.type != kind):
            raise _wrong(header, key, "is an array of the wrong type")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, GgufArray):
        if header.text("tokenizer.ggml.model") not in ("no_vocab", "none"):
            raise _wrong(header, "tokenizer.ggml.tokens", "is missing")
        return
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        value = header.metadata.get(key)
        if isinstance(value, GgufArray) and value.count != tokens.count:
            raise _wrong(header, key, f"has {value.count:,} elements for {tokens.count:,} tokens")
    names = tokens.strings()
    if len(set(names)) != len(names):
        seen: set[bytes] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _wrong(header, "tokenizer.ggml.tokens", f"has {twice!r} twice")
    for key in header.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            index = header.number(key)
            if index is None or not (0 <= index < tokens.count or index == 0xFFFFFFFF):
                raise _wrong(header, key, f"is {index}, but there are {tokens.count:,} tokens")


def _wrong(header: GgufHeader, key: str, problem: str) -> InputError:
    return InputError(f"{key} {problem}", at=header.path, fix="download or export the file again")
