"""What is installed: `lorafold/**` alone, every module and every file that goes with it, and it runs so.

The wheel is built from a clone, so that only what is committed counts; setuptools must be there already.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from oracles import REPOSITORY

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools")
LINK = "120000"  # git's mode of a symbolic link
# Python's own finder, which does not see what an environment without the [train] extra lacks.
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {"torch", "transformers", "peft", "accelerate", "datasets"}
        return None if absent else PathFinder.find_spec(name, path, target)
sys.meta_path = [Without() if finder is PathFinder else finder for finder in sys.meta_path]
from lorafold.cli import main
import lorafold
assert lorafold.__file__.startswith(sys.argv.pop(1)), lorafold.__file__
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    clone = ["git", "clone", "--quiet", "--depth", "1", f"file://{REPOSITORY}", str(folder / "clone")]
    subprocess.run(clone, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(folder / "clone")], check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    modes = {name: entry.partition(" ")[0] for entry, _, name in (line.partition("\t") for line in listed)}
    links = {name for name in modes if name.startswith("lorafold/") and modes[name] == LINK}
    linked = {name.removeprefix("lorafold/") for name in links}  # they lie beside lorafold/
    assert linked >= {"train", "export", "serve"}
    wanted = {name for name in modes if name.startswith("lorafold/")} - links
    wanted |= {f"lorafold/{name}" for name in modes if name.partition("/")[0] in linked}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {Path(name).suffix for name in held} >= {".py", ".css", ".html", ".js", ".jsonl", ".typed"}


def test_a_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """It carries no symlinks, by which setuptools would find three quarters of the packages."""
    packed = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    clone = wheel.parent / "clone"
    subprocess.run([sys.executable, "-c", packed], cwd=clone, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(tmp_path, filter="data")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = archive.name.removesuffix(".tar.gz")
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(tmp_path / source)], check=True)
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_it_exports_and_inspects_without_torch(wheel: Path, tmp_path: Path) -> None:
    import tiny_chat

    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    def lorafold(*words: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, str(site), *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(site), "HOME": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    base = str(tiny_chat.folder())
    made = lorafold(
        "export", base, "--out", "out", "--quant", "Q8_0", "--pre-tokenizer", "gpt-2", "--offline"
    )
    assert "passed" in made and "torch" in made
    (gguf,) = (tmp_path / "out").glob("*.gguf")
    assert "Q8_0" in lorafold("inspect", str(gguf))
