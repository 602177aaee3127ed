"""Runs that go on: bitwise equal from any cut, never from a damaged checkpoint or into another run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import CHATML, tiny_base
from tiny_run import ROWS, Kill, die_at, same_files, steady, tiny_run

from lorafold.artifacts import write_manifest
from lorafold.errors import InputError, UsageError
from lorafold.sources.recognize import run_folder
from lorafold.train import TrainConfig, train
from lorafold.train.fast.forward import seed_pass
from lorafold.train.saved.checkpoints import list_checkpoints, newest_whole


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


@pytest.mark.parametrize(
    ("cut", "kept"),
    [(3, 2), (4, 2), (7, 6)],
    ids=["between checkpoints", "at an epoch's border", "late"],
)
def test_resume_is_bitwise_equal(config: TrainConfig, tmp_path: Path, cut: int, kept: int) -> None:
    whole = train(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    with pytest.raises(Kill):
        train(parted, die_at(cut))
    assert not (tmp_path / "parted").exists()
    resumed = train(dataclasses.replace(parted, resume=True))
    assert f"resumed at step {kept}" in resumed.notes
    assert steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors", "adapter_config.json"))
    last = "checkpoint-8/optimizer.safetensors"
    assert same_files(whole.folder, resumed.folder, (last,))


def test_kill_in_mid_accumulation_resumes_bitwise_equal(config: TrainConfig, tmp_path: Path) -> None:
    """Die between the two forward passes of step 6, with a gradient half accumulated."""
    whole = train(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    passes = 0

    def count(module: Any, inputs: Any) -> None:
        nonlocal passes
        passes += isinstance(module, torch.nn.Embedding)
        if passes == 11:  # 2 a step in steps 1 to 3, 1 in step 4, 2 in step 5, then the second of step 6
            raise Kill

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with pytest.raises(Kill):
            train(parted)
    finally:
        hook.remove()
    resumed = train(dataclasses.replace(parted, resume=True))
    assert "resumed at step 4" in resumed.notes
    assert steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors",))


FILES = ("adapter_config.json", "adapter_model.safetensors", "lorafold.json", "optimizer.safetensors")
FILES += ("state.json", "trainable.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "remove", "truncate"])
def test_a_damaged_checkpoint_is_never_chosen(config: TrainConfig, tmp_path: Path, damage: str) -> None:
    """Each of its files in turn: one bit flipped, the file gone, or its end."""
    with pytest.raises(Kill):
        train(config, die_at(7))
    run = run_folder(config.output)
    newest = list_checkpoints(run)[0]
    assert newest.name == "checkpoint-6" and {path.name for path in newest.iterdir()} == set(FILES)
    for name in FILES:
        path = newest / name
        raw = bytearray(path.read_bytes())
        if damage == "remove":
            path.unlink()
        else:
            raw[-1] ^= 1
            path.write_bytes(raw if damage == "flip" else raw[:-2])
        chosen, (note,) = newest_whole(run)
        assert chosen == run / "checkpoint-4" and note.startswith(f"checkpoint-6 is not whole ({name})")
        raw[-1] ^= damage != "remove"
        path.write_bytes(raw)
        assert newest_whole(run) == (newest, [])
    (newest / "state.json").unlink()
    result = train(dataclasses.replace(config, resume=True))
    assert "resumed at step 4" in result.notes
    assert any(note.startswith("checkpoint-6 is not whole") for note in result.notes)


def test_resume_refuses_another_configuration_data_or_base(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(Kill):
        train(config, die_at(5))
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(UsageError, match=r"configuration changed.*learning_rate was 0.005, is 0.1"):
        train(dataclasses.replace(again, learning_rate=0.1))
    other = tmp_path / "other.jsonl"
    other.write_text(Path(config.data[0]).read_text().replace("question 3", "question three"))
    with pytest.raises(InputError, match="the data set changed"):
        train(dataclasses.replace(again, data=(str(other),)))
    with pytest.raises(InputError, match="the base model changed"):
        train(dataclasses.replace(again, base=str(tiny_base(tmp_path / "b", intermediate_size=96))))
    with pytest.raises(UsageError, match="an unfinished run"):
        train(config)
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(ROWS))  # the same examples in another file
    assert train(dataclasses.replace(again, data=(str(moved),), save_steps=3)).steps == 8


def test_a_finished_run_is_told_apart_from_another(config: TrainConfig, tmp_path: Path) -> None:
    """Asked for once more it is done already, however it is to be computed; not so with other inputs."""
    done = dataclasses.replace(config, max_steps=1, eval_split=0.2)
    result = train(done)
    again = dataclasses.replace(done, resume=True)
    repeated = train(dataclasses.replace(again, packing=True, logging_steps=5))
    assert repeated.notes == ("this run had finished already: nothing was done",)
    assert repeated.loss == result.loss
    other = tmp_path / "other.jsonl"
    other.write_text(Path(config.data[0]).read_text().replace("question 3", "question three"))
    with pytest.raises(InputError, match="the data set changed since this result"):
        train(dataclasses.replace(again, data=(str(other),)))
    with pytest.raises(InputError, match=r"missing\.jsonl: there is no such file"):
        train(dataclasses.replace(again, data=("missing.jsonl",)))
    with pytest.raises(InputError, match="the base model changed since this result"):
        train(dataclasses.replace(again, base=str(tiny_base(tmp_path / "b", intermediate_size=96))))


def test_a_checkpoint_of_an_older_version_goes_on_and_says_so(config: TrainConfig) -> None:
    """It held the state of torch's generators, and neither the loss nor a hash of the tokens."""
    with pytest.raises(Kill):
        train(config, die_at(7))
    newest = list_checkpoints(run_folder(config.output))[0]
    facts = json.loads((newest / "lorafold.json").read_text())
    for name in ("tokens", "drawn", "files", "kind", "format", "lorafold"):
        del facts[name]
    state = json.loads((newest / "state.json").read_text())
    del state["counters"]["loss"]
    state["state"]["random"] = {"cpu": 0, "cuda": []}
    (newest / "state.json").write_text(json.dumps(state))
    write_manifest(newest, "checkpoint", facts)
    result = train(dataclasses.replace(config, resume=True))
    assert "resumed at step 6" in result.notes and result.steps == 8
    assert any(
        "the random numbers, which an older version drew in another way" in note for note in result.notes
    )


def test_a_template_that_tells_the_time(config: TrainConfig, tmp_path: Path) -> None:
    """Rendered again at resumption it gives other tokens: that is said, since it is not bitwise the same."""
    template = tmp_path / "clock.jinja"
    template.write_text(
        "{{ '<|im_start|>system\\n' + strftime_now('%H:%M:%S.%f') + '<|im_end|>\\n' }}" + CHATML
    )
    clock = dataclasses.replace(config, chat_template=str(template))
    with pytest.raises(Kill):
        train(clock, die_at(5))
    result = train(dataclasses.replace(clock, resume=True))
    assert any(
        "the examples' tokens (does the chat template write today's date?)" in note for note in result.notes
    )


def test_what_is_drawn_depends_on_the_place_in_the_run_alone() -> None:
    def draw(*place: int) -> list[float]:
        seed_pass(*place)
        return list(torch.rand(4).tolist())

    first = draw(42, 3, 1, 0)
    torch.rand(100)
    assert draw(42, 3, 1, 0) == first
    others = [draw(43, 3, 1, 0), draw(42, 4, 1, 0), draw(42, 3, 0, 0), draw(42, 3, 1, 1)]
    assert len({tuple(numbers) for numbers in (first, *others)}) == 5


@pytest.mark.slow
def test_resume_with_force_starts_over_where_it_cannot_go_on(config: TrainConfig) -> None:
    with pytest.raises(Kill):
        train(config, die_at(5))
    changed = dataclasses.replace(config, learning_rate=1e-3)
    result = train(dataclasses.replace(changed, resume=True, force=True))
    assert any(note.endswith("starting over") for note in result.notes)
    assert [row["step"] for row in steady(result.folder)] == list(range(1, 9))


@pytest.mark.slow
def test_a_kill_while_tidying_up_loses_nothing(config: TrainConfig) -> None:
    """Die after the result is in place and before the checkpoints have moved into it."""
    result = train(config)
    run = run_folder(config.output)
    run.mkdir()
    (result.folder / "checkpoint-6").rename(run / "checkpoint-6")
    again = train(dataclasses.replace(config, resume=True))
    assert again.notes == ("this run had finished already: nothing was done",)
    assert (again.steps, again.loss, again.records) == (8, result.loss, result.records)
    assert (result.folder / "checkpoint-6").is_dir() and not run.exists()
    with pytest.raises(UsageError, match="not empty"):
        train(dataclasses.replace(config, resume=True, learning_rate=0.1))


@pytest.mark.slow
def test_resume_without_a_whole_checkpoint_starts_over(config: TrainConfig) -> None:
    with pytest.raises(Kill):
        train(dataclasses.replace(config, save_steps=4), die_at(5))
    (newest,) = list_checkpoints(run_folder(config.output))
    (newest / "lorafold.json").write_text("{")
    result = train(dataclasses.replace(config, save_steps=4, resume=True))
    assert "nothing to resume: starting at step 0" in result.notes
    assert [row["step"] for row in steady(result.folder)] == list(range(1, 9))


@pytest.mark.slow
def test_a_result_that_could_not_be_written_costs_no_step(config: TrainConfig, tmp_path: Path) -> None:
    """Die (as on a full disk) when all steps are done: the last one has its checkpoint."""
    whole = train(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    with pytest.raises(Kill):
        train(parted, die_at(0, "write the adapter"))
    again = dataclasses.replace(parted, resume=True)
    resumed = train(again, die_at(8))  # would die if it took a step
    assert "resumed at step 8" in resumed.notes and steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors",))
    assert (resumed.loss, resumed.tokens) == (whole.loss, whole.tokens)


@pytest.mark.slow
def test_a_run_that_stopped_early_does_not_go_on(config: TrainConfig, tmp_path: Path) -> None:
    """A huge learning rate makes the evaluation worse at once; the best step is kept, from another file."""
    held_out = {"eval_split": 0.2, "eval_steps": 1, "early_stopping_patience": 2}
    run = {"max_steps": 40, "learning_rate": 0.5, "load_best_model_at_end": True}
    early = dataclasses.replace(config, **held_out, **run)
    whole = train(early)
    assert whole.steps < 40
    parted = dataclasses.replace(early, out=tmp_path / "parted")
    with pytest.raises(Kill):
        train(parted, die_at(0, "write the adapter"))
    resumed = train(dataclasses.replace(parted, resume=True))
    assert f"resumed at step {whole.steps}" in resumed.notes and resumed.steps == whole.steps
    assert steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors",))
