"""Packed bases beside a 16-bit one of the same shape, in one run: rows read, and rows read and quantized.

    python tools/bench_packed.py [--rows 4096] [--cols 4096] [--tensors 4] [--quant Q4_K] [--repeat 3]

The numbers are random and written by hand in each format, since only the time counts. Blocks have the size
that the export uses, on one thread. The table says million weights a second of the processor's time, which
other work disturbs less, the ratio to BF16, and by how much the process grew while it read.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.export.gguf.writer import MAX_BLOCK_WEIGHTS
from lorafold.packed.source import open_base
from lorafold.safetensors_file import DTYPE_BITS

Stored = tuple[str, tuple[int, ...], NDArray[Any]]  # dtype, shape, and the numbers as they are stored
Tensors = dict[str, Stored]
DICE = np.random.default_rng(0)


def noise(dtype: str, *shape: int) -> tuple[str, tuple[int, ...], NDArray[np.uint8]]:
    size = int(np.prod(shape)) * DTYPE_BITS[dtype] // 8
    return dtype, shape, DICE.integers(0, 120, size, dtype=np.uint8)


def scales(dtype: str, *shape: int) -> tuple[str, tuple[int, ...], NDArray[Any]]:
    values = DICE.random(shape, np.float32) + np.float32(0.5)
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    return dtype, shape, values.astype(kind)


def bf16(rows: int, cols: int) -> Tensors:
    values = DICE.standard_normal(rows * cols, np.float32).view(np.uint32) >> np.uint32(16)
    return {"a.weight": ("BF16", (rows, cols), values.astype(np.uint16))}


def nf4(rows: int, cols: int, double: bool = False) -> Tensors:
    blocks = rows * cols // 64
    told: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols]}
    tensors: Tensors = {
        "a.weight": noise("U8", rows * cols // 2, 1),
        "a.weight.absmax": scales("F32", blocks),
        "a.weight.quant_map": ("F32", (16,), np.linspace(-1, 1, 16, dtype=np.float32)),
    }
    if double:
        told |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.0}
        tensors["a.weight.absmax"] = noise("U8", blocks)
        tensors["a.weight.nested_absmax"] = scales("F32", -(-blocks // 256))
        tensors["a.weight.nested_quant_map"] = ("F32", (256,), np.linspace(-1, 1, 256, dtype=np.float32))
    raw = np.frombuffer(json.dumps(told).encode(), np.uint8)
    return tensors | {"a.weight.quant_state.bitsandbytes__nf4": ("U8", raw.shape, raw)}


def gptq(rows: int, cols: int, bits: int = 4) -> Tensors:
    return {
        "a.qweight": noise("I32", cols * bits // 32, rows),
        "a.qzeros": (
            "I32",
            (cols // 128, rows * bits // 32),
            np.zeros((cols // 128, rows * bits // 32), "i4"),
        ),
        "a.scales": scales("F16", cols // 128, rows),
    }


def gptq_act(rows: int, cols: int) -> Tensors:
    index = DICE.permutation(cols).astype(np.int32) // np.int32(128)
    return gptq(rows, cols) | {"a.g_idx": ("I32", (cols,), index)}


def awq(rows: int, cols: int) -> Tensors:
    return {
        "a.qweight": noise("I32", cols, rows // 8),
        "a.qzeros": noise("I32", cols // 128, rows // 8),
        "a.scales": scales("F16", cols // 128, rows),
    }


def hqq(rows: int, cols: int) -> Tensors:
    lines = rows * cols // 64
    letters = np.frombuffer(b"4bit_u8", np.uint8)
    numbers = {"nbits": 4, "group_size": 64, "axis": 1}
    return {
        "a.W_q": noise("U8", lines // 2, 64),
        "a.scale": scales("F16", lines, 1),
        "a.zero": scales("F16", lines, 1),
        "a.shape": ("I64", (2,), np.array([rows, cols])),
        "a.packing": ("U8", letters.shape, letters),
        **{f"a.{name}": ("I32", (), np.array(number, "i4")) for name, number in numbers.items()},
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
INT4 = {"num_bits": 4, "strategy": "group", "group_size": 128}
Case = tuple[str, dict[str, Any] | None, Callable[[int, int], Tensors]]
CASES: tuple[Case, ...] = (
    ("BF16", None, bf16),
    ("NF4", {"quant_method": "bitsandbytes"}, nf4),
    ("NF4, double", {"quant_method": "bitsandbytes"}, lambda rows, cols: nf4(rows, cols, double=True)),
    (
        "int8",
        {"quant_method": "bitsandbytes"},
        lambda rows, cols: {"a.weight": noise("I8", rows, cols), "a.SCB": scales("F32", rows)},
    ),
    (
        "FP8, blocks",
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda rows, cols: {
            "a.weight": noise("F8_E4M3", rows, cols),
            "a.weight_scale_inv": scales("F32", -(-rows // 128), -(-cols // 128)),
        },
    ),
    (
        "MXFP4",
        {"quant_method": "mxfp4"},
        lambda rows, cols: {
            "a_blocks": noise("U8", 1, cols, rows // 32, 16),
            "a_scales": ("U8", (1, cols, rows // 32), np.full((1, cols, rows // 32), 127, np.uint8)),
        },
    ),
    ("GPTQ", GPTQ, gptq),
    ("GPTQ, act-order", GPTQ, gptq_act),
    ("GPTQ, 3 bits", GPTQ | {"bits": 3}, lambda rows, cols: gptq(rows, cols, 3)),
    ("AWQ", {"quant_method": "awq", "bits": 4, "group_size": 128}, awq),
    (
        "compressed int4",
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": INT4}},
        },
        lambda rows, cols: {
            "a.weight_packed": noise("I32", rows, cols // 8),
            "a.weight_scale": scales("F16", rows, cols // 128),
            "a.weight_shape": ("I64", (2,), np.array([rows, cols])),
        },
    ),
    ("HQQ", {"quant_method": "hqq"}, hqq),
    (
        "MLX",
        {"quant_method": "mlx", "bits": 4, "group_size": 64},
        lambda rows, cols: {
            "a.weight": noise("U32", rows, cols // 8),
            "a.scales": scales("F16", rows, cols // 64),
            "a.biases": scales("F16", rows, cols // 64),
        },
    ),
)


def write(folder: Path, make: Callable[[int, int], Tensors], rows: int, cols: int, count: int) -> None:
    """A safetensors file with one tensor of the model after another."""
    made = {
        f"m{number}.{name}": stored for number in range(count) for name, stored in make(rows, cols).items()
    }
    write_safetensors(folder / "model.safetensors", list(made.items()))


def write_safetensors(path: Path, tensors: Sequence[tuple[str, Stored]]) -> None:
    """A safetensors file of tensors in any type, also of those that numpy has not."""
    header, offset = {}, 0
    for name, (dtype, shape, _) in tensors:
        size = int(np.prod(shape)) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, (_, _, values) in tensors:
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def main() -> None:
    from gguf import GGMLQuantizationType as Type

    from lorafold.export.quant import quantize

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--tensors", type=int, default=4)
    parser.add_argument("--quant", default="Q4_K")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    kind = Type[options.quant]
    weights = options.rows * options.cols * options.tensors / 1e6
    plain: tuple[float, float] | None = None
    warm = np.zeros((1, options.cols), np.float32)
    quantize.quantize(warm, kind, None, at="warm", first_row=0)  # the kernel is compiled or loaded once
    print(f"{'':18} {'read':>10} {'ratio':>6} {'+ ' + options.quant:>10} {'ratio':>6} {'grew':>8}")
    for words, settings, make in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder, make, options.rows, options.cols, options.tensors)
            key = "quantization" if settings and settings["quant_method"] == "mlx" else "quantization_config"
            base = open_base(folder, {key: settings} if settings else {})
            seconds: dict[bool, list[float]] = {False: [], True: []}
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(options.repeat):
                for work in (False, True):
                    began = time.process_time()
                    for name, info in base.tensors.items():
                        step = max(1, MAX_BLOCK_WEIGHTS // info.cols)
                        for start in range(0, info.rows, step):
                            block = base.rows(name, start, min(start + step, info.rows))
                            if work:
                                quantize.quantize(block, kind, None, at=name, first_row=start)
                    seconds[work].append(time.process_time() - began)
            grew = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        read, both = (weights / statistics.median(seconds[work]) for work in (False, True))
        plain = plain or (read, both)
        print(
            f"{words:18} {read:8.0f} M {read / plain[0]:6.2f} {both:8.0f} M {both / plain[1]:6.2f} "
            f"{grew:6.0f} MB"
        )


if __name__ == "__main__":
    main()
