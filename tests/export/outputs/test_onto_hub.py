"""`--onto ORG/NAME:TYPE`: the same file as from this disk, and no byte read that is not needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from tiny_hub import COMMIT, Hub, go_there, serve

from lorafold.errors import InputError
from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.onto import model as module
from lorafold.gguf_file.read import read_gguf_header
from lorafold.hub import parts


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """GGUFs of the base by file name: whole and in parts."""
    out = tmp_path_factory.mktemp("bases")
    common: dict[str, Any] = {"name": "base", "verify": False, "modelfile": False}
    export(ExportConfig(str(tiny_chat.folder()), out=out / "whole", quant=("BF16", "Q8_0"), **common))
    export(
        ExportConfig(
            str(tiny_chat.folder()), out=out / "parts", quant=("F32",), split_max_size=150_000, **common
        )
    )
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.gguf"))}


@pytest.fixture
def hub(bases: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(module, "_FIRST", 4096)
    monkeypatch.setattr(parts, "_WAIT", 0.001)
    with serve(Hub(models={"org/base-GGUF": dict(bases)}, far=True)) as hub:
        go_there(hub.address, tmp_path / "cache", monkeypatch)
        yield hub


def config(out: Path, onto: str, **changes: Any) -> ExportConfig:
    settings = {"base": str(tiny_chat.folder()), "verify": False, "name": "tuned", "threads": 2, **changes}
    return ExportConfig(str(tiny_chat.adapter()), out=out, onto=onto, **settings)


def made(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.gguf"))]


@pytest.mark.parametrize(
    ("onto", "files", "changes"),
    [
        ("BF16", "base-BF16", {}),
        ("base-BF16.gguf", "base-BF16", {"quant": ("Q8_0", "F16")}),
        ("Q8_0", "base-Q8_0", {}),
        ("F32", "base-F32", {}),
    ],
)
def test_the_result_is_that_of_the_file_on_this_disk(
    hub: Hub, bases: dict[str, bytes], tmp_path: Path, onto: str, files: str, changes: dict[str, Any]
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for name, content in bases.items():
        (local / name).write_bytes(content)
    first = next(name for name in bases if name.startswith(files))
    export(config(tmp_path / "here", str(local / first), modelfile=False, **changes))
    export(config(tmp_path / "there", f"org/base-GGUF:{onto}", modelfile=False, **changes))
    assert made(tmp_path / "there") == made(tmp_path / "here")
    total = sum(len(content) for name, content in bases.items() if name.startswith(files))
    read = sum(hub.bytes_of(name) for name in bases if name.startswith(files))
    # The rows that are looked at first are read once more; beside so small tensors they weigh.
    assert total * 0.8 < read < total * 1.25
    manifest = json.loads((tmp_path / "there/lorafold.json").read_text())
    assert manifest["config"]["onto"] == f"org/base-GGUF@{COMMIT}:{first}"


def test_a_plan_reads_the_header_and_the_rows_that_change(hub: Hub, tmp_path: Path) -> None:
    name = "base-BF16.gguf"
    lines = dict(plan_export(config(tmp_path / "out", "org/base-GGUF:BF16", plan=True)))
    assert lines["onto"] == f"org/base-GGUF/{name} (llama, BF16)"
    assert lines["from the hub"].startswith(f"{hub.bytes_of(name):,} of ")
    (tmp_path / name).write_bytes(hub.models["org/base-GGUF"][name])
    header = read_gguf_header(tmp_path / name)
    first = min(tensor.offset for tensor in header.tensors.values())
    untouched = {
        tensor.name: sum(
            max(min(stop, tensor.offset + tensor.nbytes) - max(start, tensor.offset), 0)
            for _, start, stop in hub.ranges
            if start >= first
        )
        for tensor in header.tensors.values()
        if not any(word in tensor.name for word in ("attn_q", "attn_v", "ffn_down"))
    }
    assert untouched["token_embd.weight"] == 0
    row = 2 * header.tensors["blk.0.attn_k.weight"].shape[-1]
    assert all(read <= 3 * row for read in untouched.values()), untouched  # three rows to look at


@pytest.mark.slow
@pytest.mark.parametrize("quant", [(), ("Q8_0",)])
def test_it_is_proven_and_proven_again(hub: Hub, tmp_path: Path, quant: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    result = export(config(out, "org/base-GGUF:BF16", verify=True, quant=quant))
    file = f"tuned-{quant[0] if quant else 'BF16'}.gguf"
    verdicts = {check.name: check.verdict for check in result.proof.checks}
    assert set(verdicts.values()) == {"passed"} and f"kept {file}" in verdicts
    # What was copied is compared by its digests; only with other types it is looked for once more.
    once = len(hub.models["org/base-GGUF"]["base-BF16.gguf"])
    assert hub.bytes_of("base-BF16.gguf") < once * (2.2 if quant else 1.25)
    assert {check.name: check.verdict for check in verify(out).checks} == verdicts | {"files": "passed"}


def test_a_copy_that_is_not_the_hubs_is_seen(hub: Hub, tmp_path: Path) -> None:
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.onto import plan_onto_output

    settings = config(tmp_path / "out", "org/base-GGUF:BF16", modelfile=False)
    output = plan_onto_output(open_inputs(settings), settings)
    folder = tmp_path / "made"
    folder.mkdir()
    output.write(folder, lambda *_: None)
    file = folder / "tuned-BF16.gguf"
    data = bytearray(file.read_bytes())
    data[read_gguf_header(file).tensors["blk.0.attn_k.weight"].offset] ^= 1
    file.write_bytes(data)
    kept = next(check for check in output.prove(folder, lambda *_: None) if check.name.startswith("kept"))
    assert kept.verdict == "failed" and "blk.0.attn_k.weight" in kept.meaning


def test_a_file_that_changes_under_the_export_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    files = hub.models["org/base-GGUF"]

    def change(step: str, done: float, total: float | None, note: str = "") -> None:
        if step == "write":
            files["base-BF16.gguf"] = files["base-BF16.gguf"][::-1]

    with pytest.raises(InputError, match=r"org/base-GGUF/base-BF16\.gguf: it changed while it was read"):
        export(config(tmp_path / "out", "org/base-GGUF:BF16", modelfile=False), change)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b[: len(b) // 2], r"org/base-GGUF/base-BF16\.gguf: damaged GGUF: .*truncated"),
        (lambda b: b"GGUF" + b"\xff" * 5000, r"base-BF16\.gguf: damaged GGUF: version"),
        (lambda b: b"<html>" + b, r"base-BF16\.gguf: "),
    ],
)
def test_damage_on_the_hub_is_named(hub: Hub, tmp_path: Path, change: Any, words: str) -> None:
    files = hub.models["org/base-GGUF"]
    files["base-BF16.gguf"] = change(files["base-BF16.gguf"])
    with pytest.raises(InputError, match=words):
        export(config(tmp_path / "out", "org/base-GGUF:BF16", modelfile=False))
    assert not (tmp_path / "out").exists()


def test_the_address_of_a_page_is_no_file(tmp_path: Path) -> None:
    page = "https://huggingface.co/org/base-GGUF/blob/main/base-BF16.gguf"
    with pytest.raises(InputError, match=r"address of a page.*org/base-GGUF:base-BF16.gguf"):
        export(config(tmp_path / "out", page))


def test_a_projector_on_the_hub_is_no_base(hub: Hub, tmp_path: Path) -> None:
    from onto_cases import drawn, write_gguf

    projector = drawn({"v.patch_embd.weight": (4, 32)})
    path = write_gguf(tmp_path / "mmproj-F32.gguf", projector, general__type="mmproj")
    hub.models["org/base-GGUF"]["mmproj-F32.gguf"] = path.read_bytes()
    with pytest.raises(InputError, match=r"projector of a multimodal model"):
        export(config(tmp_path / "out", "org/base-GGUF:mmproj-F32.gguf"))
    with pytest.raises(InputError, match=r"no GGUF of it is called so \(F16\); it has"):
        export(config(tmp_path / "out", "org/base-GGUF:F16"))
