"""What a run is, said before it begins, by `--plan` too: counts, memory, time, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_run

from lorafold.errors import UsageError
from lorafold.train import TrainConfig, plan_training, train
from lorafold.train.estimate import memory_line


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


# r · (in + out) over the seven linear layers of a layer, two layers (tests/support/tiny_base.py).
TRAINED = 8 * 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))


def test_a_run_begins_with_two_lines(config: TrainConfig) -> None:
    said: list[str] = []
    result = train(config, say=said.append)
    data, model = said
    assert re.fullmatch(
        r"data: 14 examples, ([\d,]+) tokens, 0 cut at the end; 8 steps of 4 examples, 2 epochs", data
    )
    found = re.search(r"([\d,]+) trained weights of ([\d,]+); memory: about ([\d.]+) of", model)
    assert found and int(found[1].replace(",", "")) == TRAINED
    assert model.endswith("GiB on cpu: fits")
    # What a process with torch holds is most of it: the estimate is of the measured peak's size.
    peak = max(row["memory_gib"] for row in result.records if "memory_gib" in row)
    assert 0.4 * peak < float(found[3]) < 2 * peak


def test_a_plan_says_all_and_leaves_nothing(config: TrainConfig, tmp_path: Path) -> None:
    asked = dataclasses.replace(config, plan=True, out=None, eval_split=0.2, max_length=48)
    lines = dict(plan_training(asked))
    assert re.match(r"11 sequences, \d+ tokens, \d+ trained; \d+ cut at the end", lines["data"])
    assert lines["run"] == "8 steps of 4 examples, 2.7 epochs"
    assert lines["trained"].startswith(f"{TRAINED:,} trained weights of ")
    assert re.fullmatch(r"[\d.]+ of [\d.]+ GiB on cpu: fits", lines["memory"])
    assert re.fullmatch(r"about .+ for all steps, estimated from 3 timed steps", lines["time"])
    assert not list(tmp_path.iterdir())


def test_weights_in_4_bit_count_as_weights(config: TrainConfig) -> None:
    asked = dataclasses.replace(config, plan=True, out=None, max_steps=1)
    plain, packed = (dict(plan_training(dataclasses.replace(asked, method=m))) for m in ("lora", "qlora"))
    assert packed["trained"] == plain["trained"]


@pytest.mark.parametrize(("evaluation", "forwards"), [(0.0, 2), (0.2, 3)])
def test_of_long_steps_one_is_enough(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, evaluation: float, forwards: int
) -> None:
    """A step that lasts longer than all that is timed ends the timing; of an evaluation a batch is taken."""
    from lorafold.train.fast.forward import Forward

    computed, loss = [0], Forward.loss

    def counted(self: Forward, batch: Any) -> Any:
        computed[0] += 1
        return loss(self, batch)

    monkeypatch.setattr(Forward, "loss", counted)
    monkeypatch.setattr("lorafold.train.plan._ENOUGH", 0.0)
    asked = dataclasses.replace(config, plan=True, out=None, eval_split=evaluation)
    assert dict(plan_training(asked))["time"].endswith("estimated from 1 timed step")
    assert computed[0] == forwards  # two batches a step


def test_a_base_larger_than_the_memory_is_not_loaded(config: TrainConfig, tmp_path: Path) -> None:
    base = tmp_path / "large"
    base.mkdir()
    for path in Path(config.base).iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    size = 8 << 40  # 8 TiB of zeros, none of them on the disk
    rows = size // 4 // 1024
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}})
    with open(base / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        try:
            file.truncate(8 + len(header) + rows * 4096)
        except OSError:
            pytest.skip("this disk has no files of 8 TiB")
    lines = dict(plan_training(dataclasses.replace(config, plan=True, base=str(base))))
    assert re.fullmatch(
        r"about 8192\.0 of [\d.]+ GiB on cpu: does not fit \(the base's weights alone\)", lines["memory"]
    )
    assert "choose --method qlora" in lines["fix"] and "time" not in lines


def test_a_plan_needs_base_and_data() -> None:
    with pytest.raises(UsageError, match="--data"):
        plan_training(TrainConfig(base="demo", plan=True))


def test_training_is_no_plan(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match=r"fix: call lorafold\.train\.plan_training"):
        train(dataclasses.replace(config, plan=True))


def test_a_plan_is_made_by_one(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a plan is made by one process; fix: start it without torchrun"):
        plan_training(dataclasses.replace(config, plan=True))


@pytest.mark.parametrize(
    ("needed", "room", "says"),
    [
        (3 << 30, 8 << 30, "about 3.0 of 8.0 GiB on cuda: fits"),
        (15 << 29, 8 << 30, "about 7.5 of 8.0 GiB on cuda: may not fit"),
        (9 << 30, 8 << 30, "about 9.0 of 8.0 GiB on cuda: does not fit"),
        (9 << 30, 0, "about 9.0 GiB on cuda"),
    ],
)
def test_whether_it_fits(needed: int, room: int, says: str) -> None:
    assert memory_line(needed, room, "cuda") == says
