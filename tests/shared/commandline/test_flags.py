"""The command line's tables: flags in groups, other programs' names, recipes by name, examples that exist."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest

from lorafold.cli import app, main
from lorafold.commandline.flags import COMMANDS, EXAMPLES, GROUPS
from lorafold.commandline.hints import ELSEWHERE, SYNONYMS, meant, names_of
from lorafold.commandline.recipes import known_recipes

ALL = [name for name in app if not name.startswith("-")]


def flags_of(command: str) -> list[str]:
    names = names_of(app, command)
    return [name for name in names if name.startswith("-")]


def off_anyway(command: str) -> set[str]:
    """Negatives that only overrule a recipe: they are taken, and help does not show them."""
    arguments = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    off = (argument for argument in arguments if argument.field_info.default is False)
    return {name for argument in off for name in argument.names if name.startswith("--no-")}


@pytest.mark.parametrize("command", GROUPS)
def test_every_flag_stands_in_a_group(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "─ Other ─" not in shown
    for title, fields in GROUPS[command].items():
        known = [argument.field_info.name for argument in app[command].assemble_argument_collection()]
        assert (f"─ {title} ─" in shown) == any(field in known for field in fields)


@pytest.mark.parametrize("command", ALL)
def test_help_fits_80_columns_without_broken_names(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    if command in GROUPS:
        off = off_anyway(command)
        broken = [flag for flag in flags_of(command) if not re.search(rf"[\s│]{re.escape(flag)}\s", shown)]
        assert set(broken) == off and not any(flag in shown for flag in off)
    for oddity in ("default: ()", "default: False", 'default: ""', "default: None", "('"):
        assert oddity not in shown
    # The lines of a text stand below each other: a docstring of two lines does not indent its second one.
    for entry in re.split(r"^│ (?=(?:\*  |   )?(?:--|[A-Z]+ ))", shown, flags=re.M):
        starts = [
            len(line) - len(line.lstrip("│ ")) for line in entry.splitlines()[1:] if line.startswith("│  ")
        ]
        assert len({start for start in starts if start > 6}) <= 1, entry


def test_commands_stand_in_the_order_of_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(COMMANDS) == sorted(ALL)
    assert main(["--help"]) == 0
    shown = re.findall(r"^│ ([a-z]+) ", capsys.readouterr().out, re.M)
    assert tuple(shown) == COMMANDS


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_name_what_there_is(command: str) -> None:
    for example in EXAMPLES[command]:
        words = shlex.split(example.partition("  ")[0].partition(" > ")[0])
        assert words[:2] == ["lorafold", command]
        assert len(example) <= 78  # two blanks before it: it stays on one line of 80 columns
        flags = [word for word in words if word.startswith("--")]
        known = flags_of(command) if command not in ("recipes", "models") else []
        assert set(flags) <= set(known)
        for before, name in itertools.pairwise(words):
            if before in ("--recipe", "show"):
                assert name in [recipe.name for recipe in known_recipes()]


def test_every_synonym_leads_to_a_flag_that_exists() -> None:
    everywhere = {name.lstrip("-") for command in GROUPS for name in flags_of(command)}
    for word, targets in SYNONYMS.items():
        assert set(targets) & everywhere and word not in targets, word
    assert not set(ELSEWHERE) & everywhere


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--lr", "1e-4"],
            "--lr: lorafold train has no such option; fix: here it is --learning-rate",
        ),
        (["train", "--output_dir", "x"], "fix: here it is --out"),
        (["train", "--fp16"], "here it is --dtype"),
        (["train", "--batch-size", "4"], "here it is --per-device-train-batch-size"),
        (["train", "--lora_r", "8"], "here it is --r"),
        (["train", "--task-type", "CAUSAL_LM"], "leave it out"),
        (["train", "--cpu"], "here it is --device-map"),
        (["train", "--learning-rat", "1"], "here it is --learning-rate"),
        (["train", "--zzz"], "fix: see lorafold train --help"),
        (["train"], "--base is missing; fix: add --base with its value"),
        (["chat", "m.gguf", "--temp", "1"], "here it is --temperature"),
        (["chat", "m.gguf", "--max-new-tokens", "1"], "here it is --max-tokens"),
        (["export", "x", "--output", "y"], "here it is --out"),
        (["export", "x", "y", "--out", "z"], "'y' is one word too many"),
        (["exprot", "x"], "there is no command 'exprot'; fix: here it is export"),
        (["version"], "there is no command 'version'; fix: here it is --version"),
        (["nothing"], "`lorafold --help` lists the commands"),
    ],
)
def test_the_hint_for_a_word_of_another_program(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_far_neighbours_are_not_suggested() -> None:
    """`--lr` once led to `--r`, which changes the rank."""
    assert meant("--zr", ["--r", "--lora-alpha"]) is None
    assert meant("--bsae", ["--base", "--name"]) == "here it is --base"  # two letters changed places
    assert meant("--bass", ["--base", "--name"]) is None
    assert meant("--model", ["--method", "--base"]) == "here it is --base"


def test_recipes_are_listed_shown_and_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for recipe in known_recipes():
        assert recipe.name in listed and recipe.about
        assert main(["recipes", "show", recipe.name]) == 0
        assert capsys.readouterr().out == recipe.text


def test_a_key_of_another_program_in_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1.0e-4\n")
    words = ["train", "--recipe", str(path), "--base", "x", "--data", "y", "--out", "z"]
    assert main(words) == 2
    assert "mine.yaml: lr: lorafold train has no such setting; fix: here it is learning_rate" in (
        capsys.readouterr().err
    )
    assert main(["train", "--recipe"]) == 2


def test_the_version_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--version", "-V"):
        assert main([flag]) == 0
        assert re.fullmatch(r"lorafold \d+\.\d+\.\d+", capsys.readouterr().out.strip())


def test_models_are_found_by_any_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    everything = capsys.readouterr().out
    assert main(["models", "qwen3FORcausal"]) == 0
    found = capsys.readouterr().out
    assert found.split()[0] == "qwen3" and "Qwen3ForCausalLM" in found and "Qwen3ForCausalLM" in everything
    assert main(["models", "no such"]) == 3
    assert "--onto" in capsys.readouterr().err


def test_a_recipe_is_overruled_by_a_negative_that_help_does_not_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("load_in_4bit: true\n")
    words = [
        "chat",
        str(tmp_path / "nothing"),
        "--recipe",
        str(tmp_path / "recipe.yaml"),
        "--no-load-in-4bit",
    ]
    assert main([*words, "--no-blind", "--no-plain"]) == 3
    assert "no such option" not in capsys.readouterr().err
    assert main(["chat", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--no-blind" not in shown and "--blind" in shown
    assert main(["export", "--help"]) == 0
    assert "--no-verify" in capsys.readouterr().out
