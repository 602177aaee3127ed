"""`--fit` and `--max-kl`: sizes are met, figures are true, the file loads, none is worse than plain."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import llama_logits
from tuned_models import (
    HIDDEN,
    MODULES,
    SHAPES,
    found_in,
    made_once,
    on_a_grid,
    size_of,
    tuned_adapter,
    tuned_base,
    tuned_config,
    types_in,
    with_own_code,
)

from lorafold.cli import main
from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.fitting.fit import calibration_texts
from lorafold.export.inputs import open_inputs

pytest.importorskip("torch")


base = made_once(tuned_base)
adapter = made_once(tuned_adapter, MODULES, 5e-3)


@pytest.fixture(scope="module")
def plain(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fill") / "plain"
    export(tuned_config(adapter, base, out, quant=("F32", "Q4_K_M")))
    return out


@pytest.fixture(scope="module")
def fitted(base: Path, adapter: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fill") / "fitted"
    export(tuned_config(adapter, base, out, fit=size_of(plain, "Q4_K_M")))
    return out


def mixture(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "lorafold.json").read_text())["mixtures"]
    return next(iter(found.values()))


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.slow
def test_the_figures_are_those_of_llama_cpp(base: Path, adapter: Path, plain: Path, fitted: Path) -> None:
    """The KL of both mixtures as llama.cpp computes the written files, from the F32 file."""
    told = {one["name"]: one["KL"] for one in mixture(fitted)["tried"]}
    assert list(told) == ["Q4_K_M", "Q4_K_M, fitted"]
    inputs = open_inputs(tuned_config(adapter, base, fitted))
    rows = inputs.source.tensors["model.embed_tokens.weight"].rows
    chats = calibration_texts(inputs, None, rows).checked
    for path, name in ((plain, "Q4_K_M"), (fitted, "Q4_K_M, fitted")):
        distances = []
        for chat in chats:
            exact, rounded = (
                log_softmax(llama_logits(file, chat.ids))[chat.start - 1 : -1]
                for file in (plain / "m-F32.gguf", path / "m-Q4_K_M.gguf")
            )
            distances.append((np.exp(exact) * (exact - rounded)).sum(1))
        # llama.cpp rounds activations too
        assert float(np.concatenate(distances).mean()) == pytest.approx(told[name], rel=0.15), name


@pytest.mark.slow
def test_at_equal_size_it_is_not_worse_and_loads(plain: Path, fitted: Path) -> None:
    made = fitted / "m-Q4_K_M.gguf"
    assert made.stat().st_size <= size_of(plain, "Q4_K_M")
    found = mixture(fitted)
    before, after = (one["KL"] for one in found["tried"])
    assert found["taken"] == (after < before)
    assert (types_in(made) != types_in(plain / "m-Q4_K_M.gguf")) == found["taken"]
    assert len(llama_logits(made, [65, 66, 67])) == 3


@pytest.mark.slow
def test_verify_takes_the_types_as_they_were_chosen(fitted: Path) -> None:
    checks = {check.name: check.verdict for check in verify(fitted).checks}
    assert checks["tensors m-Q4_K_M.gguf"] == "passed"


@pytest.mark.slow
def test_the_smallest_within_a_distance(base: Path, adapter: Path, fitted: Path, tmp_path: Path) -> None:
    most = mixture(fitted)["tried"][0]["KL"]
    export(tuned_config(adapter, base, tmp_path / "out", max_kl=most))
    (made,) = (tmp_path / "out").glob("*.gguf")
    found = mixture(tmp_path / "out")
    within = [one for one in found["tried"][1:] if one["KL"] <= most]
    assert made.stat().st_size <= max(one["size"] for one in within)
    assert any(abs(one["size"] - made.stat().st_size) < 4096 for one in within)
    smaller = [one for one in found["tried"][1:] if one["size"] < made.stat().st_size - 4096]
    assert smaller and all(one["KL"] > most for one in smaller)
    assert types_in(made) == types_in(made) | found["types"]
    assert verify(tmp_path / "out").checks[0].verdict == "passed"


@pytest.mark.slow
def test_the_cure_names_what_was_asked_for(base: Path, adapter: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"fit": 450_000, "tensor_type": ("ffn_down=Q8_0",)}
    for keep, cure in ((None, ""), (0.9, " or a smaller --keep-delta,")):
        config = tuned_config(adapter, base, tmp_path / "out", keep_delta=keep, **settings)
        with pytest.raises(UsageError, match=f"fix: give at least that,{cure} or leave out --tensor-type$"):
            plan_export(config)


@pytest.mark.slow
def test_a_distance_that_nothing_reaches_tells_the_least(base: Path, adapter: Path, tmp_path: Path) -> None:
    settings = tuned_config(adapter, base, tmp_path / "out", max_kl=1e-12)
    with pytest.raises(UsageError, match=r"--max-kl: no mixture comes as near as 1e-12 nats: the least is "):
        plan_export(settings)


@pytest.mark.slow
def test_the_change_is_kept_too(adapter: Path, tmp_path: Path) -> None:
    """On a grid of Q4_1 that type costs least of its size, and rounds the change away."""
    base = tuned_base(tmp_path / "base", on_a_grid)
    export(tuned_config(adapter, base, tmp_path / "plain", quant="Q4_K_M"))
    both = {"keep_delta": 0.9, "quant": "Q4_K_M"}
    export(tuned_config(adapter, base, tmp_path / "out", fit=size_of(tmp_path / "plain", "Q4_K_M"), **both))
    assert all(0.9 <= one["share"] <= 1.1 for one in found_in(tmp_path / "out", "m-Q4_K_M.gguf").values())


@pytest.mark.slow
def test_what_keeps_the_change_is_not_worse_than_the_recipe(tmp_path: Path) -> None:
    """A base on the grid of Q4_1: that type rounds almost nothing, any other of its size much more."""
    base = tuned_base(tmp_path / "base", on_a_grid)
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 2.5e-4)
    alike: dict[str, Any] = {"quant": "Q4_1", "tensor_type": ("token_embd=Q8_0",)}
    export(tuned_config(adapter, base, tmp_path / "plain", **alike))
    size = size_of(tmp_path / "plain", "Q4_1")
    with pytest.raises(UsageError) as caught:
        plan_export(tuned_config(adapter, base, tmp_path / "out", fit=size, keep_delta=0.9, **alike))
    told = re.fullmatch(
        rf"--fit: no mixture of {size:,} bytes that keeps 90% of the adapter's change in each tensor is as "
        r"good as Q4_1: mean KL (\S+) beside (\S+); fix: leave out --fit or --keep-delta",
        str(caught.value),
    )
    assert told and float(told[1]) > float(told[2])


@pytest.mark.slow
def test_a_recipe_that_is_near_enough_and_smaller_stays(
    base: Path, adapter: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafold.export.fitting.fit._STEPS", 0)  # nothing but the largest is found
    export(tuned_config(adapter, base, tmp_path / "out", max_kl=10.0, quant="Q4_K_M"))
    assert not mixture(tmp_path / "out")["taken"]
    assert types_in(tmp_path / "out/m-Q4_K_M.gguf") == types_in(plain / "m-Q4_K_M.gguf")


def test_a_layer_that_does_not_fit_into_memory(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafold.export.fitting.model.memory_available", lambda: 1_000_000)
    lines = plan_export(tuned_config(adapter, base, tmp_path / "out", fit="700KB"))
    said = [text for label, text in lines if label == "fit"]
    layer = 4 * (sum(math.prod(shape) for shape in SHAPES.values()) + 2 * HIDDEN)
    assert f"only raised, by the rounding error alone: a layer takes {2 * layer / 1e6:.0f} MB" in said[0]
    assert said[1].startswith("m-IQ4_XS.gguf is IQ4_XS with ")


@pytest.mark.slow
def test_with_a_matrix_that_is_collected_for_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text('{"prompt": "hello there", "completion": "good day to you"}\n' * 3)
    settings = tuned_config(adapter, base, tmp_path / "out", fit="700KB", imatrix_data=data)
    export(settings)
    assert (tmp_path / "out/imatrix.gguf").is_file()
    assert "chats.jsonl and general chats" in mixture(tmp_path / "out")["why"]
    assert verify(tmp_path / "out").checks[0].verdict == "passed"


def test_without_an_answer_types_are_only_raised(adapter: Path, tmp_path: Path) -> None:
    other = with_own_code(tuned_base(tmp_path / "base"))
    lines = plan_export(tuned_config(adapter, other, tmp_path / "out", fit="700KB", trust_remote_code=True))
    said = [text for label, text in lines if label == "fit"]
    assert said[0].startswith("types of m-IQ4_XS.gguf are only raised, by the rounding error alone: ")
    assert said[1].startswith("m-IQ4_XS.gguf is IQ4_XS with ")


def test_too_small_tells_the_least(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(adapter), "--base", str(base), "--out", str(tmp_path / "out"), "--plan"]
    assert main([*command, "--fit", "0.1MB"]) == 2
    said = capsys.readouterr().err
    told = re.search(r"--fit: no mixture is as small as 100,000 bytes: the least is ([\d,]+); fix:", said)
    assert told
    least = int(told[1].replace(",", ""))
    assert main([*command, "--fit", str(least - 1)]) == 2
    assert f"the least is {least:,}; fix" in capsys.readouterr().err
    assert main([*command, "--fit", "much"]) == 2
    assert "--fit: expected a size, got 'much'; fix: for example 4.5GB" in capsys.readouterr().err


@pytest.mark.slow
def test_a_size_below_every_recipe_is_met(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The smallest recipe keeps its largest types for a few tensors, which a mixture need not."""
    export(tuned_config(adapter, base, tmp_path / "least", quant="Q2_K", verify=False))
    size = size_of(tmp_path / "least", "Q2_K") * 9 // 10
    export(tuned_config(adapter, base, tmp_path / "out", fit=size))
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.stat().st_size <= size and len(llama_logits(file, [65, 66, 67])) == 3
    found = mixture(tmp_path / "out")
    assert found["taken"] and found["tried"][0]["size"] > size >= found["tried"][1]["size"]
    assert verify(tmp_path / "out").passed is not False


@pytest.mark.slow
def test_a_size_below_every_recipe_needs_the_model(adapter: Path, tmp_path: Path) -> None:
    other = with_own_code(tuned_base(tmp_path / "other"))
    settings = tuned_config(adapter, other, tmp_path / "out", fit="430KB", trust_remote_code=True)
    with pytest.raises(
        UsageError, match=r"--fit: llama.cpp's mixtures take [\d,]+ bytes at least, and smaller"
    ):
        plan_export(settings)


@pytest.mark.parametrize(
    ("text", "number"),
    [("4.5GB", 4_500_000_000), ("4.5 GiB", 4_831_838_208), ("700MB", 700_000_000), ("123456", 123_456)],
)
def test_sizes_as_they_are_written(text: str, number: int) -> None:
    assert ExportConfig("a", out=Path("out"), fit=text).fit_bytes == number
    assert ExportConfig("a", out=Path("out"), split_max_size=text).split_bytes == number
    assert ExportConfig("a", out=Path("out"), split_max_size=number).split_bytes == number  # type: ignore[arg-type]


def test_a_size_of_parts_that_is_none() -> None:
    with pytest.raises(UsageError, match="--split-max-size: expected a size, got 'large'; fix: for example"):
        ExportConfig("a", out=Path("out"), split_max_size="large")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": "1GB", "quant": ("Q8_0", "Q4_0")}, "--fit: the types of one file are chosen; fix: give one"),
        ({"max_kl": 0.1, "quant": ("Q8_0", "Q4_0")}, "--max-kl: the types of one file are chosen; fix:"),
        ({"fit": "1GB", "split_max_size": 200_000}, "--fit: parts have headers of their own; fix: leave out"),
        ({"fit": "1GB", "max_kl": 0.1}, "--max-kl: --fit asks for a size already; fix: leave out one"),
        (
            {"max_kl": 0.1, "onto": "x.gguf"},
            "--max-kl: a file's own tensors are not measured; fix:",
        ),
        ({"fit": "1GB", "format": "folder"}, "--fit: .*no meaning for --format folder"),
        ({"max_kl": 0.1, "format": "folder"}, "--max-kl: .*no meaning for --format folder"),
        ({"fit": "10KB"}, "--fit: expected at least 100,000 bytes, got 10000"),
        ({"max_kl": 0.0}, "--max-kl: expected a distance in nats, above 0, got 0.0; fix: for example 0.02"),
        ({"max_kl": float("nan")}, "--max-kl: expected a distance in nats"),
    ],
)
def test_options_that_do_not_go_with_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig("a", out=Path("out"), **changes)
