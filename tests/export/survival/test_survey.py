"""What survives, as figures: against a hand computation, and against the files as gguf-py reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from adapter_folders import PREFIX, adapter_folder
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from tiny_base import tiny_tokenizer
from tuned_models import (
    GGUF_NAMES,
    MODULES,
    change_of,
    found_in,
    made_once,
    tuned_adapter,
    tuned_base,
    tuned_config,
)

from lorafold.export import ExportConfig, export, plan_export
from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.export.inputs import open_inputs
from lorafold.export.outputs.output import plan_output
from lorafold.export.survival.ladder import measure
from lorafold.export.survival.rows import read_rows, sample_rows
from lorafold.export.survival.share import Survival, Tally, Whole, together
from lorafold.export.survival.survey import Survey
from lorafold.export.survival.words import sentence

base = made_once(tuned_base)
adapter = made_once(tuned_adapter, MODULES, 5e-4)


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """The values in a GGUF, by another reader."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_the_figures_of_a_row_by_hand() -> None:
    """Steps of 1: of the changes 0.25 and 0.75 the first vanishes, the second becomes 1."""
    base, tuned = np.array([[3.0, 5.0]], np.float32), np.array([[3.25, 5.75]], np.float32)
    tally = Tally(1)
    tally.add(slice(0, 1), base, tuned, np.round(base), np.round(tuned))
    survival = tally.survival("t", "whole numbers", of=1)
    assert survival is not None and survival.exact
    assert survival.change == pytest.approx(0.25**2 + 0.75**2)
    assert survival.share == pytest.approx(1 * 0.75 / (0.25**2 + 0.75**2))
    assert survival.error == pytest.approx(math.sqrt((0.25**2 + 0.25**2) / (0.25**2 + 0.75**2)))
    assert survival.uncertainty == 0


def test_a_tensor_that_does_not_change_has_no_share() -> None:
    tally = Tally(1)
    same = np.ones((1, 4), np.float32)
    tally.add(slice(0, 1), same, same, same, same)
    assert tally.survival("t", "F32", of=1) is None and together([]) is None


def test_more_than_all_of_a_change_is_explained() -> None:
    wholes = {share: Whole(share, 0.0, 0.5, 2, True) for share in (1.04, 1.0, 0.97)}
    told = {share: sentence(whole, [], "…") for share, whole in wholes.items()}
    meaning = "(above 100%: a weight that crosses the middle between two steps goes a whole step)"
    assert [meaning in each for each in told.values()] == [True, False, False]
    assert told[1.04].startswith("104% of the adapter's change is still there after rounding; ")
    off = Survival("blk.0.ffn_down.weight", "Q4_K", 1.3, 0.0, 2.0, 8, 8, 1.0)
    assert meaning in sentence(wholes[0.97], [off], "…")


def test_several_tensors_count_by_their_change() -> None:
    one = Survival("a", "Q8_0", 1.0, 0.0, 2.0, 4, 4, change=3.0)
    two = Survival("b", "Q8_0", 0.2, 0.1, 4.0, 2, 8, change=1.0)
    whole = together([one, two])
    assert whole is not None and (whole.count, whole.exact) == (2, False)
    assert whole.share == pytest.approx(0.8) and whole.uncertainty == pytest.approx(0.025)
    assert whole.error == pytest.approx(math.sqrt((3 * 4 + 16) / 4))


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q4_K_M", "Q3_K_M", "BF16"])
def test_figures_are_those_of_the_files_as_gguf_py_reads_them(
    quant: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    """⟨tuned file - base's file, Δ⟩ / ⟨Δ, Δ⟩, with Δ = B · A by numpy, over all rows of each tensor."""
    export(tuned_config(adapter, base, tmp_path / "tuned", quant=quant))
    export(ExportConfig(str(base), out=tmp_path / "plain", quant=(quant,), name="m", verify=False))
    export(tuned_config(adapter, base, tmp_path / "exact", quant="F32"))
    tuned, plain, exact = (
        weights_of(tmp_path / place / f"m-{kind}.gguf")
        for place, kind in (("tuned", quant), ("plain", quant), ("exact", "F32"))
    )
    found = found_in(tmp_path / "tuned", f"m-{quant}.gguf")
    assert len(found) == 2 * len(MODULES)
    for layer in range(2):
        for module, short in GGUF_NAMES.items():
            name = f"blk.{layer}.{short}.weight"
            change = change_of(adapter, module, layer)
            size = float((change * change).sum())
            share = float(((tuned[name] - plain[name]) * change).sum()) / size
            error = math.sqrt(float(np.square(tuned[name] - exact[name]).sum()) / size)
            assert found[name]["rows"] == found[name]["of"] == len(change)
            assert found[name]["share"] == pytest.approx(share, rel=1e-4)
            assert found[name]["error"] == pytest.approx(error, rel=1e-4)
            assert found[name]["change"] == pytest.approx(size, rel=1e-4)


def survey_of(adapter: Path, base: Path, out: Path, weights: int | None, **changes: Any) -> Survey:
    settings = tuned_config(adapter, base, out, **changes)
    survey = plan_output(open_inputs(settings), settings).survey(weights)
    assert survey is not None
    return survey


def test_sampled_rows_come_near_all_rows(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Within four standard errors, which are smaller the more rows are measured."""
    found = []
    for weights in (10_000, 40_000, 10_000_000):
        survey = survey_of(adapter, base, tmp_path / "out", weights, quant="Q4_0")
        survey.sample()
        found.append(survey.found()["m-Q4_0.gguf"])
    few, more, all_ = found
    assert all(one.exact for one in all_) and not any(one.exact for one in few)
    for one, two, whole in zip(few, more, all_, strict=True):
        assert abs(one.share - whole.share) <= 4 * one.uncertainty
        assert one.error == pytest.approx(whole.error, rel=0.2)
        assert two.uncertainty < one.uncertainty
    assert any(one.share != whole.share for one, whole in zip(few, all_, strict=True))


def test_the_pass_finds_what_the_plan_finds_on_the_same_rows(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Whatever the size of the blocks and the number of threads."""
    planned = survey_of(adapter, base, tmp_path / "out", 10_000, quant="Q4_K_M")
    planned.sample()
    for threads, memory in ((1, 200_000_000), (3, 600_000)):
        settings = tuned_config(
            adapter, base, tmp_path / "out", quant="Q4_K_M", threads=threads, max_memory=memory
        )
        output = plan_output(open_inputs(settings), settings)
        survey = output.survey(10_000)
        folder = tmp_path / f"{threads}"
        folder.mkdir()
        output.write(folder, lambda *_: None, survey)
        assert survey is not None and survey.found() == planned.found()


def test_rows_that_are_sampled() -> None:
    """All of a small tensor; of a large one runs of eight, spread evenly, the same each time."""
    tensor = MappedTensor("a", (4096, 64), (RowRange("a", 0, 4096),))
    assert sample_rows(tensor, 4096 * 64).tolist() == list(range(4096))
    rows = sample_rows(tensor, 64 * 64)
    assert len(rows) == 64 and rows.tolist() == sorted(set(rows.tolist()))
    assert (rows.reshape(-1, 8) - rows[::8, None] == np.arange(8)).all()
    assert (rows[::8] // 512).tolist() == list(range(8))
    assert sample_rows(tensor, 64 * 64).tolist() == rows.tolist()
    stack = MappedTensor("b", (40, 32, 64), transpose=True)
    assert set((sample_rows(stack, 10_000) // 32).tolist()) == {10, 30}


class Numbered:
    """Rows that hold their own number."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], 8, axis=1)


def test_rows_of_heads_are_read_in_llama_cpps_order() -> None:
    """A head's rows are interleaved, so one of them is read with its whole head."""
    source = RowRange("q", 0, 24)
    tensor = MappedTensor("q", (24, 8), (source,), op="interleave_rows", group=8, param=8)
    whole = read_rows(Numbered(), tensor, np.arange(24))
    assert whole[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    picked = np.array([1, 2, 9, 21])
    assert (read_rows(Numbered(), tensor, picked) == whole[picked]).all()


def test_pefts_rounding_loses_a_change_before_the_type_does(tmp_path: Path) -> None:
    """The change that is asked for is the adapter's own, not what is left of it in the sum in 16 bit."""
    base = tuned_base(tmp_path / "base", bfloat16=True)
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 1e-5)
    shares = {}
    for rounding in ("exact", "peft"):
        survey = survey_of(adapter, base, tmp_path / "out", None, quant="F32", rounding=rounding)
        survey.sample()
        whole = together(survey.found()["m-F32.gguf"])
        assert whole is not None
        shares[rounding] = whole.share
    assert shares["exact"] == pytest.approx(1) and 0.2 < shares["peft"] < 0.95


def test_a_base_that_no_adapter_changes_is_not_measured(base: Path, tmp_path: Path) -> None:
    settings = ExportConfig(str(base), out=tmp_path / "out", quant=("Q8_0",), verify=False)
    assert plan_output(open_inputs(settings), settings).survey() is None
    assert "survival" not in dict(plan_export(settings))
    export(settings)
    assert json.loads((tmp_path / "out/lorafold.json").read_text())["survival"]["models"] == {}


def test_types_are_rounded_with_their_importance_matrix(base: Path, adapter: Path, tmp_path: Path) -> None:
    survey = survey_of(adapter, base, tmp_path / "out", None, quant="Q4_0")
    plain = survey_of(adapter, base, tmp_path / "out", None, quant="Q4_0")
    dice = np.random.default_rng(0)
    survey.imatrix = {
        name: dice.random(one.tensor.cols).astype(np.float32) for name, one in survey.measured.items()
    }
    for each in (survey, plain):
        each.sample()
    one, other = (each.found()["m-Q4_0.gguf"][0] for each in (survey, plain))
    assert one.type == other.type == Type.Q4_0.name and one.share != other.share


@pytest.mark.slow
def test_weights_that_are_stored_transposed(tmp_path: Path) -> None:
    """GPT-2's Conv1D: the file's rows are the checkpoint's columns."""
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=tiny_tokenizer(tmp_path / "base"), n_embd=64, n_layer=1, n_head=4, n_positions=128
    )
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.generation_config = transformers.GenerationConfig()
    model.save_pretrained(tmp_path / "base")
    dice = np.random.default_rng(0)
    left = (dice.standard_normal((192, 4)) * 5e-4).astype(np.float32)
    right = dice.standard_normal((4, 64)).astype(np.float32)
    name = f"{PREFIX}transformer.h.0.attn.c_attn.lora_"
    factors = {f"{name}A.weight": right, f"{name}B.weight": left}
    settings = {"r": 4, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapter = adapter_folder(tmp_path / "adapter", factors, **settings)
    export(tuned_config(adapter, tmp_path / "base", tmp_path / "tuned", quant="Q4_0"))
    plain = ExportConfig(
        str(tmp_path / "base"), out=tmp_path / "plain", quant=("Q4_0",), name="m", verify=False
    )
    export(plain)
    tuned, base = (weights_of(tmp_path / place / "m-Q4_0.gguf") for place in ("tuned", "plain"))
    change, tensor = left.astype(np.float64) @ right, "blk.0.attn_qkv.weight"
    share = ((tuned[tensor] - base[tensor]) * change).sum() / (change * change).sum()
    assert found_in(tmp_path / "tuned", "m-Q4_0.gguf")[tensor]["share"] == pytest.approx(share, rel=1e-4)


def test_all_types_of_a_tensor_are_measured_in_one_reading(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The rows are read once, and a type that cannot hold the values is left out."""
    inputs = open_inputs(tuned_config(adapter, base, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensor, rows = MappedTensor("t", (512, 256), (RowRange(name, 0, 512),)), inputs.source.rows
    read: list[int] = []

    class Counted:
        base, tensors, touched = inputs.source.base, inputs.source.tensors, inputs.source.touched

        def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
            read.append(stop - start)
            return rows(name, start, stop) * np.float32(2e6)

    found = measure(tensor, [Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.F16], Counted(), border=math.inf)
    assert set(found) == {Type.Q8_0, Type.Q4_0, Type.Q4_K}
    assert sum(read) == tensor.rows and all(one.exact for one in found.values())
