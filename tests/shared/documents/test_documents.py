"""The documents name only what there is: files, links, commands, flags, recipes; the READMEs say the same."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documents import code_in, text_of
from oracles import REPOSITORY

from lorafold.cli import app
from lorafold.commandline.hints import names_of
from lorafold.commandline.recipes import known_recipes
from lorafold.export.quant.recipes import RECIPES

DOCUMENTS = sorted(
    path
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"))
    if path.name not in ("log.md", "CHANGELOG.md")  # what was, not what is
)
FOLDERS = ("lorafold", "train", "export", "serve", "tests", "tools", "docs", "recipes")
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in DOCUMENTS]


@pytest.mark.parametrize("name", NAMES)
def test_files_and_links_exist(name: str) -> None:
    text = text_of(name)
    home = (REPOSITORY / name).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)[^)]*\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place = home / target if target else REPOSITORY / name
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{target}#{anchor}"
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text):
        assert (REPOSITORY / path).exists() or _module(path) or _function(path), path


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


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
    lines = [line for block in code_in(text, "sh|bash|") for line in block.replace("\\\n", " ").splitlines()]
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


def test_the_tree_in_the_readme_is_the_tree() -> None:
    folders = {path.name for path in REPOSITORY.iterdir() if (path / "__init__.py").is_file()} - {"tests"}
    tree = text_of("README.md")
    for name in folders:
        assert re.search(rf"^{name}/", tree, re.M), name


@pytest.mark.parametrize(
    "name",
    [
        "CONTRIBUTING.md",
        *(f"docs/{page}.md" for page in ("architecture", "bases", "onto", "proof", "python")),
    ],
)
def test_names_of_the_code_exist(name: str) -> None:
    """What is between backticks and looks like Python; an example's own names stand in its block too."""
    sources = "\n".join(
        path.read_text(encoding="utf-8") for top in FOLDERS for path in (REPOSITORY / top).rglob("*.py")
    )
    text = text_of(name)
    known = set(re.findall(r"\w+", sources + "".join(re.findall(r"^```.*?^```", text, re.M | re.S))))
    named = set(
        re.findall(
            r"`(?:[\w.]+\.)?([A-Za-z_]\w+)(?:\(\))?`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        )
    )
    assert named <= known, named - known


def test_the_map_has_every_room_and_every_door() -> None:
    rows = re.findall(
        r"^\| (`[^|]*/`) \| ([^|]*) \| (?:`(\w+)\.(\w+)`)? ?\|$", text_of("docs/architecture.md"), re.M
    )
    named = set()
    for folders, about, module, name in rows:
        first, *others = re.findall(r"`([\w/]+)/`", folders)
        inner = re.findall(r"`([\w/]+)/`", about)
        rooms = [first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)]
        named |= {*rooms, *(f"{room}/{other}" for room in rooms for other in inner)}
        if module:
            source = (REPOSITORY / first / f"{module}.py").read_text(encoding="utf-8")
            assert re.search(rf"^(?:def|class) {name}\b|^{name}\b", source, re.M), f"{first}: {module}.{name}"
    packages = {
        path.parent.relative_to(REPOSITORY).as_posix()
        for top in ("lorafold", "train", "export", "serve")
        for path in (REPOSITORY / top).rglob("__init__.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    assert packages <= named, packages - named


def test_the_supported_models_are_those_of_the_table() -> None:
    printed = subprocess.run(
        [sys.executable, "tools/list_models.py"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert text_of("docs/models.md") == printed.stdout


IN_CHINESE = ["README", "docs/training", "docs/export", "docs/mirrors", "docs/troubleshooting"]


def commands_of(page: str) -> list[tuple[str, set[str]]]:
    """Each line of a page that begins with `lorafold`: the command, and its flags."""
    lines = re.findall(r"^(?: {4})?lorafold (.+)$", text_of(page), re.M)
    words = [line.partition("  #")[0].split() for line in lines]
    return [(first, {word.strip("[]") for word in more if "--" in word}) for first, *more in words]


@pytest.mark.parametrize("page", IN_CHINESE)
def test_the_commands_of_a_chinese_page_are_the_english_ones(page: str) -> None:
    """So that what runs the English examples holds for both; a Chinese reader may need one flag more."""
    english, chinese = commands_of(f"{page}.md"), commands_of(f"{page}.zh-CN.md")
    assert [command for command, _ in chinese] == [command for command, _ in english]
    more = [flags - known for (_, flags), (_, known) in zip(chinese, english, strict=True)]
    less = [known - flags for (_, flags), (_, known) in zip(chinese, english, strict=True)]
    assert not any(less) and {flag for flags in more for flag in flags} <= {"--base"}


def program_of(page: str) -> str:
    """The Python of a page without its comments; one sentence in it is like another."""
    program = ast.parse("\n".join(code_in(text_of(page), "python")))
    for node in ast.walk(program):
        if isinstance(node, ast.Constant) and re.search(r"[^!-~]", str(node.value)):
            node.value = ""
    return ast.unparse(program)


@pytest.mark.parametrize("page", IN_CHINESE)
def test_the_python_of_a_chinese_page_is_the_english_one(page: str) -> None:
    """So that it runs too."""
    assert program_of(f"{page}.zh-CN.md") == program_of(f"{page}.md")


@pytest.mark.parametrize("name", ["docs/export.md", "docs/export.zh-CN.md"])
def test_all_types_are_listed(name: str) -> None:
    listed = re.search(r"^(?:All types:|全部类型：)(.*?)[.。] ?(?:They|它们)", text_of(name), re.M | re.S)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(RECIPES)


def _written_messages() -> str:
    """The sources, with string literals that Python joins made one, and without values."""
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for room in ("lorafold", "train", "export", "serve")
        for path in (REPOSITORY / room).rglob("*.py")
    )
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "docs/troubleshooting.zh-CN.md"])
def test_messages_are_those_of_the_program(name: str) -> None:
    sources = _written_messages()
    rows = re.findall(r"^\| (`.*?) \|", text_of(name), re.M)
    assert len(rows) > 40
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            for piece in filter(None, map(str.strip, message.split("…"))):
                assert piece in sources, message


@pytest.mark.parametrize("page", IN_CHINESE)
def test_both_languages_say_the_same(page: str) -> None:
    """Headings, tables, blocks and the names of the program: as many in one language as in the other."""
    english, chinese = text_of(f"{page}.md"), text_of(f"{page}.zh-CN.md")
    for pattern in (r"^#+ ", r"^```", r"^\|", r"^- ", r"^    \S"):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, chinese, re.M)), pattern
    flags = [set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) for text in (english, chinese)]
    assert flags[0] == flags[1]


def test_the_log_names_only_files_of_the_repository() -> None:
    text = text_of("docs/log.md")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert re.match(r"[a-z]+:", target) or (Path(REPOSITORY) / "docs" / target).exists(), target
    assert "../shared" not in text and "DESIGN.md" not in text
