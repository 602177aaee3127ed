"""The program from Python: text for paths and lists, results that print, a model that is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny_chat

import lorafold
from lorafold.api.settle import settle
from lorafold.errors import UsageError
from lorafold.export import ExportConfig
from lorafold.serve import ChatConfig
from lorafold.train import TrainConfig


def test_text_is_taken_for_paths_and_lists() -> None:
    config = ExportConfig(Path("ad"), out="gg", quant="q4_k_m,Q8_0", chats="c.txt")  # type: ignore[arg-type]
    assert (config.source, config.out, config.chats) == ("ad", Path("gg"), Path("c.txt"))
    assert [name.upper() for name in config.quant] == ["Q4_K_M", "Q8_0"]
    train = TrainConfig(base="b", data="d,1.json", out="o", target_modules=["q_proj,v_proj"])  # type: ignore[arg-type]
    assert (train.data, train.out, train.target_modules) == (("d,1.json",), Path("o"), ("q_proj", "v_proj"))
    assert TrainConfig(target_modules=(r".*(q|v)_proj{1,2}",)).target_modules == (r".*(q|v)_proj{1,2}",)
    assert ChatConfig(Path("a.gguf")).models == ("a.gguf",)  # type: ignore[arg-type]
    settle(config)  # what is settled stays
    assert config.out == Path("gg")


def test_commas_on_the_command_line(tmp_path: Path) -> None:
    from lorafold.cli import main

    words = ["export", str(tiny_chat.folder()), "-o", str(tmp_path / "out"), "-q", "F32,Q8_0", "--no-verify"]
    assert main(words) == 0
    manifest = json.loads((tmp_path / "out" / "lorafold.json").read_text())
    assert manifest["config"]["quant"] == ["F32", "Q8_0"]


def test_an_export_and_a_question_from_python(tmp_path: Path) -> None:
    result = lorafold.export(str(tiny_chat.folder()), out=str(tmp_path / "gg"), quant="Q8_0", verify=False)
    assert "made in" in str(result) and "<table>" in result._repr_html_()
    assert not result.proof.passed
    (file,) = (tmp_path / "gg").glob("*.gguf")
    with lorafold.load(file, system="Be brief.") as model:
        answer = model.ask("Who are you?", temperature=0, max_tokens=5)
        assert answer == model.ask([{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=5)
        assert file.stem in repr(model)
        with pytest.raises(UsageError, match="unexpected keyword argument 'warmth'"):
            model.ask("x", warmth=1)


def test_a_stage_called_with_its_config_is_the_same(tmp_path: Path) -> None:
    config = ExportConfig(str(tiny_chat.folder()), out=tmp_path / "gg", quant=("F32",), verify=False)
    seen: list[str] = []
    assert lorafold.export(config, lambda step, *_: seen.append(step)).folder == tmp_path / "gg"
    again = lorafold.export(
        str(tiny_chat.folder()),
        out=tmp_path / "again",
        quant="F32",
        verify=False,
        progress=lambda step, *_: seen.append(step),
    )
    assert seen and (again.folder / "lorafold.json").is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [("qant", "here it is quant"), ("output_dir", "here it is out"), ("x", "help(ExportConfig)")],
)
def test_an_argument_that_a_stage_does_not_have(name: str, told: str) -> None:
    with pytest.raises(TypeError, match=rf"lorafold\.export\(\) .* '{name}': .*{re.escape(told)}"):
        lorafold.export("adapter", **{name: "Q8_0"})
