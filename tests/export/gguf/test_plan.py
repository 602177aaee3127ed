"""`--plan`: each tensor with type, bytes and offset as the files then hold it; options that mean nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_chat

from lorafold.cli import main
from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export, plan_export
from lorafold.export.config import ONLY_FOR
from lorafold.safetensors_file import read_header

FORMATS: dict[str, dict[str, Any]] = {
    "gguf": {"quant": ("Q4_K_M", "F16"), "split_max_size": 100_000},
    "folder": {"format": "folder", "dtype": "bf16", "shard_max_size": 100_000},
    "adapter": {"format": "adapter", "dtype": "f32"},
}
Rows = dict[tuple[str, str], tuple[str, str, int, int]]


@pytest.fixture(scope="module")
def adapter() -> str:
    return str(tiny_chat.adapter())


def config(source: str, out: Path, **changes: Any) -> ExportConfig:
    settings = {"base": str(tiny_chat.folder()), "name": "m", "verify": False, "threads": 2, **changes}
    return ExportConfig(source, out=out, **settings)


def planned(lines: list[tuple[str, str]]) -> Rows:
    """The rows of the listing: (file, tensor) → shape, type, bytes, offset."""
    rows: Rows = {}
    file = ""
    for label, text in lines:
        if label == "tensors":
            file = text.split(" in ")[1]
        elif label.startswith("  "):
            shape, kind, nbytes, word, at, offset = text.split()
            assert (word, at) == ("bytes", "at")
            rows[file, label.strip()] = (
                shape,
                kind,
                int(nbytes.replace(",", "")),
                int(offset.replace(",", "")),
            )
    return rows


def written(folder: Path) -> Rows:
    """The same from the files, by other readers."""
    rows: Rows = {}
    for path in folder.glob("*.gguf"):
        for tensor in gguf.GGUFReader(path).tensors:
            shape = "×".join(str(size) for size in reversed(tensor.shape.tolist()))
            kind = tensor.tensor_type.name
            rows[path.name, tensor.name] = shape, kind, int(tensor.n_bytes), int(tensor.data_offset)
    for path in folder.glob("*.safetensors"):
        for name, info in read_header(path).items():
            rows[path.name, name] = "×".join(map(str, info.shape)), info.dtype, info.nbytes, info.offset
    return rows


@pytest.mark.parametrize("format", FORMATS)
def test_the_list_is_what_the_files_hold(format: str, adapter: str, tmp_path: Path) -> None:
    settings = config(adapter, tmp_path / "out", **FORMATS[format])
    lines = plan_export(config(adapter, tmp_path / "out", **FORMATS[format], plan=True, tensors=True))
    assert not (tmp_path / "out").exists()
    export(settings)
    rows = planned(lines)
    assert rows == written(tmp_path / "out")
    assert len({file for file, _ in rows}) > 1 or format == "adapter"
    said = dict(lines)
    assert re.fullmatch(r"about [\d,]+ MB, however many layers there are", said["memory"])
    assert re.fullmatch(
        r"(about [\d,]+ s|less than a second) on \d threads?, without the proof", said["time"]
    )
    assert ("besides" in said) == ("folder" not in format and "adapter" not in format)


def test_a_plan_says_what_is_not_in_its_time(adapter: str, tmp_path: Path) -> None:
    """Kernels that are compiled, and the proof if there is to be one."""
    said = dict(plan_export(config(adapter, tmp_path / "out", plan=True, verify=True)))["besides"]
    assert re.search(r"compiles its kernel, .+; the proof takes about [\d,]+ s and a gigabyte more", said)
    left_out = dict(plan_export(config(adapter, tmp_path / "out", plan=True, verify=False)))["besides"]
    assert "compiles" in left_out and "the proof" not in left_out


@pytest.mark.parametrize("format", FORMATS)
def test_the_summary_counts_each_tensor_once(format: str, adapter: str, tmp_path: Path) -> None:
    settings = config(adapter, tmp_path / "out", **FORMATS[format], plan=True)
    lines = plan_export(settings)
    export(config(adapter, tmp_path / "out", **FORMATS[format]))
    rows = written(tmp_path / "out")
    alike = [(label.strip(), text.split()) for label, text in lines if label.startswith("  ")]
    assert sum(int(words[0]) for _, words in alike) == len(rows)
    assert sum(int(words[-2].replace(",", "")) for _, words in alike) == sum(row[2] for row in rows.values())
    assert len(alike) < len(rows) and all("--tensors" in text for label, text in lines if label == "tensors")
    patterns = {re.sub(r"\.\d+\.", ".*.", name) for _, name in rows}
    assert {label for label, _ in alike} == patterns


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["export", str(tiny_chat.folder()), "--out", str(tmp_path / "out"), "--plan"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"blk\.\*\.attn_q\.weight +2 × +64×64 +\w+ +[\d,]+ bytes", said)
    assert main([*command, "--tensors"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"blk\.1\.attn_q\.weight +64×64 +\w+ +[\d,]+ bytes +at +[\d,]+", said)


MEANINGLESS: list[tuple[str, dict[str, Any]]] = [
    ("quant", {"format": "folder", "quant": ("Q9",)}),
    ("quant", {"format": "adapter", "quant": ("Q4_K_M",)}),
    ("tensor_type", {"format": "folder", "tensor_type": ("ffn=Q6_K",)}),
    ("imatrix", {"format": "adapter", "imatrix": Path("x")}),
    ("imatrix_data", {"format": "folder", "imatrix_data": Path("x")}),
    ("imatrix_share", {"format": "folder", "imatrix_share": 0.5}),
    ("split_max_size", {"format": "folder", "split_max_size": 200_000}),
    ("system", {"format": "folder", "system": "x"}),
    ("thinking", {"format": "adapter", "thinking": "on"}),
    ("allow_embedded_jinja", {"format": "folder", "allow_embedded_jinja": True}),
    ("ollama_path", {"format": "folder", "ollama_path": "jinja"}),
    ("onto", {"format": "folder", "onto": Path("x")}),
    ("ollama", {"format": "adapter", "ollama": "x"}),
    ("dtype", {"dtype": "bf16"}),
    ("shard_max_size", {"shard_max_size": 200_000}),
    ("rounding", {"format": "adapter", "rounding": "peft"}),
    ("chat_template", {"format": "adapter", "chat_template": "chatml"}),
    ("keep_delta", {"format": "adapter", "keep_delta": 0.9}),
    ("seed", {"format": "adapter", "seed": 1}),
    ("fit", {"format": "adapter", "fit": "1GB"}),
    ("mmproj", {"format": "folder", "mmproj": "x.gguf"}),
    ("max_kl", {"format": "adapter", "max_kl": 0.1}),
]


@pytest.mark.parametrize(("option", "settings"), MEANINGLESS)
def test_an_option_that_means_nothing_is_refused(
    option: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag}: this has no meaning for --format") as caught:
        ExportConfig("source", out=tmp_path, **settings)
    assert caught.value.at == flag and caught.value.fix is not None and "--format" in caught.value.fix


def test_every_such_option_is_tested() -> None:
    assert {option for option, _ in MEANINGLESS} == ONLY_FOR.keys()


def test_a_list_without_a_plan_is_refused_and_the_type_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--tensors.*pass --plan"):
        ExportConfig("source", out=tmp_path, tensors=True)
    assert ExportConfig("source", out=tmp_path).quant == ("Q4_K_M",)
    assert ExportConfig("source", out=tmp_path, format="folder").quant == ()


def test_a_folder_keeps_the_memory_it_is_given(adapter: str, tmp_path: Path) -> None:
    """The plan says less for less, and the bytes are the same however small the blocks are."""
    promised, made = [], []
    for memory in (100_000, 200_000_000):
        settings = config(adapter, tmp_path / str(memory), format="folder", max_memory=memory)
        words = dict(plan_export(settings))["memory"].split()
        promised.append(int(words[1].replace(",", "")))
        export(settings)
        made.append((tmp_path / str(memory) / "model.safetensors").read_bytes())
    assert promised[0] == 150 < promised[1]
    assert made[0] == made[1]
