"""Which GGUF of a repository is meant, and where it is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny_hub import COMMIT, Hub, go_there, serve

from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.hub.files import HubFile, HubSpec, choose, find_files

NAMES = [
    "README.md",
    "Qwen3-0.6B-BF16.gguf",
    "Qwen3-0.6B-Q4_K_M.gguf",
    "Qwen3-0.6B-UD-Q4_K_XL.gguf",
    "F32/Qwen3-0.6B-F32-00002-of-00002.gguf",
    "F32/Qwen3-0.6B-F32-00001-of-00002.gguf",
    "mmproj-BF16.gguf",
    "Qwen3-0.6B.imatrix.gguf",
]


def spec(text: str) -> HubSpec:
    found = HubSpec.parse(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (":BF16", ["Qwen3-0.6B-BF16.gguf"]),
        (":bf16", ["Qwen3-0.6B-BF16.gguf"]),
        (":Q4_K_M", ["Qwen3-0.6B-Q4_K_M.gguf"]),
        ("@main:UD-Q4_K_XL", ["Qwen3-0.6B-UD-Q4_K_XL.gguf"]),
        (":Q4_K_XL", ["Qwen3-0.6B-UD-Q4_K_XL.gguf"]),
        (":F32", NAMES[5:3:-1]),
        (":F32/Qwen3-0.6B-F32-00001-of-00002.gguf", NAMES[5:3:-1]),
        (":mmproj-BF16.gguf", ["mmproj-BF16.gguf"]),
    ],
)
def test_a_type_or_a_name_means_one_file_or_all_its_parts(wanted: str, meant: list[str]) -> None:
    assert choose(NAMES, spec(f"unsloth/Qwen3-0.6B-GGUF{wanted}")) == meant


@pytest.mark.parametrize(
    ("names", "wanted", "words"),
    [
        (NAMES, "", "4 of its files may be meant: F32/Qwen3-0.6B-F32, .*give the type or the file: org/x:"),
        (NAMES, ":Q8_0", r"no GGUF of it is called so \(Q8_0\); it has F32/Qwen3"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], ":Q4_0", "2 of its files may be meant: a-Q4_0, b-Q4_0"),
        (["a.safetensors"], ":Q4_0", "it holds no GGUF"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_choice(names: list[str], wanted: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose(names, spec(f"org/x{wanted}"))


def test_paths_are_no_ids(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").touch()
    for text in ("base.gguf", "models/base.gguf", "./a/b", str(tmp_path / "base.gguf"), "a/b/c.gguf"):
        assert HubSpec.parse(text) is None
    assert spec("modelscope:org/x:BF16") == HubSpec("org/x", "", "BF16", True)
    assert spec("org/x@v1:BF16") == HubSpec("org/x", "v1", "BF16", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    files = {name: name.encode() for name in NAMES}
    with serve(Hub(models={"org/x": files, "org/closed": files}, gated=("org/closed",))) as hub:
        go_there(hub.address, tmp_path / "cache", monkeypatch)
        yield hub


def test_a_file_of_the_hub_is_pinned_to_its_commit(hub: Hub) -> None:
    (file,) = find_files(spec("org/x:BF16"), offline=False)
    assert file == HubFile("org/x", COMMIT, "Qwen3-0.6B-BF16.gguf")
    assert spec(file.spec) == HubSpec("org/x", COMMIT, "Qwen3-0.6B-BF16.gguf", False)
    assert not hub.ranges and not [asked for asked in hub.seen if "/resolve/" in asked]


def test_what_the_cache_holds_is_taken_from_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    assert isinstance(find_files(spec("org/x:F32"), offline=False)[0], HubFile)
    for name in NAMES[4:6]:
        huggingface_hub.hf_hub_download("org/x", name)
    found = find_files(spec("org/x:F32"), offline=False)
    assert [Path(path).name for path in found] == [name.removeprefix("F32/") for name in NAMES[5:3:-1]]
    assert all(isinstance(path, Path) and path.is_file() for path in found)
    hub.seen.clear()
    assert find_files(spec("org/x:F32"), offline=True) == found and not hub.seen
    with pytest.raises(InputError, match="no GGUF of it is called so"):
        find_files(spec("org/x:BF16"), offline=True)
    # The hub is away: what the cache holds still serves.
    go_there("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert find_files(spec("org/x:F32"), offline=False) == found


def test_the_hubs_refusals(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gated.*hf auth login"):
        find_files(spec("org/closed:BF16"), offline=False)
    with pytest.raises(InputError, match="no such repository or revision"):
        find_files(spec("org/none:BF16"), offline=False)
    with pytest.raises(SystemFault, match=r"not in the local cache.*without --offline"):
        find_files(spec("org/x:BF16"), offline=True)
    go_there("http://127.0.0.1:9", tmp_path / "empty", monkeypatch)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with pytest.raises(SystemFault, match=r"HF_ENDPOINT=https://hf-mirror.com.*modelscope:org/x.*its path"):
        find_files(spec("org/x:BF16"), offline=False)
    # Who has set a mirror is not advised to set one; a password in its address is not shown.
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example/hf")
    with pytest.raises(SystemFault, match=r"the mirror mirror\.example .* cannot be reached") as caught:
        find_files(spec("org/x:BF16"), offline=False)
    assert "set HF_ENDPOINT to another one" in caught.value.fix and "secret" not in str(caught.value)


def test_modelscope_downloads_what_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemFault, match="pip install modelscope"):
        find_files(spec("modelscope:org/x:BF16"), offline=False)
    # The package as far as it is called: a folder with the files that fit the patterns.
    (tmp_path / "modelscope").mkdir()
    (tmp_path / "modelscope/__init__.py").write_text(
        "import fnmatch, pathlib\n"
        "def snapshot_download(repository, allow_patterns):\n"
        f"    folder = pathlib.Path({str(tmp_path)!r}) / repository\n"
        "    folder.mkdir(parents=True, exist_ok=True)\n"
        f"    for name in {[name for name in NAMES if '/' not in name]!r}:\n"
        "        if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):\n"
        "            (folder / name).touch()\n"
        "    return str(folder)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "modelscope", ModuleType("modelscope"))  # forgotten when the test ends
    del sys.modules["modelscope"]
    found = find_files(spec("modelscope:org/x:BF16"), offline=False)
    assert found == [tmp_path / "org/x/Qwen3-0.6B-BF16.gguf"]
    assert not (tmp_path / "org/x/Qwen3-0.6B-Q4_K_M.gguf").exists()
    with pytest.raises(UsageError, match=r"which of its files.*modelscope:org/x:BF16"):
        find_files(spec("modelscope:org/x"), offline=False)
