"""The parsers, each as what it is given, what it then does, and files that it reads without complaint.

A target's `open` makes a folder ready and gives a function that takes one input: the bytes are written where
the program finds such a file, and read by what the commands read them with. `records.py` has the files that
hold data.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hostile.mutate import mutate

Parse = Callable[[bytes], object]
Way = TypeVar("Way")


@dataclass(frozen=True, slots=True)
class Target:
    """A parser.

    Attributes:
        name: of the target, and of its folder in the corpus.
        open: makes a folder ready, and gives what reads one input.
        seeds: inputs that are read without complaint.
        form: as `mutate` takes it.
        slow: one input takes more than a millisecond.
        chosen: the first byte of an input only chooses the file's name, or who reads it.
        made: makes an input from nothing, or from given ones, which no change of their bytes would reach.
    """

    name: str
    open: Callable[[Path], Parse]
    seeds: Callable[[], Sequence[bytes]]
    form: str = "bytes"
    slow: bool = False
    chosen: bool = False
    made: Callable[[bytes, random.Random], bytes] | None = None

    def changed(self, data: bytes, dice: random.Random, others: Sequence[bytes]) -> bytes:
        """A changed copy of an input, of which others are further ones."""
        if self.made is not None and dice.random() < 0.5:
            return self.made(data, dice)
        if not self.chosen or dice.random() < 0.03:
            return mutate(data, self.form, dice, others)
        other = dice.choice(others)[1:] if others else data[1:]
        return data[:1] + mutate(data[1:], self.form, dice, (other,))


def dumped(value: Any) -> bytes:
    """JSON, as a file holds it."""
    return json.dumps(value).encode()


def one_file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Parse]:
    """What makes a folder ready for a parser that reads one file of this name."""

    def start(folder: Path) -> Parse:
        path = folder / name

        def parse(data: bytes) -> None:
            path.write_bytes(data)
            read(path)

        return parse

    return start


def each_asked(steps: Sequence[Callable[[], object]]) -> None:
    """Read one input in several ways; it is refused if each of them refuses it."""
    from lorafold.errors import LorafoldError

    refused: list[LorafoldError] = []
    for step in steps:
        try:
            step()
        except LorafoldError as error:
            refused.append(error)
    if len(refused) == len(steps):
        raise refused[0]


def chosen_of(ways: Sequence[Way], data: bytes) -> tuple[Sequence[Way], bytes]:
    """The way that an input's first byte chooses, and the rest of it; all ways if it is no such number."""
    number = data[0] if data else len(ways)
    return ([ways[number]], data[1:]) if number < len(ways) else (ways, data)


# Weights


def _tensors(**arrays: Any) -> bytes:
    from safetensors.numpy import save

    return bytes(save(arrays, metadata={"format": "pt"}))


def _safetensors(path: Path) -> None:
    from lorafold.safetensors_file import read_header

    read_header(path)


def _safetensors_seeds() -> list[bytes]:
    row = np.zeros((2, 3), np.float16)
    return [_tensors(), _tensors(a=row), _tensors(a=row, b=np.zeros(0, np.int64), c=np.float32([1, 2]))]


_SHARDS = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}


def _index(folder: Path) -> Parse:
    from lorafold.weights import Checkpoint

    for file, name in _SHARDS.items():
        (folder / file).write_bytes(_tensors(**{name: np.zeros((2, 3), np.float16)}))
    path = folder / "model.safetensors.index.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        checkpoint = Checkpoint.open(folder)
        try:
            for name in checkpoint.tensors:
                checkpoint.rows(name, 0, 1)
        finally:
            checkpoint.close()

    return parse


def _index_seeds() -> list[bytes]:
    weight_map = {name: file for file, name in _SHARDS.items()}
    return [dumped({"metadata": {"total_size": 24}, "weight_map": weight_map})]


# GGUF


def _gguf(path: Path) -> None:
    from lorafold.gguf_file.checks import check_model
    from lorafold.gguf_file.read import read_gguf_header
    from lorafold.gguf_file.tokens import read_gguf_tokens
    from lorafold.inspection import inspect_path

    header = read_gguf_header(path)
    read_gguf_tokens(header)
    inspect_path(str(path))
    header.shards()
    check_model(header)


def gguf_bytes(tensors: dict[str, Any], **metadata: Any) -> bytes:
    """A GGUF as gguf-py writes it."""
    import tempfile

    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "made.gguf"
        writer = GGUFWriter(path, str(metadata.pop("architecture", "llama")))
        for key, value in metadata.items():
            key = key.replace("__", ".")
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_uint32(key, value)
        for tensor, array in tensors.items():
            writer.add_tensor(tensor, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _gguf_seeds() -> list[bytes]:
    model = {
        "general__name": "tiny",
        "llama__block_count": 1,
        "llama__context_length": 64,
        "llama__embedding_length": 8,
        "llama__attention__head_count": 2,
        "llama__rope__freq_base": 10000.0,
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__tokens": ["<s>", "a", "b"],
        "tokenizer__ggml__token_type": [3, 1, 1],
        "tokenizer__ggml__bos_token_id": 0,
        "tokenizer__ggml__add_bos_token": True,
        "tokenizer__chat_template": "{{ messages }}",
    }
    row = np.ones((3, 8), np.float32)
    whole = gguf_bytes({"token_embd.weight": row, "output_norm.weight": row[0]}, **model)
    adapter = gguf_bytes({"a.lora_a": row}, general__type="adapter", adapter__type="lora")
    return [whole, adapter, gguf_bytes({"a": row.astype(np.float16)})]


def _imatrix(path: Path) -> None:
    from lorafold.export.imatrix.file import read_imatrix

    read_imatrix(path).weights([("blk.0.a.weight", (3, 4)), ("blk.0.e.weight", (2, 3, 4))])


def _imatrix_seeds() -> list[bytes]:
    import struct

    entry = struct.pack("<i14sii4f", 14, b"blk.0.a.weight", 2, 4, 1, 2, 3, 4)
    older = struct.pack("<i", 1) + entry + struct.pack("<ii4s", 3, 4, b"text")
    sums, counts = np.ones((1, 4), np.float32), np.ones((1, 1), np.float32)
    made = gguf_bytes(
        {"blk.0.a.weight.in_sum2": sums, "blk.0.a.weight.counts": counts},
        general__type="imatrix",
        imatrix__datasets=["text"],
        imatrix__chunk_count=1,
        imatrix__chunk_size=512,
    )
    return [older, older[: -len(struct.pack("<ii4s", 3, 4, b"text"))], made]


# Adapters and bases


def _adapter(folder: Path) -> Parse:
    from adapter_folders import adapter_folder

    from lorafold.adapters.folder import Adapter
    from lorafold.inspection import inspect_path
    from lorafold.sources.adapter_base import base_of

    adapter_folder(folder)
    # mlx-lm's tensors lie beside PEFT's: the configuration decides which are read.
    shutil.copy(folder / "adapter_model.safetensors", folder / "adapters.safetensors")
    path = folder / "adapter_config.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        Adapter.open(folder)
        inspect_path(str(folder))
        base_of(folder)

    return parse


def _adapter_seeds() -> list[bytes]:
    peft: dict[str, Any] = {
        "peft_type": "LORA",
        "peft_version": "0.18.1",
        "base_model_name_or_path": "org/name",
        "revision": "main",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"^model.layers.1": 8},
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "target_parameters": None,
    }
    mlx = {
        "fine_tune_type": "lora",
        "model": "org/name",
        "num_layers": 2,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    others = [peft | {"peft_type": kind} for kind in ("ADALORA", "IA3", "LOHA", "OFT")]
    return [
        dumped(peft),
        dumped({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear"}),
        dumped(mlx),
        dumped(peft | {"target_modules": ".*q_proj"}),
        *map(dumped, others),
    ]


def _config(folder: Path) -> Parse:
    from lorafold.export.arch.header import metadata
    from lorafold.export.arch.table import find
    from lorafold.export.arch.tensors import map_tensors
    from lorafold.inspection import inspect_path
    from lorafold.models import fingerprint, resolve_base
    from lorafold.packed.source import open_base

    names = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,), "lm_head.weight": (10, 8)}
    layer = {
        "input_layernorm": (8,),
        "post_attention_layernorm": (8,),
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (4, 8),
        "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8),
        "mlp.up_proj": (12, 8),
        "mlp.gate_proj": (12, 8),
        "mlp.down_proj": (8, 12),
    }
    names |= {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    arrays = {name: np.zeros(shape, np.float16) for name, shape in names.items()}
    (folder / "model.safetensors").write_bytes(_tensors(**arrays))
    path = folder / "config.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        base = resolve_base(str(folder))
        fingerprint(folder)
        config = base.config()
        inspect_path(str(folder))
        find(config)
        source = open_base(folder, config)
        metadata(config, map_tensors(config, source.tensors), folder, 1)

    return parse


def _config_seeds() -> list[bytes]:
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 10,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "torch_dtype": "float16",
    }
    packed = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    kinds = {
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
        "Gemma3ForCausalLM": "gemma3_text",
        "Phi3ForCausalLM": "phi3",
        "MixtralForCausalLM": "mixtral",
        "GraniteForCausalLM": "granite",
        "Olmo2ForCausalLM": "olmo2",
        "Cohere2ForCausalLM": "cohere2",
    }
    others = [llama | {"architectures": [name], "model_type": kind} for name, kind in kinds.items()]
    wrapped = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": llama | {"model_type": "mistral"},
    }
    return [*map(dumped, (llama, llama | {"quantization_config": packed}, wrapped, *others))]


def _manifest(folder: Path) -> Parse:
    """In the folder that the first byte chooses: an adapter's, an export's, a checkpoint's."""
    from adapter_folders import adapter_folder

    from lorafold.artifacts import read_export
    from lorafold.export.hub.facts import read_facts
    from lorafold.export.manifest import config_of
    from lorafold.inspection import inspect_path
    from lorafold.models import Base
    from lorafold.serve.origin import origin_of
    from lorafold.sources.adapter_base import base_of, check_base, other_base_named
    from lorafold.train.config import TrainConfig
    from lorafold.train.saved.checkpoints import newest_whole
    from lorafold.train.saved.resume import finished_run

    export, adapter, run = (folder / name for name in ("export", "adapter", "run"))
    adapter_folder(adapter)
    export.mkdir()
    (export / "a.gguf").write_bytes(b"GGUF")
    (run / "checkpoint-1").mkdir(parents=True)
    base = folder / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    config = TrainConfig(base=str(base), data=("x",), out=adapter, resume=True)
    of_adapter: Sequence[Callable[[], object]] = (
        lambda: inspect_path(str(adapter)),
        lambda: base_of(adapter),
        lambda: check_base(adapter, Base(base, "x")),
        lambda: other_base_named(adapter, Base(base, "org/x")),
        lambda: finished_run(adapter, config),
    )
    of_export: Sequence[Callable[[], object]] = (
        lambda: origin_of(str(export / "a.gguf"), "x"),
        lambda: inspect_path(str(export)),
        lambda: read_facts(export),
        lambda: config_of(read_export(export), export),
    )
    of_checkpoint: Sequence[Callable[[], object]] = (lambda: newest_whole(run),)
    places = ((adapter, of_adapter), (export, of_export), (run / "checkpoint-1", of_checkpoint))

    def parse(data: bytes) -> None:
        chosen, manifest = chosen_of(places, data)
        for place, _ in chosen:
            (place / "lorafold.json").write_bytes(manifest)
        each_asked([step for _, steps in chosen for step in steps])

    return parse


def _manifest_seeds() -> list[bytes]:
    import hashlib

    digest = hashlib.sha256(b"GGUF").hexdigest()
    check = {"name": "tokenizer", "verdict": "passed", "figures": {}, "meaning": "equal"}
    export = {
        "format": 1,
        "kind": "export",
        "lorafold": "0.1",
        "name": "tiny",
        "config": {
            "source": "a",
            "out": "b",
            "quant": ["Q8_0"],
            "adapter": ["a=1.0"],
            "format": "gguf",
            "tensor_type": [],
            "imatrix": None,
            "chats": None,
            "onto": None,
        },
        "base": {
            "id": "org/name",
            "spec": "org/name",
            "revision": "0" * 40,
            "fingerprint": "ab",
            "path": "/b",
        },
        "adapters": [{"folder": "/a", "weight": 1.0}],
        "verdict": "passed",
        "proof": [check],
        "survival": {},
        "files": {"a.gguf": {"size": 4, "sha256": digest}},
    }
    training = {
        "format": 1,
        "kind": "adapter",
        "lorafold": "0.1",
        "config": {"base": "org/name", "r": 2, "system": "x"},
        "base": export["base"],
        "data": {"sha256": "ab", "examples": 3, "layouts": {"alpaca": 3}},
        "versions": {"torch": "2"},
        "training": {"steps": 3, "loss": 0.5},
        "files": {},
    }
    checkpoint = training | {"kind": "checkpoint"}
    return [
        bytes([place]) + dumped(manifest)
        for place in range(3)
        for manifest in (training, export, checkpoint)
        if place < 2 or manifest is checkpoint
    ]


WEIGHTS = (
    Target("safetensors", one_file("model.safetensors", _safetensors), _safetensors_seeds, "safetensors"),
    Target("index", _index, _index_seeds, "json"),
    Target("gguf", one_file("model.gguf", _gguf), _gguf_seeds, "gguf"),
    Target("imatrix", one_file("imatrix.dat", _imatrix), _imatrix_seeds, "gguf"),
    Target("adapter", _adapter, _adapter_seeds, "json"),
    Target("config", _config, _config_seeds, "json"),
    Target("manifest", _manifest, _manifest_seeds, "json", chosen=True),
)
