"""Imports run one way: a room uses the rooms that stand before it in its stage's list, and the shared ones.

Stages never import each other; what two of them know lives in `lorafold/`, below all three.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from oracles import REPOSITORY

# The rooms of a stage, lowest first. A room is a folder, or a module that lies in the stage's own folder.
# Rooms on one line may not import each other.
ORDER: dict[str, tuple[str, ...]] = {
    "export": (
        "config",
        "workers",
        "quant.kernels",
        "quant",
        "fold",
        "modelfile.go",
        "ollama",
        "modelfile",
        "gguf",
        "onto",
        "arch.families",
        "arch",
        "vocab",
        "adapter_prompt",
        "survival",
        "bases",
        "inputs",
        "proof destination",
        "imatrix",
        "fitting",
        "outputs",
        "judge",
        "report",
        "manifest",
        "stage hub",
    ),
    "train": (
        "config",
        "methods workers signals optimizers",
        "data",
        "model",
        "tokens",
        "fast saved",
        "material loop",
        "describe build estimate",
        "run",
        "stage plan demo",
    ),
    "serve": (
        "config",
        "protocol",
        "engines conversation answers",
        "lens origin",
        "loaded",
        "rows",
        "comparison",
        "terminal",
    ),
}
# What starts the stages stands above them; everything else in lorafold/ stands below.
ABOVE = ("cli", "demo", "doctor", "inspection", "__init__", "__main__")
# A package may use the vocabulary of the package that holds it.
INNER = {("arch.families", "arch"), ("quant.kernels", "quant"), ("modelfile.go", "modelfile")}


def modules(top: str) -> list[Path]:
    """The modules of a top-level folder; the stages' symlinks in lorafold/ are not followed."""
    root = REPOSITORY / top
    inside = [path for path in root.rglob("*.py") if not any(parent.is_symlink() for parent in path.parents)]
    return [path for path in inside if path.relative_to(root).parts[0] not in ORDER]


def imported(path: Path) -> list[str]:
    """Every lorafold module that a module names in an import, dotted, without "lorafold."."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name.removeprefix("lorafold.") for name in found if name.startswith("lorafold.")]


def room_of(stage: str, dotted: str) -> str:
    """The longest room of the stage's list that the name begins with; "" for the package itself."""
    rooms = [room for line in ORDER[stage] for room in line.split() if f"{dotted}.".startswith(f"{room}.")]
    return max(rooms, key=len, default="")


@pytest.mark.parametrize("stage", ORDER)
def test_rooms_of_a_stage_are_used_from_above(stage: str) -> None:
    height = {room: number for number, line in enumerate(ORDER[stage]) for room in line.split()}
    wrong = []
    for path in modules(stage):
        here = room_of(stage, ".".join(path.relative_to(REPOSITORY / stage).with_suffix("").parts))
        if path == REPOSITORY / stage / "__init__.py":
            continue
        assert here, f"{path}: no room of the list"
        for name in imported(path):
            top, _, rest = name.partition(".")
            there = room_of(stage, rest) if top == stage else ""
            if top in ORDER and top != stage:
                wrong.append(f"{path}: another stage, {name}")
            if there and there != here and (here, there) not in INNER and height[there] >= height[here]:
                wrong.append(f"{path}: {here} -> {there}, which stands above it")
    assert not wrong, "\n".join(wrong)


def test_what_is_shared_imports_no_stage() -> None:
    wrong = [
        f"{path}: {name}"
        for path in modules("lorafold")
        if path.relative_to(REPOSITORY / "lorafold").parts[0].removesuffix(".py") not in ABOVE
        for name in imported(path)
        if name.partition(".")[0] in ORDER
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_part_of_a_circle() -> None:
    """Lazy imports count too: a circle that happens to work hides which of the two is below."""
    files = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        .removeprefix("lorafold.")
        .removesuffix(".__init__"): path
        for top in ("lorafold", *ORDER)
        for path in modules(top)
        if path.name != "__init__.py" or path.parent.name in ("arch",)
    }
    uses = {
        name: {
            target
            for used in imported(path)
            for target in (used, used.rpartition(".")[0])
            if target in files and target != name
        }
        for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(uses[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(files):
        visit(name, ())


# Modules of a folder, its __init__ not counted.
MOST = 16
MOST_SHARED = 24


@pytest.mark.parametrize("top", ["lorafold", *ORDER, "tests", "tools"])
def test_a_folder_stays_small_enough_to_be_read(top: str) -> None:
    counts: dict[Path, int] = {}
    for path in modules(top):
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    most = {REPOSITORY / "lorafold": MOST_SHARED}
    assert not {path: count for path, count in counts.items() if count > most.get(path, MOST)}


# The words of the shell and the words of a conversation: each module's one table.
TWICE = {"COMMANDS"}


def test_a_public_name_of_data_has_one_meaning() -> None:
    """A constant, type or class is defined in one module; what one module alone knows begins with `_`."""
    homes: dict[str, list[str]] = {}
    for path in (path for top in ("lorafold", *ORDER) for path in modules(top)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            names += [node.name] if isinstance(node, ast.ClassDef) else []
            for name in names:
                homes.setdefault(name, []).append(str(path.relative_to(REPOSITORY)))
    public = {name: found for name, found in homes.items() if not name.startswith("_")}
    assert {name: found for name, found in public.items() if len(found) > 1 and name not in TWICE} == {}
    assert all(len(public[name]) > 1 for name in TWICE)


def test_every_package_says_what_it_is_for() -> None:
    for top in ("lorafold", *ORDER):
        for path in modules(top):
            if path.name == "__init__.py":
                said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
                assert said and len(said) > 20, path


def test_helpers_need_no_folder_but_their_own() -> None:
    """`tests/support` alone on the path is enough for the modules in it: other programs use them so."""
    support = REPOSITORY / "tests" / "support"
    own = {path.stem for path in support.iterdir()}
    deeper = {path.stem for path in support.rglob("*.py")} - own
    for path in support.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:  # at import; what a function imports is its caller's affair
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not deeper & {name.partition(".")[0] for name in names}, path
