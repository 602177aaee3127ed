"""The documents name only what there is: files, links, commands, flags, recipes; the READMEs say the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from oracles import REPOSITORY

from lorafold.cli import app
from lorafold.commandline.hints import names_of
from lorafold.commandline.recipes import known_recipes

DOCUMENTS = sorted(
    path
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
    if path.name not in ("log.md", "CHANGELOG.md")  # what was, not what is
)
FOLDERS = ("lorafold", "train", "export", "serve", "tests", "tools", "docs", "recipes")
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in DOCUMENTS]


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_files_and_links_exist(name: str) -> None:
    text = text_of(name)
    home = (REPOSITORY / name).parent
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (home / target).exists(), target
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text):
        assert (REPOSITORY / path).exists() or _module(path) or _function(path), path


def _module(path: str) -> bool:
    """`export/fold/changes` names a module without its ending."""
    return (REPOSITORY / f"{path}.py").is_file()


def _function(path: str) -> bool:
    """`export/stage.export` names what stands in a module."""
    module, _, name = path.rpartition(".")
    source = REPOSITORY / f"{module}.py"
    return (
        source.is_file()
        and re.search(rf"^(def|class) {name}\b|^{name}\b", source.read_text(), re.M) is not None
    )


def commands(text: str) -> list[list[str]]:
    """The words of every `lorafold …` line in code."""
    code = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in code for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:torchrun|lorafold)[^`\n]*)`", text)
    found = []
    for line in lines:
        start = re.search(r"(?:^|[\s/])(?:-m )?lorafold (?=[a-z-])", line)
        if start:
            rest = re.split(r"\s#|  +#|;|\||&&", line[start.end() :])[0]
            found.append(shlex.split(rest.replace("…", "").replace("'", "").replace('"', "")))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_commands_flags_and_recipes_exist(name: str) -> None:
    recipes = {recipe.name for recipe in known_recipes()}
    for words in commands(text_of(name)):
        if words[0].startswith("-") or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        assert words[0] in list(app), words
        if words[0] == "recipes":
            continue
        known = {*names_of(app, words[0]), "--help"}
        for before, word in zip([*words[:1], *words], words, strict=False):
            if word.startswith("-") and not re.fullmatch(r"-?[\d.]+", word):
                flag = word.rstrip("]").partition("=")[0]
                assert flag in known or f"--{flag.removeprefix('--no-')}" in known, (words, flag)
            if before == "--recipe" and word.islower() and not word.endswith(".yaml"):
                assert word in recipes, word


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = text_of("README.md"), text_of("README.zh-CN.md")
    assert len(re.findall(r"^#+ ", english, re.M)) == len(re.findall(r"^#+ ", chinese, re.M))
    assert len(re.findall(r"^```", english, re.M)) == len(re.findall(r"^```", chinese, re.M))
    assert english.count("\n|") == chinese.count("\n|")


def test_the_tree_in_the_readme_is_the_tree() -> None:
    folders = {path.name for path in REPOSITORY.iterdir() if (path / "__init__.py").is_file()} - {"tests"}
    tree = text_of("README.md")
    for name in folders:
        assert re.search(rf"^{name}/", tree, re.M), name


def test_the_log_names_only_files_of_the_repository() -> None:
    text = text_of("docs/log.md")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert re.match(r"[a-z]+:", target) or (Path(REPOSITORY) / "docs" / target).exists(), target
    assert "../shared" not in text and "DESIGN.md" not in text
