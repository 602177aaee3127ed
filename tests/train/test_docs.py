"""docs/training.md names only what is there: flags, methods, layouts, recipes, and the defaults it tells."""

from __future__ import annotations

import re
from dataclasses import fields

from oracles import REPOSITORY

from lorafold.records.layouts import LAYOUTS
from lorafold.train import TrainConfig
from lorafold.train.methods import METHODS

TEXT = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
# Flags of torchrun, accelerate and docker, of the command line itself, and of other commands.
OTHERS = {
    "prompts",
    "chats",
    "imatrix-data",
    "nproc-per-node",
    "multi_gpu",
    "num_processes",
    "cpus",
    "recipe",
    "help",
}


def test_every_flag_is_a_field() -> None:
    known = {field.name.replace("_", "-"): field.type for field in fields(TrainConfig)}
    for flag in set(re.findall(r"--([a-z][\w-]*)", TEXT)) - OTHERS:
        name = flag.removeprefix("no-")
        assert name in known, flag
        assert name == flag or "bool" in str(known[name]), flag


def test_methods_layouts_and_recipes() -> None:
    methods = TEXT.partition("## Methods")[2].partition("\n## ")[0]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", methods, re.M) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(METHODS)
    assert set(re.findall(r"^\| `(\w+)` \| `\{", TEXT, re.M)) == set(LAYOUTS)
    for recipe in re.findall(r"recipes/[\w.-]+\.yaml", TEXT):
        assert (REPOSITORY / recipe).is_file(), recipe


def test_defaults() -> None:
    default = TrainConfig()
    for flag, number in re.findall(r"`--([a-z-]+)` \((\d+)\)", TEXT):
        assert getattr(default, flag.replace("-", "_")) == int(number), flag
