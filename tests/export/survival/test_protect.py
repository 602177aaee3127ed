"""`--keep-delta`: what falls short is raised and nothing else, the result keeps what was asked and loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGMLQuantizationType as Type
from oracles import llama_logits
from tuned_models import (
    MODULES,
    found_in,
    made_once,
    on_a_grid,
    tuned_adapter,
    tuned_base,
    tuned_config,
    types_in,
)

from lorafold.errors import UsageError
from lorafold.export import export, plan_export, verify
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.inputs import open_inputs
from lorafold.export.outputs.gguf import plan_gguf_output
from lorafold.export.survival.ladder import measure
from lorafold.export.survival.protect import Raised
from lorafold.export.survival.share import Survival

grid = made_once(tuned_base, on_a_grid)
adapter = made_once(tuned_adapter, MODULES, 5e-4)


@pytest.mark.slow
def test_what_falls_short_is_raised_and_nothing_else(grid: Path, adapter: Path, tmp_path: Path) -> None:
    export(tuned_config(adapter, grid, tmp_path / "plain", quant="Q4_K_S"))
    lost = found_in(tmp_path / "plain", "m-Q4_K_S.gguf")
    short = {name for name, each in lost.items() if not 0.9 <= each["share"] <= 1.1}
    assert short and min(each["share"] for each in lost.values()) < 0.5
    made = export(tuned_config(adapter, grid, tmp_path / "kept", quant="Q4_K_S", keep_delta=0.9))
    assert dict(made.lines())["raised"].startswith(f"{len(short)} tensors of m-Q4_K_S.gguf, to keep 90%")
    kept = found_in(tmp_path / "kept", "m-Q4_K_S.gguf")
    model = json.loads((tmp_path / "kept/lorafold.json").read_text())["survival"]["models"]["m-Q4_K_S.gguf"]
    was = {one["tensor"]: one for one in model["before it was raised"]}
    assert was.keys() == short
    assert all(one["share"] == pytest.approx(lost[name]["share"]) for name, one in was.items())
    assert all(0.9 <= each["share"] <= 1.1 and each["rows"] == each["of"] for each in kept.values())
    before, after = (types_in(tmp_path / place / "m-Q4_K_S.gguf") for place in ("plain", "kept"))
    assert {name for name in before if before[name] != after[name]} == short
    assert len(llama_logits(tmp_path / "kept/m-Q4_K_S.gguf", [65, 66, 67])) == 3  # llama.cpp takes it
    # The plan that `verify` makes anew chooses the same types, or it would read the file wrongly.
    checks = {check.name: check.verdict for check in verify(tmp_path / "kept").checks}
    assert checks["tensors m-Q4_K_S.gguf"] == "passed"


def test_what_it_costs_is_what_the_file_grows_by() -> None:
    """Each tensor is filled up to 32 bytes: three rows of Q4_0 are 54 bytes and take 64."""
    tensor = MappedTensor("blk.0.ffn_up.weight", (3, 32))
    kept = Survival(tensor.name, "", 1.0, 0.0, 1.0, 3, 3, 1.0)
    assert Raised(tensor, Type.Q4_0, Type.Q5_0, kept, kept).more == 96 - 64
    assert Raised(tensor, Type.Q4_0, Type.Q4_1, kept, kept).more == 0


def test_each_gets_the_cheapest_type_that_keeps_enough(grid: Path, adapter: Path, tmp_path: Path) -> None:
    """Every smaller type, asked for by hand for the same tensor, keeps too little or errs more."""
    name, smaller = "blk.1.ffn_down.weight", ("IQ4_XS", "Q4_0", "IQ4_NL", "Q4_1", "Q5_K", "Q5_0", "Q5_1")
    export(tuned_config(adapter, grid, tmp_path / "plain", quant="Q4_K_S"))
    export(tuned_config(adapter, grid, tmp_path / "kept", quant="Q4_K_S", keep_delta=0.9))
    before, after = (found_in(tmp_path / place, "m-Q4_K_S.gguf")[name] for place in ("plain", "kept"))
    assert before["type"] == "Q4_K" and after["type"] != "Q4_K"
    bits = {kind: 8 * size / width for kind, (width, size) in gguf.GGML_QUANT_SIZES.items()}
    tried = []
    for kind in smaller:
        if not bits[Type.Q4_K] <= bits[Type[kind]] < bits[Type[after["type"]]]:
            continue
        tried.append(kind)
        out = tmp_path / kind
        export(tuned_config(adapter, grid, out, quant="Q4_K_S", tensor_type=(f"{name}={kind}",)))
        one = found_in(out, "m-Q4_K_S.gguf")[name]
        assert not 0.9 <= one["share"] <= 1.1 or one["error"] > before["error"], kind
    assert tried


def test_a_type_of_the_same_size_is_taken_only_if_it_errs_less(grid: Path, tmp_path: Path) -> None:
    """Of a larger change Q4_0 and IQ4_NL keep enough too, with a larger error than Q4_K had."""
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 1e-3)
    settings = tuned_config(adapter, grid, tmp_path / "out", quant="Q4_K_S", keep_delta=0.9)
    inputs = open_inputs(settings)
    output = plan_gguf_output(inputs, settings)
    raised = {one.tensor.name: one for one in output.raised["Q4_K_S"]}
    one = raised["blk.1.ffn_up.weight"]
    found = measure(one.tensor, [Type.Q4_0, Type.IQ4_NL], inputs.source, border=0.9)
    assert all(each.share > 0.9 and each.error > one.survived.error for each in found.values())
    assert one.before == Type.Q4_K and one.after == Type.Q5_K
    assert one.more == one.tensor.rows * (176 - 144)  # bytes of a block of 256: Q5_K's and Q4_K's


def test_the_plan_says_what_was_raised_and_why(grid: Path, adapter: Path, tmp_path: Path) -> None:
    lines = plan_export(tuned_config(adapter, grid, tmp_path / "out", quant="Q4_K_S", keep_delta=0.9))
    said = next(text for label, text in lines if label == "raised")
    assert "tensors of m-Q4_K_S.gguf, to keep 90% of the adapter's change in each: " in said
    raised = next(text for label, text in lines if label == "  blk.*.ffn_down.weight")
    assert raised.startswith("2 × Q4_K to ") and "would survive, now" in raised
    grid_line = dict(lines)["grid"]
    assert grid_line.startswith("the base's weights lie on a grid (4 bits in blocks of 32; 8 of 8 tensors)")
    assert "Q8_0" in grid_line.partition("; here ")[2].partition(" keep it")[0]
    assert "Q4_K (" in grid_line.partition(" keep it")[2]


def test_trained_weights_need_nothing(adapter: Path, tmp_path: Path) -> None:
    base = tuned_base(tmp_path / "base")
    lines = dict(plan_export(tuned_config(adapter, base, tmp_path / "out", quant="Q4_K_S", keep_delta=0.5)))
    assert lines["raised"].startswith("nothing in m-Q4_K_S.gguf: every tensor keeps 50%")
    assert "grid" not in lines and "noise in no direction" in lines["survival"]


def test_a_type_that_was_chosen_by_hand_stays(grid: Path, adapter: Path, tmp_path: Path) -> None:
    by_hand = ("ffn_down=Q4_K",)
    settings = tuned_config(
        adapter, grid, tmp_path / "out", quant="Q4_K_S", keep_delta=0.9, tensor_type=by_hand
    )
    result = export(settings)
    assert types_in(tmp_path / "out/m-Q4_K_S.gguf")["blk.0.ffn_down.weight"] == "Q4_K"
    assert any("or leave out --tensor-type" in text for label, text in result.told if label == "survival")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_delta": 0.0}, r"--keep-delta: expected a share .* got 0.0; fix: 0.9 is a good choice"),
        ({"keep_delta": 1.5}, "--keep-delta: expected a share"),
        ({"keep_delta": 0.9, "format": "folder"}, "no meaning for --format folder; fix: .*--dtype f32"),
    ],
)
def test_shares_and_options_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig("a", out=Path("out"), **changes)
