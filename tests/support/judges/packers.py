"""The libraries that pack weights, each in its own process: they pack random weights and unpack them again.

They are installed without their dependencies into a cache folder outside the repository, once for each
machine. A test that needs one is skipped, with the reason, if it cannot be installed or does not run here.

Every case becomes a folder with config.json, model.safetensors as the library packs it, and
unpacked.safetensors as the library unpacks it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

VERSIONS = {
    "compressed-tensors": ("compressed-tensors==0.20.0", "loguru==0.7.3"),
    "mlx": ("mlx[cpu]==0.32.4",),
    "auto-gptq": ("auto-gptq==0.7.1",),
    "autoawq": ("autoawq==0.2.9",),
    "torchao": ("torchao==0.18.0", "fbgemm-gpu-genai==1.9.0"),
    "hqq": ("hqq==0.2.8.post1",),
}
SOURCES = ("autoawq", "hqq")
"""Those that come as a source archive: it is unpacked, not built."""

_WRITE = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
def write(case, key, settings, packed, unpacked, save):
    folder = out / case
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", key: settings}))
    save(packed, str(folder / "model.safetensors"))
    save(unpacked, str(folder / "unpacked.safetensors"))
"""

SCRIPTS = {
    "hqq": """
import types
import torch
from safetensors.torch import save_file
colours = types.ModuleType("termcolor")
colours.colored = lambda text, colour: text
sys.modules["termcolor"] = colours
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
torch.manual_seed(0)
SIZES = (
    (32, 36, 64, "float32"), (64, 48, 192, "float32"), (None, 16, 32, "float32"),
    (64, 40, 128, "bfloat16"), (64, 40, 128, "float16"),
)
for bits in (2, 4, 8):
    for group, rows, cols, dtype in SIZES:
        for as_float in (False, True):
            linear = torch.nn.Linear(cols, rows)
            config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1, view_as_float=as_float)
            made = HQQLinear(linear, config, compute_dtype=getattr(torch, dtype), device="cpu")
            packed = {"a." + name: value.data.contiguous() for name, value in made.state_dict().items()}
            unpacked = {"a.weight": made.dequantize().contiguous(), "a.bias": packed["a.bias"].clone()}
            settings = {"quant_method": "hqq", "quant_config": config}
            case = f"{bits}-{group}-{dtype}" + "-float" * as_float
            write(case, "quantization_config", settings, packed, unpacked, save_file)
""",
    "torchao": """
import importlib.util, os, sys, types
import torch
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig, Int4Tensor, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerAxis, PerGroup,
    PerRow, PerTensor, quantize_,
)
from torchao.quantization.quant_primitives import MappingType
torch.manual_seed(0)
def save_case(case, kinds, unpacked):
    packed, metadata = flatten_tensor_state_dict(kinds)
    save = lambda tensors, path: save_file(tensors, path, metadata if tensors is packed else None)
    write(case, "quantization_config", {"quant_method": "torchao"}, packed, unpacked, save)
CONFIGS = {
    "int8-row": Int8WeightOnlyConfig(version=2),
    "int8-tensor": Int8WeightOnlyConfig(granularity=PerTensor(), version=2),
    "int4-group": IntxWeightOnlyConfig(torch.int4, PerGroup(32)),
    "int3-group-shifted": IntxWeightOnlyConfig(torch.int3, PerGroup(64), MappingType.ASYMMETRIC),
    "int8-axis-shifted": IntxWeightOnlyConfig(torch.int8, PerAxis(0), MappingType.ASYMMETRIC),
    "fp8-row": Float8WeightOnlyConfig(granularity=PerRow()),
    "fp8-tensor": Float8WeightOnlyConfig(granularity=PerTensor()),
}
for case, config in CONFIGS.items():
    for dtype in (torch.float32, torch.bfloat16):
        model = torch.nn.Sequential(torch.nn.Linear(128, 37), torch.nn.Linear(64, 48)).to(dtype)
        quantize_(model, config)
        kinds = {name: value.data if name.endswith("bias") else value for name, value in
                 model.state_dict().items()}
        unpacked = {name: value.dequantize() if hasattr(value, "qdata") else value
                    for name, value in kinds.items()}
        save_case(f"{case}-{str(dtype).rpartition('.')[2]}", kinds, unpacked)

# Int4Tensor is unpacked by kernels alone. Weights on a grid of 16 steps a group are packed without a loss by
# the module of FBGEMM that packs them.
stand_in = types.ModuleType("fp8_gemm")
stand_in.quantize_fp8_row = None
sys.modules["fbgemm_gpu.experimental.gemm.triton_gemm.fp8_gemm"] = stand_in
for folder in map(__import__("pathlib").Path, os.environ["PYTHONPATH"].split(os.pathsep)):
    (path,) = folder.glob("fbgemm_gpu/experimental/gen_ai/quantize.py")
spec = importlib.util.spec_from_file_location("fbgemm_quantize", path)
fbgemm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fbgemm)
codes = torch.randint(0, 16, (48, 4, 32))
codes[..., 0], codes[..., 1] = 0, 15
step = 2.0 ** torch.randint(-8, -4, (48, 4, 1))
weight = ((codes - torch.randint(2, 14, (48, 4, 1))) * step).reshape(48, 128).to(torch.bfloat16)
q, scale, zero = fbgemm.int4_row_quantize_zp(weight, 32)
kind = Int4Tensor(fbgemm.pack_int4(q), scale.bfloat16(), zero.bfloat16(), [1, 32], weight.shape)
save_case("int4-cutlass", {"a.weight": kind}, {"a.weight": weight})
""",
    "mlx": """
import mlx.core as mx
mx.random.seed(0)
save = lambda tensors, path: mx.save_safetensors(path, tensors)
for bits in (2, 3, 4, 5, 6, 8):
    for group, dtype in ((32, mx.float32), (64, mx.float32), (64, mx.bfloat16), (128, mx.float16)):
        packed, unpacked = {}, {}
        for name, shape in {"a": (37, 256), "stack": (3, 16, 128)}.items():
            weight = mx.random.normal(shape).astype(dtype)
            q, scales, biases = mx.quantize(weight, group, bits)
            packed |= {name + ".weight": q, name + ".scales": scales, name + ".biases": biases}
            unpacked[name + ".weight"] = mx.dequantize(q, scales, biases, group, bits)
        case = f"{bits}-{group}-{str(dtype).rpartition('.')[2]}"
        write(case, "quantization", {"bits": bits, "group_size": group}, packed, unpacked, save)
""",
    "autoawq": """
import importlib.util, os, types
import torch
from safetensors.torch import save_file
# The package's own start imports all of its models; these two files stand for themselves.
root = os.environ["AWQ"]
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, root + path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
load("awq.utils.module", "/awq/utils/module.py")
utils = types.ModuleType("awq.utils.utils")
utils.get_best_device = lambda: "cpu"
sys.modules["awq.utils.utils"] = utils
packing = load("awq.utils.packing_utils", "/awq/utils/packing_utils.py")
gemm = load("awq.modules.linear.gemm", "/awq/modules/linear/gemm.py")
torch.manual_seed(0)
for group, rows, cols in ((32, 96, 128), (128, 64, 256), (-1, 32, 64)):
    width = cols if group < 0 else group
    linear = torch.nn.Linear(cols, rows, bias=False)
    scales = (torch.rand(cols // width, rows) / 50 + 0.001).half()
    zeros = torch.randint(0, 16, (cols // width, rows)).float()
    linear.weight.data = ((torch.randint(0, 16, (rows, cols)) - zeros.T.repeat_interleave(width, 1))
                          * scales.T.float().repeat_interleave(width, 1))
    made = gemm.WQLinear_GEMM.from_linear(linear, 4, width, scales=scales, zeros=zeros)
    packed = {"a.qweight": made.qweight, "a.qzeros": made.qzeros, "a.scales": made.scales}
    weight = packing.dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, width)
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    write(str(group), "quantization_config", settings, packed, {"a.weight": weight.T.contiguous()}, save_file)
""",
    "auto-gptq": """
import types
import torch
from safetensors.torch import save_file
# The package's own start imports all of its models; the module for the CPU stands for itself.
import importlib.util, os
root = os.environ["PYTHONPATH"].split(os.pathsep)[0]
spec = importlib.util.spec_from_file_location("q", root + "/auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
q = importlib.util.module_from_spec(spec)
spec.loader.exec_module(q)
torch.manual_seed(0)
for bits in (2, 3, 4, 8):
    for order, group, cols, rows in (("plain", 32, 128, 96), ("act", 32, 128, 64), ("row", -1, 96, 32)):
        width = cols if group < 0 else group
        groups = cols // width
        layer = q.QuantLinear(bits, group, cols, rows, False)
        index = torch.arange(cols, dtype=torch.int32) // width
        if order == "act":
            index = index[torch.randperm(cols)]
        scales = (torch.rand(rows, groups) / 50 + 0.001).half().float()
        zeros = torch.randint(1, 2**bits, (rows, groups)).float()
        codes = torch.randint(0, 2**bits, (rows, cols))
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = (codes - zeros[:, index.long()]) * scales[:, index.long()]
        layer.pack(linear, scales.clone(), zeros.clone(), index)
        # Each input is asked for by itself: a product with the unit matrix adds nothing but zeros.
        weight = layer(torch.eye(cols)).T.contiguous()
        names = ("qweight", "qzeros", "scales", "g_idx")
        packed = {"a." + name: getattr(layer, name).contiguous() for name in names}
        packed["a.scales"] = packed["a.scales"].half()
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order == "act"}
        write(f"{bits}-{order}", "quantization_config", settings, packed, {"a.weight": weight}, save_file)
""",
    "compressed-tensors": """
import torch
from safetensors.torch import save_file
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
torch.manual_seed(0)
def scales_of(weight, args):
    rows, cols = weight.shape
    if args.strategy == "group":
        parts = weight.reshape(rows, -1, args.group_size)
    elif args.strategy == "channel":
        parts = weight.reshape(rows, 1, cols)
    elif args.strategy == "block":
        high, wide = args.block_structure
        full = torch.nn.functional.pad(weight, (0, -cols % wide, 0, -rows % high))
        tiles = full.reshape(full.shape[0] // high, high, full.shape[1] // wide, wide).transpose(1, 2)
        parts = tiles.reshape(*tiles.shape[:2], -1)
    else:
        parts = weight.reshape(1, -1)
    return calculate_qparams(parts.amin(-1), parts.amax(-1), args)
cases = {
    "int4-group": ("pack-quantized", dict(num_bits=4, strategy="group", group_size=32)),
    "int4-zeros": ("pack-quantized", dict(num_bits=4, strategy="group", group_size=32, symmetric=False)),
    "int4-channel": ("pack-quantized", dict(num_bits=4, strategy="channel")),
    "int8-group": ("pack-quantized", dict(num_bits=8, strategy="group", group_size=64)),
    "int8-zeros": ("pack-quantized", dict(num_bits=8, strategy="channel", symmetric=False)),
    "int2-group": ("pack-quantized", dict(num_bits=2, strategy="group", group_size=32)),
    "plain-int8": ("int-quantized", dict(num_bits=8, strategy="channel")),
    "plain-int8-zeros": ("int-quantized", dict(num_bits=8, strategy="channel", symmetric=False)),
    "fp8-channel": ("float-quantized", dict(num_bits=8, type="float", strategy="channel")),
    "fp8-tensor": ("float-quantized", dict(num_bits=8, type="float", strategy="tensor")),
    "fp8-block": (
        "float-quantized", dict(num_bits=8, type="float", strategy="block", block_structure=[32, 64])
    ),
}
def write_case(name, format_, scheme, state):
    compressor = BaseCompressor.get_value_from_registry(format_)
    packed = compressor.compress(state, scheme)
    unpacked = compressor.decompress(packed, scheme)["weight"]
    settings = {
        "quant_method": "compressed-tensors", "format": format_,
        "config_groups": {"group_0": scheme.model_dump(mode="json")},
    }
    packed = {"a." + name: value.contiguous() for name, value in packed.items()}
    write(name, "quantization_config", settings, packed, {"a.weight": unpacked.contiguous()}, save_file)
fp4 = dict(num_bits=4, type="float", symmetric=True)
for dtype in (torch.bfloat16, torch.float32):
    weight = torch.randn(70, 128).to(dtype)
    kind = str(dtype).rpartition(".")[2]
    args = QuantizationArgs(strategy="tensor_group", group_size=16, **fp4)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="nvfp4-pack-quantized")
    whole = (448 * 6 / weight.abs().max()).float().reshape(1)
    scale = weight.reshape(70, -1, 16).abs().amax(-1).float() / 6 * whole
    state = {"weight": weight, "weight_scale": scale.to(torch.float8_e4m3fn).to(dtype),
             "weight_global_scale": whole}
    write_case("nvfp4-" + kind, "nvfp4-pack-quantized", scheme, state)
    args = QuantizationArgs(strategy="group", group_size=32, **fp4)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="mxfp4-pack-quantized")
    scale = 2 ** (weight.reshape(70, -1, 32).abs().amax(-1).float().log2().floor() - 2)
    state = {"weight": weight, "weight_scale": scale.to(dtype)}
    write_case("mxfp4-" + kind, "mxfp4-pack-quantized", scheme, state)
for case, (format_, options) in cases.items():
    for dtype in (torch.bfloat16, torch.float32):
        args = QuantizationArgs(**options)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format_)
        weight = torch.randn(70 if case == "fp8-block" else 72, 128).to(dtype)
        scale, zero = scales_of(weight, args)
        state = {"weight": weight, "weight_scale": scale.to(dtype)}
        if not args.symmetric:
            state["weight_zero_point"] = zero
        write_case(f"{case}-{str(dtype).rpartition('.')[2]}", format_, scheme, state)
""",
}


@functools.cache
def _installed(library: str) -> Path | str:
    """The folder that holds a library, or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-tests"
    packages = VERSIONS[library]
    target = cache / packages[0].replace("==", "-").replace("[cpu]", "")
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"no cache folder for {library}: {error}"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".installing-") as scratch:
        into = Path(scratch) / "library"
        pip = [sys.executable, "-m", "pip"]
        deps = () if "[" in packages[0] else ("--no-deps",)
        command = [*pip, "install", "--quiet", *deps, "--target", str(into), *packages]
        if library in SOURCES:
            command = [*pip, "download", "--quiet", "--no-deps", "--dest", scratch, *packages]
        asked = subprocess.run(command, capture_output=True, text=True)
        if asked.returncode != 0:
            return f"{packages[0]} cannot be installed: {asked.stderr.strip()[-200:]}"
        for archive in Path(scratch).glob("*.tar.gz"):
            with tarfile.open(archive) as opened:
                opened.extractall(scratch, filter="data")
            next(path for path in Path(scratch).iterdir() if path.is_dir()).rename(into)
        try:
            into.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another run was faster; its copy is the same
                raise
    return target


@functools.cache
def packed_by(library: str) -> dict[str, Path]:
    """The folders that a library wrote, by case."""
    found = _installed(library)
    if isinstance(found, str):
        pytest.skip(found)
    out = Path(tempfile.mkdtemp(prefix=f"lorafold-{library}-"))
    environment = os.environ | {"PYTHONPATH": str(found), "AWQ": str(found), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _WRITE + SCRIPTS[library], str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {folder.name: folder for folder in sorted(out.iterdir())}
