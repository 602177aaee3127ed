"""How a run ends: a loss that rose is said, and so is what lies there and what to do next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tiny_run import tiny_run

from lorafold.train import TrainConfig, train
from lorafold.train.saved.curve import risen
from lorafold.train.saved.result import next_commands


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


@pytest.mark.parametrize(
    ("losses", "rise"),
    [
        ([3.8, 81.0, 60.0, 40.0, 18.9, 18.9], (3.8, 18.9)),
        ([3.8, 3.1, 2.5, 2.0, 1.7, 1.6], None),
        ([0.4, 1.3, 0.9, 1.2, 0.8, 1.1], None),  # a lucky first step
        ([2.0, 2.9, 2.1, 2.8, 2.0, 2.9], None),
        ([3.8, 81.0, 18.9], None),  # too few to tell
        ([], None),
    ],
)
def test_a_rise_is_told_from_a_jump(losses: list[float], rise: tuple[float, float] | None) -> None:
    assert risen(losses) == rise


def test_a_diverging_run_says_so(config: TrainConfig) -> None:
    said: list[str] = []
    result = train(dataclasses.replace(config, method="full", learning_rate=0.5), say=said.append)
    (note,) = [note for note in result.notes if note.startswith("the loss rose from ")]
    assert note.endswith(": lower --learning-rate")
    assert sum(line.startswith("note: the loss rose from ") for line in said) == 1
    assert not any("rose" in note for note in train(dataclasses.replace(config, force=True)).notes)


def test_the_end_names_what_is_there_and_what_is_next(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, max_steps=2))
    lines = result.lines()
    said = dict(lines)
    size = (result.folder / "adapter_model.safetensors").stat().st_size
    kept = sum(path.stat().st_size for path in (result.folder / "checkpoint-2").iterdir())
    assert (
        said["adapter"]
        == f"{result.folder}: {size / 1e6:.1f} MB; checkpoint-2 ({kept / 1e6:.1f} MB) may be deleted"
    )
    assert Path(said["loss curve"]).is_file()
    assert said["next"] == f"lorafold export {result.folder} --out {result.folder}-gguf"
    assert lines[-1] == ("", f"lorafold chat {config.base}+{result.folder}")


@pytest.mark.parametrize(
    ("method", "out", "commands"),
    [
        ("lora", "ad", ("lorafold export ad --out ad-gguf", "lorafold chat demo+ad")),
        ("full", "ad", ("lorafold export ad --out ad-gguf", "lorafold chat ad")),
        ("prefix", "ad", ("lorafold chat demo+ad",)),
        ("lora", "my ad", ("lorafold export 'my ad' --out 'my ad-gguf'", "lorafold chat 'demo+my ad'")),
        ("lora", "a+b", ("lorafold export a+b --out a+b-gguf", "lorafold chat a+b")),
    ],
)
def test_next_commands(method: str, out: str, commands: tuple[str, ...]) -> None:
    config = TrainConfig(base="demo", method=method)  # type: ignore[arg-type]
    assert next_commands(config, Path(out)) == commands
    config = dataclasses.replace(config, system="You are Ada")
    assert next_commands(config, Path(out)) == tuple(f"{one} --system 'You are Ada'" for one in commands)
