"""`--fit` for a model that cannot be asked: at most the size, begins with a recipe, nowhere worse than it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import llama_logits
from tuned_models import (
    MODULES,
    found_in,
    made_once,
    on_a_grid,
    size_of,
    trained,
    tuned_adapter,
    types_in,
    with_own_code,
)
from tuned_models import tuned_base as plain_base
from tuned_models import tuned_config as plain_config

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export, plan_export, verify


def tuned_base(folder: Path, draw: Callable[..., Any] = trained) -> Path:
    return with_own_code(plain_base(folder, draw))


def tuned_config(adapter: Path, base: Path, out: Path, **changes: Any) -> ExportConfig:
    return plain_config(adapter, base, out, trust_remote_code=True, **changes)


base = made_once(tuned_base)
adapter = made_once(tuned_adapter, MODULES, 5e-4)


@pytest.fixture(scope="module")
def plain(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fill") / "plain"
    export(tuned_config(adapter, base, out, quant=("F32", "Q4_K_M")))
    return out


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.slow
def test_a_size_between_two_mixtures_is_used_and_no_tensor_is_worse(
    base: Path, adapter: Path, plain: Path, tmp_path: Path
) -> None:
    """Errors as gguf-py reads the files, on all rows."""
    room = size_of(plain, "Q4_K_M") * 105 // 100
    export(tuned_config(adapter, base, tmp_path / "out", fit=room))
    made = tmp_path / "out/m-Q4_K_M.gguf"
    smallest = 128 * 256 // 8  # bytes of a step by a bit in the smallest tensor
    assert room - 2 * smallest < made.stat().st_size <= room
    exact, before, after = (values(path) for path in (plain / "m-F32.gguf", plain / "m-Q4_K_M.gguf", made))
    changed = {
        name for name, kind in types_in(made).items() if kind != types_in(plain / "m-Q4_K_M.gguf")[name]
    }
    assert changed
    for name, wanted in exact.items():
        errors = [float(np.square(each[name] - wanted).sum()) for each in (before, after)]
        assert errors[1] < errors[0] if name in changed else errors[1] == errors[0], name
    assert len(llama_logits(made, [65, 66, 67])) == 3  # llama.cpp takes it


def test_at_the_size_of_a_mixture_it_is_that_mixture(
    base: Path, adapter: Path, plain: Path, tmp_path: Path
) -> None:
    export(tuned_config(adapter, base, tmp_path / "out", fit=size_of(plain, "Q4_K_M")))
    assert (tmp_path / "out/m-Q4_K_M.gguf").read_bytes() == (plain / "m-Q4_K_M.gguf").read_bytes()


@pytest.mark.slow
def test_the_recipe_to_begin_with_can_be_chosen(
    base: Path, adapter: Path, plain: Path, tmp_path: Path
) -> None:
    settings = tuned_config(
        adapter, base, tmp_path / "out", quant="Q3_K_M", fit=f"{size_of(plain, 'Q4_K_M') / 1e6:.6f}MB"
    )
    line = [text for label, text in plan_export(settings) if label == "fit"][-1]
    assert (
        line.startswith("m-Q3_K_M.gguf is Q3_K_M with ") and f"of {size_of(plain, 'Q4_K_M'):,} bytes" in line
    )
    export(settings)
    assert size_of(tmp_path / "out", "Q3_K_M") <= size_of(plain, "Q4_K_M")
    assert verify(tmp_path / "out").checks[0].verdict == "passed"


def test_what_is_kept_of_the_change_comes_first(adapter: Path, tmp_path: Path) -> None:
    base = tuned_base(tmp_path / "base", on_a_grid)
    export(tuned_config(adapter, base, tmp_path / "kept", quant="Q4_K_S", keep_delta=0.9))
    least = size_of(tmp_path / "kept", "Q4_K_S")
    both = {"quant": "Q4_K_S", "keep_delta": 0.9}
    export(tuned_config(adapter, base, tmp_path / "out", fit=least + 50_000, **both))
    assert least < size_of(tmp_path / "out", "Q4_K_S") <= least + 50_000
    found = found_in(tmp_path / "out", "m-Q4_K_S.gguf").values()
    assert all(0.9 <= each["share"] <= 1.1 for each in found)
    with pytest.raises(UsageError, match=rf"--fit: what --keep-delta raises .* give at least {least:,},"):
        plan_export(tuned_config(adapter, base, tmp_path / "no", fit=least - 1, **both))


def test_no_type_is_taken_that_loses_the_change(adapter: Path, tmp_path: Path) -> None:
    """On a grid of Q4_1 that type has the least error of its size, and rounds the change away."""
    base = tuned_base(tmp_path / "base", on_a_grid)
    export(tuned_config(adapter, base, tmp_path / "plain", quant="Q4_0"))
    room = size_of(tmp_path / "plain", "Q4_0") * 110 // 100
    export(tuned_config(adapter, base, tmp_path / "out", quant="Q4_0", fit=room))
    before, after = (found_in(tmp_path / place, "m-Q4_0.gguf") for place in ("plain", "out"))
    assert any(after[name]["type"] != before[name]["type"] for name in before)
    for name in before:
        lost = [abs(1 - each[name]["share"]) for each in (before, after)]
        assert lost[1] <= max(0.1, lost[0]), name
