"""`--keep-delta` and `--fit` with `--onto`: the same types and rows as natively; what is left alone stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tuned_models import MODULES, found_in, on_a_grid, tuned_adapter, tuned_base, tuned_config

from lorafold.errors import UsageError
from lorafold.export import export, plan_export, verify
from lorafold.export.config import ExportConfig
from lorafold.export.onto.model import BaseGguf


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base on a grid, an adapter, and the base as GGUF."""
    home = tmp_path_factory.mktemp("onto")
    base = tuned_base(home / "base", on_a_grid)
    adapter = tuned_adapter(home / "adapter", MODULES, 5e-4)
    plain = ExportConfig(
        str(base), out=home / "gguf", quant=("F32", "Q4_K_S"), name="b", verify=False, modelfile=False
    )
    export(plain)
    return {
        "base": base,
        "adapter": adapter,
        "F32": home / "gguf/b-F32.gguf",
        "Q4_K_S": home / "gguf/b-Q4_K_S.gguf",
    }


def rows(path: Path) -> dict[str, tuple[str, bytes]]:
    model = BaseGguf.open(path)
    return {n: (t.type.name, model.packed(n, 0, t.rows).tobytes()) for n, t in model.tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "more"),
    [("Q4_K_S", {"keep_delta": 0.9}), ("", {"fit": "1.2MB"}), ("", {"fit": "2MB", "keep_delta": 0.9})],
)
def test_types_are_those_of_the_native_way(
    places: dict[str, Path], tmp_path: Path, quant: str, more: dict[str, object]
) -> None:
    own = tmp_path / "own"  # it brings its own code: --fit cannot ask it either, and only raises
    shutil.copytree(places["base"], own)
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "modeling.Mine"}}))
    for way, base, onto in (("native", own, None), ("onto", places["base"], places["F32"])):
        settings = tuned_config(
            places["adapter"],
            base,
            tmp_path / way,
            trust_remote_code=True,
            quant=(quant,) if quant else (),
            onto=onto,
            **more,
        )
        export(settings)
    (native,), (ours,) = ((tmp_path / way).glob("*.gguf") for way in ("native", "onto"))
    assert native.name == ours.name and rows(native) == rows(ours)
    if "fit" in more:
        assert ours.stat().st_size <= (2_000_000 if more["fit"] == "2MB" else 1_200_000)


@pytest.mark.slow
def test_of_a_quantized_file_only_what_falls_short_changes_its_type(
    places: dict[str, Path], tmp_path: Path
) -> None:
    common = (places["adapter"], places["base"])
    export(tuned_config(*common, tmp_path / "plain", quant=(), onto=places["Q4_K_S"]))
    export(tuned_config(*common, tmp_path / "kept", quant=(), onto=places["Q4_K_S"], keep_delta=0.9))
    (plain,), (kept,) = ((tmp_path / way).glob("*.gguf") for way in ("plain", "kept"))
    lost, now = found_in(tmp_path / "plain", plain.name), found_in(tmp_path / "kept", kept.name)
    short = {name for name, each in lost.items() if not 0.9 <= each["share"] <= 1.1}
    assert short and all(0.9 <= each["share"] <= 1.1 for each in now.values())
    before, after, file = rows(plain), rows(kept), rows(places["Q4_K_S"])
    assert {name for name in before if before[name][0] != after[name][0]} == short
    assert all(after[name] == file[name] for name in file if name not in lost)
    checks = {check.name: check.verdict for check in verify(tmp_path / "kept").checks}
    assert checks[f"tensors {kept.name}"] == checks[f"kept {kept.name}"] == "passed"


def test_a_plan_tells_what_is_raised(places: dict[str, Path], tmp_path: Path) -> None:
    settings = tuned_config(
        places["adapter"], places["base"], tmp_path / "out", quant=(), onto=places["Q4_K_S"], keep_delta=0.9
    )
    assert "Q4_K" in dict(plan_export(settings))["raised"]


def test_a_size_needs_a_file_that_can_become_smaller(places: dict[str, Path], tmp_path: Path) -> None:
    settings = tuned_config(
        places["adapter"], places["base"], tmp_path / "out", quant=(), onto=places["Q4_K_S"], fit="1MB"
    )
    with pytest.raises(
        UsageError, match=r"--fit: b-Q4_K_S\.gguf is quantized.*keeps its size; fix: give an F32"
    ):
        export(settings)
