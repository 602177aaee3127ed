"""The numba kernels write ggml's bytes: on fixed and on found material, in any chunks and threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import lorafold
from lorafold.errors import InputError, NumericError
from lorafold.export.quant import ggml
from lorafold.export.quant import quantize as kernels
from lorafold.export.survival.ladder import LADDER

# A kernel that is not in numba's cache takes seconds to compile: the common mixtures are in the quick suite.
QUICK = {(Type.F16, False), (Type.Q8_0, False), (Type.Q4_K, False), (Type.Q6_K, False), (Type.Q4_K, True)}
VARIANTS = [
    (type, weighted)
    for type, (_, _, has_weights) in kernels._KERNELS.items()
    for weighted in ([False, True] if has_weights else [False])
]
each_kernel = pytest.mark.parametrize(
    ("type", "weighted"),
    [pytest.param(*v, marks=[] if v in QUICK else [pytest.mark.slow]) for v in VARIANTS],
    ids=[f"{type.name}{'-weighted' * weighted}" for type, weighted in VARIANTS],
)


def numba_bytes(
    block: NDArray[np.float32], type: Type, weights: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """What the kernel writes; fails where ggml would silently take over."""
    out = kernels.quantize(block, type, weights)
    states = {(s.type, s.weighted): s for s in kernels.kernel_report()}
    state = states[type, weights is not None and kernels._KERNELS[type][2]]
    assert (state.backend, state.reason) == ("numba", "")
    return out


def rows_of_all_kinds(cols: int) -> NDArray[np.float32]:
    """Rows that a model may hold, and rows that none should."""
    random = np.random.default_rng(cols)

    def normal(rows: int = 6) -> NDArray[np.float64]:
        return random.standard_normal((rows, cols))

    def powers(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        return 10.0 ** random.uniform(low, high, shape)

    outliers = normal() * 0.01
    outliers[:, ::97] *= 1000
    sparse = np.where(random.random((6, cols)) < 0.9, 0, normal())
    denormal = np.zeros((6, cols))
    denormal[:, 5], denormal[:, 200] = 1e-45, 3e-38
    kinds = [
        normal(24) * 0.02,
        np.zeros((2, cols)),
        normal() * powers(-12, 5, 6, 1),
        normal() * powers(-12, 4, 6, cols),
        normal() * powers(-5, 1, 6, cols // 32).repeat(32, axis=1),
        normal() * powers(-5, 1, 6, cols // 256).repeat(256, axis=1),
        normal() * 1e-30,
        normal() * 1e-40,
        np.full((2, cols), -0.5),
        np.full((2, cols), 0.7),
        -np.abs(normal()) - 5,
        np.abs(normal()) + 1000,
        random.integers(-3, 4, (6, cols)) / 4,
        np.linspace(-1, 1, cols)[None],
        outliers,
        sparse,
        denormal,
    ]
    return np.concatenate(kinds).astype(np.float32)


def huge_rows(cols: int) -> NDArray[np.float32]:
    """Rows whose squares overflow; F16 refuses them."""
    random = np.random.default_rng(cols)
    return np.concatenate(
        [random.uniform(-1, 1, (4, cols)) * size for size in (1e5, 1e12, 1e18, 1e30, 3.4e38)]
    ).astype(np.float32)


def weights_of_all_kinds(cols: int) -> Iterator[NDArray[np.float32]]:
    random = np.random.default_rng(cols + 1)
    uniform = random.random(cols).astype(np.float32)
    yield uniform
    yield np.where(random.random(cols) < 0.3, 0, uniform**8 * 100).astype(np.float32)
    yield np.zeros(cols, np.float32)
    yield (np.arange(cols) % 33 == 0).astype(np.float32)
    yield uniform * np.float32(1e-38)
    yield uniform * np.float32(1e30)


@each_kernel
@pytest.mark.parametrize("cols", [256, 768, 4096])
def test_bytes_are_ggmls(type: Type, weighted: bool, cols: int) -> None:
    block = rows_of_all_kinds(cols)
    block = block.clip(-65504, 65504) if type == Type.F16 else np.concatenate([block, huge_rows(cols)])
    if cols == 4096:
        block = block[::3].copy()
    for weights in weights_of_all_kinds(cols) if weighted else [None]:
        differing = np.flatnonzero(
            (numba_bytes(block, type, weights) != ggml.quantize(block, type, weights)).any(axis=1)
        )
        assert differing.size == 0, f"rows {differing}"


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-60000, 60000, width=32)
blocks = st.one_of(
    hnp.arrays(np.float32, (3, 256), elements=moderate),
    # One seed and one power of ten per sub-block reach further than single numbers do.
    st.tuples(
        st.integers(0, 2**32 - 1), hnp.arrays(np.float32, (3, 16), elements=st.floats(-9, 4, width=16))
    ).map(
        lambda pair: (
            np.random.default_rng(pair[0]).standard_normal((3, 256)).astype(np.float32)
            * (np.float32(10) ** pair[1]).repeat(16, axis=1)
        )
    ),
)


@each_kernel
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(block=blocks, weights=hnp.arrays(np.float32, 256, elements=st.floats(0, 1e6, width=32)))
def test_bytes_are_ggmls_for_whatever_hypothesis_finds(
    type: Type, weighted: bool, block: NDArray[np.float32], weights: NDArray[np.float32]
) -> None:
    chosen = weights if weighted else None
    np.testing.assert_array_equal(numba_bytes(block, type, chosen), ggml.quantize(block, type, chosen))


@pytest.mark.slow
@each_kernel
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    block=hnp.arrays(np.float32, (2, 256), elements=finite),
    weights=hnp.arrays(np.float32, 256, elements=finite),
)
def test_bytes_are_ggmls_over_all_of_float32(
    type: Type, weighted: bool, block: NDArray[np.float32], weights: NDArray[np.float32]
) -> None:
    if type == Type.F16:
        block = block.clip(-65504, 65504)
    chosen = np.abs(weights) if weighted else None
    np.testing.assert_array_equal(numba_bytes(block, type, chosen), ggml.quantize(block, type, chosen))


@each_kernel
def test_any_chunks_give_the_same_bytes(type: Type, weighted: bool) -> None:
    block = rows_of_all_kinds(768)[:40].clip(-65504, 65504)
    weights = next(weights_of_all_kinds(768)) if weighted else None
    whole = numba_bytes(block, type, weights)
    for size in (1, 3, 7, 16, 39):
        parts = [kernels.quantize(block[i : i + size], type, weights) for i in range(0, 40, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("cols", [1, 3, 17, 100, 255])
def test_f16_takes_any_width(cols: int) -> None:
    block = rows_of_all_kinds(768)[:20, :cols].copy()
    out = numba_bytes(block, Type.F16, None)
    assert out.tobytes() == block.astype(np.float16).tobytes()


def test_f16_rounds_every_half_and_both_its_neighbours() -> None:
    # Each finite binary16, the ties between them, and the float32 on either side of both.
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    points = np.concatenate([halves, ties])
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(1e9)), np.nextafter(points, np.float32(-1))]
    )
    block = np.concatenate([points, -points])[None]
    assert numba_bytes(block, Type.F16, None).tobytes() == block.astype(np.float16).tobytes()


@pytest.mark.parametrize("type", [Type.Q4_K, Type.Q6_K], ids=lambda t: t.name)
def test_threads_at_once_give_the_same_bytes(type: Type) -> None:
    block = rows_of_all_kinds(768)
    expected = numba_bytes(block, type, None)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not np.array_equal(kernels.quantize(block, type), expected):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_read_only_rows_and_types_without_a_kernel() -> None:
    block = rows_of_all_kinds(256)[:8]
    block.flags.writeable = False
    for type in (Type.Q4_K, Type.F16, Type.Q4_0, Type.BF16, Type.F32):
        np.testing.assert_array_equal(kernels.quantize(block, type), ggml.quantize(block, type))
    assert kernels.quantize(block[:0], Type.Q4_K).shape == (0, 144)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", [Type.Q4_K, Type.Q4_0, Type.F32], ids=lambda t: t.name)
def test_nan_and_infinity_are_named_with_their_place(bad: float, type: Type) -> None:
    block = np.zeros((4, 256), np.float32)
    block[2, 77] = bad
    with pytest.raises(
        NumericError, match=rf"^blk\.0\.attn_q\.weight, row 1002, column 77: the value is {bad}; fix: "
    ):
        kernels.quantize(block, type, at="blk.0.attn_q.weight", first_row=1000)


def test_what_does_not_fit_f16_is_refused() -> None:
    block = np.full((1, 4), 65519.9, np.float32)
    assert (kernels.quantize(block, Type.F16).view(np.float16) == 65504).all()
    block[0, 3] = -65520
    with pytest.raises(NumericError, match=r"row 0, column 3: -65520 does not fit F16; fix: choose BF16"):
        kernels.quantize(block, Type.F16)


@pytest.mark.parametrize("type", [kind for kind in LADDER if kind not in (Type.F16, Type.F32)])
def test_what_makes_a_scale_infinite_is_refused(type: Type) -> None:
    """Just below the border all that ggml writes is finite; far above it Q4_0 is infinite and Q6_K zero."""
    dice = np.random.default_rng(0)
    block = dice.uniform(-1, 1, (4, 256)).astype(np.float32)
    block[0, 0], block[1, 0], block[2:] = 1, -1, np.abs(block[2:]) * np.float32(-0.5)
    block *= np.float32(0.99 * kernels._limit(type))
    found = ggml.dequantize(kernels.quantize(block, type, at="t"), type, 256)
    assert np.isfinite(found).all() and np.abs(found - block).max() < 0.4 * np.abs(block).max()
    block[3, 7] = 1e30
    with pytest.raises(NumericError, match=rf"t, row 13, column 7: 1e\+30 does not fit {type.name}, whose"):
        kernels.quantize(block, type, at="t", first_row=10)
    kernels.quantize(block, type)  # its bytes are ggml's all the same


def test_refusals_name_the_tensor() -> None:
    with pytest.raises(InputError, match=r"^output\.weight: Q4_K stores blocks of 256"):
        kernels.quantize(np.zeros((1, 96), np.float32), Type.Q4_K, at="output.weight")


def report_in_a_new_process(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


QUANTIZE_AND_REPORT = """
import numpy as np
from lorafold.export.quant import ggml
from lorafold.export.quant import quantize as kernels
block = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
kernels.compile_kernels([ggml.Type.Q8_0])
assert np.array_equal(kernels.quantize(block, ggml.Type.Q8_0), ggml.quantize(block, ggml.Type.Q8_0))
(state,) = kernels.kernel_report()
print(state.backend, state.reason)
"""


def test_without_numba_ggml_does_the_work_and_the_report_says_so() -> None:
    out = report_in_a_new_process("import sys; sys.modules['numba'] = None" + QUANTIZE_AND_REPORT)
    assert out.startswith("ggml ") and "pip install numba" in out


def test_where_numba_cannot_compile_ggml_does_the_work() -> None:
    out = report_in_a_new_process(QUANTIZE_AND_REPORT, NUMBA_DISABLE_JIT="1")
    assert out.startswith("ggml ") and len(out.split()) > 1


def test_a_cache_folder_that_cannot_be_used_only_costs_time(tmp_path: Path) -> None:
    # A file in the place of the cache folder: nothing can be kept there, even by root.
    (tmp_path / "cache").write_text("")
    out = report_in_a_new_process(QUANTIZE_AND_REPORT, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert out.strip() == "numba"


@pytest.mark.slow
def test_a_broken_cache_only_costs_time(tmp_path: Path) -> None:
    assert report_in_a_new_process(QUANTIZE_AND_REPORT, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "numba"
    kept = [p for p in tmp_path.rglob("*") if p.suffix in {".nbi", ".nbc"}]
    assert kept
    for path in kept:
        path.write_bytes(b"\x80\x04broken")
    assert report_in_a_new_process(QUANTIZE_AND_REPORT, NUMBA_CACHE_DIR=str(tmp_path)).strip() == "numba"


@pytest.mark.slow
def test_kernels_that_were_compiled_apart_do_not_call_each_others_code(tmp_path: Path) -> None:
    """Each is cached by a process of its own, where numba counts its functions from the same number on."""
    code = (
        "import sys, numpy as np\nfrom gguf import GGMLQuantizationType as Type\n"
        "from lorafold.export.quant.quantize import quantize, kernel_report\n"
        "for name in sys.argv[1:]: quantize(np.ones((1, 256), np.float32), Type[name])\n"
        "print(*(state.backend + state.reason for state in kernel_report()))\n"
    )
    for names in (["Q4_K"], ["Q5_K"], ["Q2_K"], ["Q4_K", "Q5_K", "Q2_K"]):
        told = report_in_a_new_process(code, *names, NUMBA_CACHE_DIR=str(tmp_path)).split()
        assert told == ["numba"] * len(names)


# A wrong kernel for Q8_0, by the module that is changed: the check at first use finds it, if it is compiled.
CHANGES = {
    "plain": ("load(largest, 0) / 127.0", "load(largest, 0) / 126.0"),
    "rounding": ("return half | sign", "return (half + 1) | sign"),
    "memory": ("builder.trunc(args[2], narrow)", "builder.trunc(builder.add(args[2], args[2]), narrow)"),
    "lanes": ('lambda b, v: _call(b, f"llvm.fabs.v{LANES}f32", v)', "lambda b, v: b.fadd(v, v)"),
}


def copied_package(folder: Path) -> Path:
    """A copy of the package as far as the kernels need it; returns the folder of the kernels."""
    root = Path(lorafold.__file__).resolve().parent
    ignored = shutil.ignore_patterns("train", "serve", "__pycache__")
    shutil.copytree(root, folder / "lorafold", ignore=ignored)
    return folder / "lorafold" / "export" / "quant" / "kernels"


@pytest.mark.slow
def test_a_change_in_any_kernel_module_is_compiled(tmp_path: Path) -> None:
    """numba's disk cache looks at the file of the outermost function alone; ours must not."""
    kernels_folder = copied_package(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{QUANTIZE_AND_REPORT}"

    def report() -> str:
        return report_in_a_new_process(code, NUMBA_CACHE_DIR=str(tmp_path / "cache")).strip()

    assert report() == "numba"
    for module, (right, wrong) in CHANGES.items():
        path = kernels_folder / f"{module}.py"
        text = path.read_text()
        assert text.count(right) == 1, module
        path.write_text(text.replace(right, wrong))
        assert report() == "ggml its bytes differ from ggml's on this machine", module
        path.write_text(text)
    assert report() == "numba"


@pytest.mark.slow
def test_every_kernel_module_is_in_the_caches_key(tmp_path: Path) -> None:
    kernels_folder = copied_package(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from lorafold.export.quant.kernels.lanes import SOURCES; print(SOURCES)"
    )
    modules = sorted(kernels_folder.glob("*.py"))
    assert len(modules) > len(CHANGES)
    keys = [report_in_a_new_process(code)]
    for path in modules:
        path.write_text(path.read_text() + "# changed\n")
        keys.append(report_in_a_new_process(code))
    assert len(set(keys)) == len(modules) + 1
