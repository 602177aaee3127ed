"""The export as a whole, on tiny models: what it makes, what it proves, what it refuses, what it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from tiny_base import tiny_base

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.cli import main
from lorafold.errors import InputError, NumericError, SystemFault, UsageError
from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.arch import map_tensors
from lorafold.export.gguf.writer import BYTES_IN_FLIGHT, MAX_BLOCK_WEIGHTS, block_rows
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.check import AGAIN, Check, Proof
from lorafold.weights import Checkpoint


@pytest.fixture(scope="module")
def adapter() -> str:
    return str(tiny_chat.adapter())


@pytest.fixture(scope="module")
def exported(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    export(ExportConfig(adapter, out=out, quant=("F32", "Q8_0"), name="tiny"))
    return out


def config(source: str, out: Path, **changes: Any) -> ExportConfig:
    return ExportConfig(source, out=out, **{"quant": ("F32",), "verify": False, **changes})


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.gguf")}


def test_an_export_holds_files_modelfile_report_and_a_passed_proof(exported: Path) -> None:
    manifest = json.loads((exported / "lorafold.json").read_text())
    assert set(manifest["files"]) == {
        "tiny-F32.gguf",
        "tiny-Q8_0.gguf",
        "Modelfile",
        "Modelfile-Q8_0",
        "report.md",
    }
    verdicts = {check["name"]: check["verdict"] for check in manifest["proof"]}
    assert verdicts == {
        "tokenizer": "passed",
        "special tokens": "passed",
        "tensors tiny-F32.gguf": "passed",
        "tensors tiny-Q8_0.gguf": "passed",
        "prompt": "passed",
        "prompt tokens": "passed",
        "logits tiny-F32.gguf": "passed",
        "logits tiny-Q8_0.gguf": "passed",
        "effect": "passed",
    }
    assert manifest["verdict"] == "passed"
    figures = {check["name"]: check["figures"] for check in manifest["proof"]}
    exact, rounded = figures["logits tiny-F32.gguf"], figures["logits tiny-Q8_0.gguf"]
    assert exact["mean KL"] < 1e-5 < rounded["mean KL"] and exact["top-1 agreement"] == 1.0
    assert exact["KL of the adapter"] > 1e-3
    assert "FROM ./tiny-F32.gguf" in (exported / "Modelfile").read_text()
    assert "FROM ./tiny-Q8_0.gguf" in (exported / "Modelfile-Q8_0").read_text()
    assert "| tokenizer | passed |" in (exported / "report.md").read_text()


def test_verify_repeats_the_proof_and_sees_a_flipped_bit(exported: Path, tmp_path: Path) -> None:
    assert verify(exported).passed
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    path = copy / "tiny-Q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"tiny-Q8_0\.gguf changed since the export"):
        verify(copy)


def test_verify_sees_weights_that_are_not_the_fold(exported: Path, tmp_path: Path) -> None:
    """A manifest that matches a wrong file: the tensors themselves tell."""
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    path = copy / "tiny-F32.gguf"
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset : tensor.data_offset + tensor.n_bytes] = bytes(tensor.n_bytes)
    path.write_bytes(data)
    manifest = json.loads((copy / "lorafold.json").read_text())
    manifest["files"][path.name]["sha256"] = hashlib.sha256(data).hexdigest()
    (copy / "lorafold.json").write_text(json.dumps(manifest))
    proof = verify(copy)
    failed = {check.name for check in proof.checks if check.verdict == "failed"}
    assert "tensors tiny-F32.gguf" in failed and "tensors tiny-Q8_0.gguf" not in failed
    with pytest.raises(NumericError, match=r"blk\.1\.ffn_down\.weight") as caught:
        proof.require()
    assert caught.value.exit_code == 6


def test_bytes_depend_on_nothing_but_the_inputs(tmp_path: Path) -> None:
    """Width 256, for K-quants to run; tensors in one block against many blocks of each, on 1 to 7 threads."""
    base = tiny_base(tmp_path / "base", hidden_size=256, intermediate_size=512)
    dice = np.random.default_rng(3)
    shapes = {"self_attn.q_proj": (256, 256), "mlp.down_proj": (256, 512)}
    factors = {}
    for layer in (0, 1):
        for name, (rows, cols) in shapes.items():
            factors |= lora(f"model.layers.{layer}.{name}", 4, rows, cols)
    factors = {name: dice.standard_normal(v.shape).astype(np.float32) / 16 for name, v in factors.items()}
    adapter = adapter_folder(tmp_path / "adapter", factors, r=4, target_modules=["q_proj", "down_proj"])
    made, blocks = [], []
    for number, (threads, memory) in enumerate(((1, 200_000_000), (1, 200_000), (2, 400_000), (7, 500_000))):
        out = tmp_path / f"place {number} 地方" / "out"
        quant = ("F16", "Q4_K_M", "Q8_0")
        settings = config(
            str(adapter), out, base=str(base), quant=quant, threads=threads, max_memory=memory, name="same"
        )
        export(settings)
        made.append(digests(out))
        weights = min(memory // (BYTES_IN_FLIGHT * threads), MAX_BLOCK_WEIGHTS)
        tensors = map_tensors(*_model(base))
        matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
        blocks.append(min(len(list(block_rows(tensor, weights))) for tensor in matrices))
    assert made[0] == made[1] == made[2] == made[3] and len(made[0]) == 3
    assert blocks[0] == 1 and min(blocks[1:]) > 1
    found = gguf.GGUFReader(tmp_path / "place 3 地方/out/same-Q4_K_M.gguf").tensors
    assert {tensor.tensor_type.name for tensor in found} == {"F32", "Q4_K", "Q6_K"}


def _model(folder: Path) -> tuple[dict[str, Any], Any]:
    return json.loads((folder / "config.json").read_text()), Checkpoint.open(folder).tensors


def test_a_plan_writes_nothing_and_knows_the_exact_size(adapter: str, tmp_path: Path) -> None:
    settings = config(adapter, tmp_path / "out", quant=("Q8_0",), name="tiny")
    lines = dict(plan_export(settings))
    assert not (tmp_path / "out").exists()
    export(settings)
    size = (tmp_path / "out" / "tiny-Q8_0.gguf").stat().st_size
    assert lines["tiny-Q8_0.gguf"].startswith(f"{size:,} bytes")


def test_a_split_model_is_whole_together(adapter: str, tmp_path: Path) -> None:
    export(config(adapter, tmp_path / "one", name="tiny"))
    export(config(adapter, tmp_path / "many", name="tiny", split_max_size=100_000))
    whole = gguf.GGUFReader(tmp_path / "one" / "tiny-F32.gguf")
    paths = sorted((tmp_path / "many").glob("*.gguf"))
    assert len(paths) > 2
    parts = [gguf.GGUFReader(path) for path in paths]
    assert paths[0].name == f"tiny-F32-00001-of-{len(paths):05d}.gguf"
    for number, part in enumerate(parts):
        assert part.fields["split.no"].contents() == number
        assert part.fields["split.count"].contents() == len(parts)
        assert part.fields["split.tensors.count"].contents() == len(whole.tensors)
    names = [tensor.name for part in parts for tensor in part.tensors]
    assert names == [tensor.name for tensor in whole.tensors]
    import llama_cpp

    model = llama_cpp.Llama(str(paths[0]), n_ctx=32, verbose=False)
    model.close()


def test_a_merged_folder_and_an_adapter_gguf_are_proven_too(adapter: str, tmp_path: Path) -> None:
    for kind, wanted in (("folder", "model.safetensors"), ("adapter", "tiny.gguf")):
        settings = ExportConfig(adapter, out=tmp_path / kind, format=kind, name="tiny")  # type: ignore[arg-type]
        result = export(settings)
        assert wanted in result.files and [check.verdict for check in result.proof.checks] == ["passed"]
        assert verify(tmp_path / kind).passed


def test_a_base_is_converted_as_it_is(tmp_path: Path) -> None:
    result = export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "out", quant=("F32",)))
    assert result.proof.passed and all(check.verdict == "passed" for check in result.proof.checks)


def test_the_names_are_checked_before_anything_is_read(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown quantization type 'Q9'.*Q4_K_M"):
        export(config(adapter, tmp_path / "out", quant=("Q9",)))
    with pytest.raises(UsageError, match="not empty"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").write_text("")
        export(config(adapter, tmp_path / "full"))
    with pytest.raises(UsageError, match="overlaps the input"):
        export(config(adapter, Path(adapter) / "inside"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_an_adapter_of_another_base_is_refused(adapter: str, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_chat.folder(), tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "lorafold.json").write_text(
        json.dumps({"kind": "adapter", "files": {}, "base": {"fingerprint": "0" * 64, "id": "x"}})
    )
    with pytest.raises(InputError, match="made for another base") as caught:
        export(config(str(copy), tmp_path / "out", base=str(other)))
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists() and settings


def test_a_full_disk_is_found_before_the_first_byte(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(SystemFault, match=r"the disk is too small \(needs [\d,]+ bytes, 1,000 are free\)"):
        export(config(adapter, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_weighted_adapters_are_read_from_the_command_line(adapter: str, tmp_path: Path) -> None:
    inputs = open_inputs(config(f"{adapter}=0.5", tmp_path / "out", adapter=(f"{adapter}=0.25",)))
    assert [weight for _, weight in inputs.adapters] == [0.5, 0.25]
    with pytest.raises(UsageError, match="FOLDER=WEIGHT"):
        open_inputs(config(f"{adapter}=much", tmp_path / "out"))


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    base = without_template(tmp_path / "base")
    with pytest.raises(InputError, match=r"--chat-template.*--no-modelfile"):
        export(config(str(base), tmp_path / "out"))
    export(config(str(base), tmp_path / "plain", modelfile=False))
    assert not (tmp_path / "plain" / "Modelfile").exists()
    export(config(str(base), tmp_path / "named", chat_template="chatml"))
    assert (tmp_path / "named" / "Modelfile").exists()


def test_without_a_modelfile_the_template_is_still_in_the_file(tmp_path: Path) -> None:
    export(config(str(tiny_chat.folder()), tmp_path / "out", modelfile=False))
    (path,) = (tmp_path / "out").glob("*.gguf")
    template = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    assert template == ChatTemplate.from_folder(tiny_chat.folder()).source


def test_a_proof_fails_with_its_sentences_and_the_cure_of_the_first() -> None:
    checks = (
        Check("a", "passed", "fine"),
        Check("b", "failed", "rows differ", fix="look at b"),
        Check("c", "not checked", "torch is missing"),
        Check("d", "failed", "ids differ"),
    )
    with pytest.raises(NumericError, match="b: rows differ; d: ids differ") as caught:
        Proof(checks).require()
    assert caught.value.fix == "look at b"
    with pytest.raises(NumericError) as caught:
        Proof(checks[3:]).require()
    assert caught.value.fix == AGAIN
    Proof(checks[::2]).require()
    with pytest.raises(NumericError, match=r"--require-proof.*c: torch is missing") as caught:
        Proof(checks[::2]).require(everything=True)
    assert caught.value.exit_code == 6
    Proof(checks[:1]).require(everything=True)


@pytest.mark.parametrize(
    ("verdicts", "passed", "said"),
    [
        (["passed", "passed"], True, "all 2 checks passed"),
        (["passed", "note"], True, "all 1 checks passed"),
        (["passed", "not checked"], None, "1 checks passed; not checked: check 1"),
        (["not checked"], None, "0 checks passed; not checked: check 0"),
        (["note"], None, "0 checks passed; not checked: everything"),
        ([], None, "0 checks passed; not checked: everything"),
        (["passed", "failed", "not checked"], False, "check 1 failed; 1 other checks passed"),
    ],
)
def test_only_what_was_checked_is_proven(verdicts: list[Any], passed: bool | None, said: str) -> None:
    proof = Proof(tuple(Check(f"check {n}", verdict, "") for n, verdict in enumerate(verdicts)))
    assert proof.passed is passed and proof.summary() == said
    assert proof.verdict == {True: "passed", False: "failed", None: "not checked"}[passed]


def test_an_export_without_a_proof_is_not_proven(adapter: str, tmp_path: Path) -> None:
    result = export(config(adapter, tmp_path / "out"))
    assert result.proof.passed is None
    manifest = json.loads((tmp_path / "out" / "lorafold.json").read_text())
    assert manifest["verdict"] == "not checked"
    assert "## Proof: not checked" in (tmp_path / "out" / "report.md").read_text()
    lines = dict(result.lines())
    assert lines["proof"] == "0 checks passed; not checked: proof"
    assert any(label == "note" and "--require-proof" in text for label, text in result.lines())
    with pytest.raises(UsageError, match=r"--proof-minutes: expected 0 or more, got -1"):
        ExportConfig(adapter, out=tmp_path / "out", proof_minutes=-1.0)
    with pytest.raises(UsageError, match=r"there is no proof to require.*--no-verify"):
        config(adapter, tmp_path / "other", require_proof=True)


def without_template(folder: Path) -> Path:
    base = shutil.copytree(tiny_chat.folder(), folder)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    return base


def test_what_was_not_checked_is_an_error_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = without_template(tmp_path / "base")
    run = ["export", str(base), "--quant", "F32", "--no-modelfile", "--name", "tiny", "--out"]
    assert main([*run, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "not checked" in said and "logits tiny-F32.gguf: there is no chat template" in said
    assert main([*run, str(tmp_path / "strict"), "--require-proof"]) == 6
    said = capsys.readouterr().err
    assert "--require-proof: not everything was checked: logits tiny-F32.gguf" in said
    assert f"kept in {tmp_path / 'strict.unproven'}" in said
    assert not (tmp_path / "strict").exists()
    assert (tmp_path / "strict.unproven" / "tiny-F32.gguf").is_file()
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "not checked: logits tiny-F32.gguf" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out"), "--require-proof"]) == 6


def test_a_failed_export_is_kept_under_a_name_that_says_so(
    adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config that the base's weights were not made for, which llama.cpp reads and transformers does too.

    The reference is loaded from the folder while the file is written from it: here the config changes between
    the two, as by another program.
    """
    out, kept = tmp_path / "out", tmp_path / "out.failed"
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")

    def change(step: str, done: float, total: float | None, note: str = "") -> None:
        settings = json.loads((base / "config.json").read_text())
        if step.startswith("prove") and settings["rms_norm_eps"] < 1:
            (base / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1.0}))

    def run(**changes: Any) -> None:
        settings = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-6}))
        export(ExportConfig(str(base), out=out, quant=("F32",), name="tiny", **changes), change)

    with pytest.raises(NumericError, match=r"the proof failed: logits tiny-F32\.gguf") as caught:
        run()
    assert str(kept) in str(caught.value) and "please report it" in str(caught.value)
    assert not out.exists() and (kept / "tiny-F32.gguf").is_file() and (kept / "Modelfile").is_file()
    assert json.loads((kept / "lorafold.json").read_text())["verdict"] == "failed"
    assert "## Proof: failed" in (kept / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out.failed"}
    # The proof can be repeated there, with the same end: the command's fix follows the check that failed.
    assert main(["verify", str(kept)]) == 6
    assert "please report it" in capsys.readouterr().err
    # An earlier one is replaced only with --force, and only if it is an export.
    with pytest.raises(UsageError, match=r"out\.failed: the output folder is not empty"):
        run()
    (kept / "mark").write_text("")
    with pytest.raises(NumericError):
        run(force=True)
    assert not (kept / "mark").exists() and (kept / "tiny-F32.gguf").is_file()
    shutil.rmtree(kept)
    kept.mkdir()
    (kept / "mine").write_text("")
    with pytest.raises(UsageError, match="--force replaces only an earlier export"):
        run(force=True)
    assert (kept / "mine").is_file()


def test_it_says_what_the_time_of_writing_went_into(adapter: str, tmp_path: Path) -> None:
    result = export(config(adapter, tmp_path / "out", quant=("Q8_0", "F16"), threads=2))
    assert {"read", "fold", "reorder", "quantize", "write", "checksum", "sync", "idle"} <= result.work.keys()
    assert list(result.seconds) == ["plan", "write", "prove", "commit"]
    # The kinds are parts of the writing; files are opened and the Modelfile is written besides.
    total = sum(spent.wall for spent in result.work.values())
    assert 0 < total <= result.seconds["write"] + 0.01
    assert all(spent.wall >= 0 and spent.processor >= 0 for spent in result.work.values())
    assert "quantize" in dict(result.lines())["written with"]
    # The checksums of the manifest were taken while the files were written.
    manifest = json.loads((tmp_path / "out" / "lorafold.json").read_text())
    for name, digest in digests(tmp_path / "out").items():
        assert manifest["files"][name]["sha256"] == digest


def test_an_export_is_proven_with_a_base_that_has_moved(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "here")
    export(config(str(base), tmp_path / "out"))
    base.rename(tmp_path / "there")
    with pytest.raises(InputError):
        verify(tmp_path / "out")
    assert verify(tmp_path / "out", base=str(tmp_path / "there")).passed


def test_an_export_of_a_base_is_proven_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """The header is written after the folder's name, so it is of another length under another name."""
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "a-base-1")
    export(config(str(base), tmp_path / "out"))
    with open(tmp_path / "out" / "a-base-1-F32.gguf", "rb") as file:
        assert b"A Base 1" in file.read(400)  # which is not the name of the file
    assert verify(tmp_path / "out").passed
    moved = base.rename(tmp_path / "a-name-that-is-longer-than-any-padding-of-a-header-could-be")
    assert verify(tmp_path / "out", base=str(moved)).passed
