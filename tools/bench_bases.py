"""Exports from packed bases beside a 16-bit one of the same shape, in one run: time, memory, as ratios.

    python tools/bench_bases.py [--shape 0.5B] [--quant Q4_K_M] [--threads 2] [--repeat 3] [--only NF4 GPTQ]

The whole command is timed, `lorafold export --no-verify` of a rank-8 adapter, in a process of its own. The
numbers are random and written by hand in each format (`bench_packed`), since only the time counts: the
projections of a published Qwen2 shape; and for MXFP4, which gpt-oss alone has, a few layers of gpt-oss with
eight experts, beside the same in BF16. Its experts stay in MXFP4 (docs/bases.md), so `MXFP4, requantized`
forces them into the type that the recipe gives the BF16 ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench_packed
import numpy as np
from bench_export import Run, print_machine, timed
from bench_packed import Stored, write_safetensors
from numpy.typing import NDArray
from random_model import build_model

from lorafold.safetensors_file import read_header

LAYERS = 4
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": LAYERS,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "eos_token_id": 151_645,
}


@dataclass(frozen=True)
class Base:
    """A way to store the projections.

    Attributes:
        like: the 16-bit base that it is compared with.
        settings: its quantization_config, or None.
        make: the stored parts of one projection of (rows, cols), by their names behind the module's.
        options: of the export.
    """

    like: str
    settings: Mapping[str, Any] | None
    make: Callable[[int, int], Mapping[str, Stored]] | None = None
    options: tuple[str, ...] = ()


def _packed(name: str) -> Base:
    (settings, make) = next(case[1:] for case in bench_packed.CASES if case[0] == name)
    return Base("BF16", settings, make)


BASES: dict[str, Base] = {
    "BF16": Base("BF16", None),
    "NF4": _packed("NF4, double"),
    "FP8": _packed("FP8, blocks"),
    "GPTQ": _packed("GPTQ"),
    "gpt-oss, BF16": Base("gpt-oss, BF16", None),
    "gpt-oss, MXFP4": Base("gpt-oss, BF16", {"quant_method": "mxfp4"}),
    "gpt-oss, MXFP4, requantized": Base(
        "gpt-oss, BF16", {"quant_method": "mxfp4"}, options=("--tensor-type", "_exps=Q5_0")
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="0.5B")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, in turns; the median counts")
    parser.add_argument("--only", nargs="*", choices=BASES, default=list(BASES))
    options = parser.parse_args()
    print_machine(options)
    with tempfile.TemporaryDirectory(prefix="lorafold-bases-") as scratch:
        runs: dict[str, list[Run]] = {name: [] for name in options.only}
        # In a process of its own: what this one holds would count as memory of those that it starts.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            plain, adapter = maker.submit(build_model, Path(scratch) / "qwen2", options.shape).result()
            folders = {
                name: maker.submit(_write, Path(scratch) / name.replace(", ", "-"), name, plain).result()
                for name in runs
            }
        for _ in range(options.repeat):
            for name, folder in folders.items():
                fine_tune = folder / "adapter" if name.startswith("gpt-oss") else adapter
                runs[name].append(_export(name, folder, fine_tune, Path(scratch) / "out", options))
    print("| base | stored MB | wall s | processor s | peak MB | speed beside 16 bits, wall | processor |")
    print("|---|---|---|---|---|---|---|")
    for name, found in runs.items():
        run, like = _median(found), _median(runs.get(BASES[name].like, found))
        wall, processor = like.seconds / run.seconds, like.processor / run.processor
        print(
            f"| {name} | {run.written_mb:,.0f} | {run.seconds:.1f} | {run.processor:.1f} "
            f"| {run.peak_mb:,.0f} | {wall:.2f} | {processor:.2f} |"
        )


def _median(runs: list[Run]) -> Run:
    wall = statistics.median(run.seconds for run in runs)
    processor = statistics.median(run.processor for run in runs)
    peak = max(run.peak_mb for run in runs)
    return replace(runs[0], seconds=wall, processor=processor, peak_mb=peak)


def _export(name: str, folder: Path, adapter: Path, out: Path, options: argparse.Namespace) -> Run:
    command = ["-m", "lorafold", "export", adapter, "--base", folder, "--out", out, "--quant", options.quant]
    command += ["--threads", options.threads, "--force", "--no-verify", "--no-modelfile"]
    run = timed(name, [*command, *BASES[name].options], out)
    shutil.rmtree(out)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
    return replace(run, written_mb=stored)


def _write(folder: Path, name: str, plain: Path) -> Path:
    """A base's folder."""
    base = BASES[name]
    if base.like == name and not name.startswith("gpt-oss"):
        return plain
    folder.mkdir()
    for file in plain.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    shutil.copy(plain / "chat_template.jinja", folder)
    config = GPT_OSS if name.startswith("gpt-oss") else json.loads((plain / "config.json").read_text())
    packing = {} if base.settings is None else {"quantization_config": dict(base.settings)}
    (folder / "config.json").write_text(json.dumps(dict(config) | packing))
    tensors = _gpt_oss(base.settings is not None) if name.startswith("gpt-oss") else _qwen2(plain, base)
    write_safetensors(folder / "model.safetensors", list(tensors))
    if name.startswith("gpt-oss"):
        _write_adapter(folder / "adapter", folder)
    return folder


def _qwen2(plain: Path, base: Base) -> Iterator[tuple[str, Stored]]:
    """The tensors of a Qwen2, its projections packed."""
    assert base.make is not None
    make = functools.cache(base.make)  # layers have the same numbers
    for info in read_header(plain / "model.safetensors").values():
        if info.name.endswith("_proj.weight"):
            for part, stored in make(*info.shape).items():
                yield info.name.removesuffix("weight") + part.removeprefix("a."), stored
        else:
            yield info.name, _noise(*info.shape)


@functools.cache
def _noise(*shape: int) -> Stored:
    """Random weights in BF16, cut from a pool."""
    return "BF16", shape, np.resize(_pool(), shape)


@functools.cache
def _pool() -> NDArray[np.uint16]:
    (stored,) = bench_packed.bf16(1, 1 << 24).values()
    return stored[2]


@functools.cache
def _blocks(experts: int, out: int, into: int) -> tuple[Stored, Stored]:
    packed = bench_packed.DICE.integers(0, 256, (experts, out, into // 32, 16), dtype=np.uint8)
    scales = np.full((experts, out, into // 32), 121, np.uint8)
    return ("U8", packed.shape, packed), ("U8", scales.shape, scales)


def _gpt_oss(packed: bool) -> Iterator[tuple[str, Stored]]:
    """The tensors of a small gpt-oss; its experts in MXFP4 or in BF16."""
    width, ff, experts = GPT_OSS["hidden_size"], GPT_OSS["intermediate_size"], GPT_OSS["num_local_experts"]
    assert isinstance(width, int) and isinstance(ff, int) and isinstance(experts, int)
    yield "model.embed_tokens.weight", _noise(151_936, width)
    yield "lm_head.weight", _noise(151_936, width)
    yield "model.norm.weight", _noise(width)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", _noise(width)
        for module, rows, cols in _ATTENTION:
            yield f"{prefix}self_attn.{module}.weight", _noise(rows, cols)
            yield f"{prefix}self_attn.{module}.bias", _noise(rows)
        yield f"{prefix}self_attn.sinks", _noise(64)
        yield f"{prefix}mlp.router.weight", _noise(experts, width)
        yield f"{prefix}mlp.router.bias", _noise(experts)
        for module, into, out in (("gate_up_proj", width, 2 * ff), ("down_proj", ff, width)):
            name = f"{prefix}mlp.experts.{module}"
            yield f"{name}_bias", _noise(experts, out)
            if packed:
                blocks, scales = _blocks(experts, out, into)
                yield f"{name}_blocks", blocks
                yield f"{name}_scales", scales
            else:
                yield name, _noise(experts, into, out)


_ATTENTION = (("q_proj", 4096, 2880), ("k_proj", 512, 2880), ("v_proj", 512, 2880), ("o_proj", 2880, 4096))


def _write_adapter(folder: Path, base: Path) -> None:
    """Rank 8 on the attention's projections."""
    folder.mkdir()
    tensors = []
    for layer in range(LAYERS):
        for module, rows, cols in _ATTENTION:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, shape in (("A", (8, cols)), ("B", (rows, 8))):
                values = bench_packed.DICE.standard_normal(shape, np.float32) * np.float32(0.02)
                tensors.append((f"{name}.lora_{part}.weight", ("F32", shape, values)))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 8,
        "lora_alpha": 32,
        "target_modules": [module for module, _, _ in _ATTENTION],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
