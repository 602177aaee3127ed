"""Stochastic rounding: right on average, the same for each seed, and what a merged folder keeps with it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuned_models import MODULES, made_once, tuned_adapter, tuned_base, tuned_config

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export, plan_export
from lorafold.export.outputs.stochastic import round_at_random

base = made_once(tuned_base, bfloat16=True)
adapter = made_once(tuned_adapter, MODULES, 1e-5)  # a change of a tenth of a step of bfloat16


@pytest.mark.parametrize(("dtype", "step"), [("BF16", 2.0**-7), ("F16", 2.0**-10)])
def test_a_number_goes_up_as_often_as_it_lies_above_its_lower_neighbour(dtype: str, step: float) -> None:
    for part in (0.0, 0.1, 0.5, 0.9):
        for sign in (1, -1):
            block = np.full((100, 1000), sign * (1 + part * step), np.float32)
            rounded = np.abs(round_at_random(block, dtype, "t", 0, seed=3))
            assert set(np.unique(rounded).tolist()) <= {1.0, 1 + step}
            assert np.mean(rounded > 1) == pytest.approx(part, abs=0.006)  # four standard deviations


def test_small_numbers_of_f16_have_steps_of_one_size() -> None:
    block = np.full((100, 1000), 2.25 * 2.0**-24, np.float32)
    rounded = round_at_random(block, "F16", "t", 0, seed=0) * 2.0**24
    assert set(np.unique(rounded).tolist()) == {2.0, 3.0} and rounded.mean() == pytest.approx(2.25, abs=0.006)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rows_are_the_same_in_any_blocks_and_differ_by_seed_and_name(dtype: str) -> None:
    drawn = (np.random.default_rng(0).standard_normal((20, 37)) * 0.02).astype(np.float32)
    whole = round_at_random(drawn.copy(), dtype, "t", 0, seed=1)
    parts = [round_at_random(drawn[at : at + 7].copy(), dtype, "t", at, seed=1) for at in (0, 7, 14)]
    assert np.array_equal(np.concatenate(parts), whole)
    others = [round_at_random(drawn.copy(), dtype, name, 0, seed) for name, seed in (("t", 2), ("u", 1))]
    assert all(np.array_equal(other, whole) == (dtype == "F32") for other in others)
    fits = whole.astype(np.float16).astype(np.float32) if dtype == "F16" else whole
    assert np.array_equal(fits, whole)


def shares(out: Path) -> dict[str, Any]:
    manifest = json.loads((out / "lorafold.json").read_text())
    whole: dict[str, Any] = manifest["survival"]["models"]["the folder"]
    return whole


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_bfloat16_loses_a_small_change_and_says_so(base: Path, adapter: Path, tmp_path: Path) -> None:
    result = export(tuned_config(adapter, base, tmp_path / "out", format="folder", verify=True))
    said = dict(result.told)["survival"]
    assert shares(tmp_path / "out")["share"] < 0.5
    assert "of 8 tensors keep less than 90%" in said
    assert said.endswith(
        "fix: --dtype f32 keeps all of it, --rounding stochastic nearly all in the same size"
    )


def test_a_wider_type_or_chance_buys_it_back(base: Path, adapter: Path, tmp_path: Path) -> None:
    made: dict[str, dict[str, Any]] = {}
    for name, changes in {
        "f32": {"dtype": "f32"},
        "chance": {"rounding": "stochastic"},
        "again": {"rounding": "stochastic", "threads": 1, "max_memory": 400_000},
        "other": {"rounding": "stochastic", "seed": 1},
    }.items():
        result = export(
            tuned_config(adapter, base, tmp_path / name, format="folder", **{**changes, "verify": True})
        )
        assert result.proof.passed
        made[name] = shares(tmp_path / name)
    assert made["f32"]["share"] == pytest.approx(1) and made["f32"]["error"] < 0.01
    assert made["chance"]["share"] == pytest.approx(1, abs=0.05) and made["chance"]["error"] > 1
    assert digest(tmp_path / "chance") == digest(tmp_path / "again") != digest(tmp_path / "other")


def test_the_plan_rounds_as_the_export_will(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Nearest rounding would foretell the loss that chance buys back."""
    config = tuned_config(adapter, base, tmp_path / "out", format="folder", rounding="stochastic")
    (said,) = (text for label, text in plan_export(config) if label == "survival")
    share = float(re.search(r"([\d.]+)% of the adapter", said)[1])  # type: ignore[index]
    assert share == pytest.approx(100, abs=8)
    assert "--rounding stochastic" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rounding": "stochastic"},
            r"--rounding: only the 16-bit .* fix: choose --format folder, or --keep-",
        ),
        ({"format": "folder", "seed": -1}, "--seed: expected a number from 0 on, got -1"),
        ({"seed": 3}, "--seed: this has no meaning for --format gguf"),
    ],
)
def test_where_it_means_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig("a", out=Path("out"), **changes)
