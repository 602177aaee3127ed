"""`lorafold export --onto` as a whole: the same file as the native way, proven, or nothing at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat

from lorafold.cli import main
from lorafold.errors import InputError, UsageError
from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.inputs import open_inputs
from lorafold.export.onto.model import BaseGguf
from lorafold.export.outputs.onto import plan_onto_output
from lorafold.gguf_file.read import read_gguf_header


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as GGUF in four types, by our native way."""
    out = tmp_path_factory.mktemp("bases") / "out"
    types = ("F32", "BF16", "F16", "Q8_0", "Q4_0")
    export(ExportConfig(str(tiny_chat.folder()), out=out, quant=types, name="base", verify=False))
    return out


def config(out: Path, onto: Path, **changes: Any) -> ExportConfig:
    settings = {"base": str(tiny_chat.folder()), "verify": False, "name": "tuned", **changes}
    return ExportConfig(str(tiny_chat.adapter()), out=out, onto=onto, **settings)


def rows(folder: Path, stem: str) -> dict[str, bytes]:
    model = BaseGguf.open(next(iter(sorted(folder.glob(f"{stem}*.gguf")))))
    return {n: model.packed(n, 0, t.rows).tobytes() for n, t in model.tensors.items()}


@pytest.mark.parametrize("type_", ["F32", "BF16", "F16", "Q8_0", "Q4_0"])
def test_types_of_the_file_are_kept_and_the_rows_are_those_of_the_native_way(
    bases: Path, tmp_path: Path, type_: str
) -> None:
    export(config(tmp_path / "onto", bases / f"base-{type_}.gguf"))
    native = config(tmp_path / "native", bases, quant=(type_,))
    export(
        ExportConfig(
            native.source, out=native.out, base=native.base, quant=(type_,), name="tuned", verify=False
        )
    )
    assert rows(tmp_path / "onto", f"tuned-{type_}") == rows(tmp_path / "native", f"tuned-{type_}")


def test_quantized_anew_from_one_read(bases: Path, tmp_path: Path) -> None:
    types = ("Q8_0", "Q4_K_M", "F16")
    export(config(tmp_path / "onto", bases / "base-F32.gguf", quant=types))
    native = config(tmp_path / "native", bases)
    export(
        ExportConfig(native.source, out=native.out, base=native.base, quant=types, name="tuned", verify=False)
    )
    for name in types:
        ours, theirs = (rows(tmp_path / way, f"tuned-{name}") for way in ("onto", "native"))
        assert ours == theirs, name
        header = read_gguf_header(tmp_path / f"onto/tuned-{name}.gguf")
        assert header.quantization == name
        assert header.number("general.quantization_version") == 2


@pytest.mark.slow
def test_a_matrix_is_not_collected_here_and_that_of_a_native_export_is_taken(
    bases: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What enters a weight is what it was trained on. " * 8)
    onto = config(tmp_path / "onto", bases / "base-F32.gguf", quant=("Q4_K_M",))
    with pytest.raises(UsageError, match="cannot be collected for --onto") as caught:
        replace(onto, imatrix_data=text)
    assert "imatrix.gguf of a native export" in str(caught.value)
    native = replace(onto, onto=None, out=tmp_path / "native", imatrix_data=text)
    export(native)
    export(replace(onto, imatrix=native.out / "imatrix.gguf"))
    assert rows(onto.out, "tuned-Q4_K_M") == rows(native.out, "tuned-Q4_K_M")
    export(replace(onto, out=tmp_path / "plain"))
    assert rows(tmp_path / "plain", "tuned-Q4_K_M") != rows(native.out, "tuned-Q4_K_M")


def test_the_header_is_the_files(bases: Path, tmp_path: Path) -> None:
    export(config(tmp_path / "onto", bases / "base-BF16.gguf", name=None))
    (made,) = (tmp_path / "onto").glob("*.gguf")
    before, after = read_gguf_header(bases / "base-BF16.gguf"), read_gguf_header(made)
    assert dict(before.metadata) == dict(after.metadata) and dict(before.types) == dict(after.types)
    assert list(before.tensors) == list(after.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("type_", ["F32", "Q8_0"])
def test_it_is_proven_and_proven_again(bases: Path, tmp_path: Path, type_: str) -> None:
    out = tmp_path / "out"
    result = export(config(out, bases / f"base-{type_}.gguf", verify=True))
    verdicts = {check.name: check.verdict for check in result.proof.checks}
    assert verdicts["tokenizer"] == verdicts["prompt"] == verdicts["prompt tokens"] == "passed"
    assert verdicts[f"kept tuned-{type_}.gguf"] == verdicts[f"tensors tuned-{type_}.gguf"] == "passed"
    # What a quantized base costs by itself is not known: its own weights are gone.
    assert verdicts[f"logits tuned-{type_}.gguf"] == ("passed" if type_ == "F32" else "not checked")
    assert {check.name: check.verdict for check in verify(out).checks} == verdicts | {"files": "passed"}
    manifest = json.loads((out / "lorafold.json").read_text())
    assert manifest["config"]["onto"] == str(bases / f"base-{type_}.gguf")
    report = (out / "report.md").read_text()
    assert "found by their values" in report and "copied byte by byte" in report


def test_the_proof_sees_a_byte_that_was_not_kept_and_a_row_that_was_not_folded(
    bases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = config(out, bases / "base-F32.gguf")
    export(settings)
    file = out / "tuned-F32.gguf"
    output = plan_onto_output(open_inputs(settings), settings)
    sound = {check.name: check.verdict for check in output.prove(out, lambda *_: None)}
    assert sound["kept tuned-F32.gguf"] == sound["tensors tuned-F32.gguf"] == "passed"
    tensors = read_gguf_header(file).tensors
    for name, check in (("blk.0.attn_k.weight", "kept"), ("blk.1.attn_q.weight", "tensors")):
        data = bytearray(file.read_bytes())
        own = BaseGguf.open(bases / "base-F32.gguf")
        place = tensors[name]
        wrong = own.packed(name, 0, own.tensors[name].rows).tobytes()
        if check == "kept":
            wrong = wrong[:-1] + bytes([wrong[-1] ^ 1])
        data[place.offset : place.offset + place.nbytes] = wrong
        file.write_bytes(data)
        found = {c.name: c for c in output.prove(out, lambda *_: None)}
        assert found[f"{check} tuned-F32.gguf"].verdict == "failed"
        assert name in found[f"{check} tuned-F32.gguf"].meaning


def test_parts_of_a_split_model(bases: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    export(
        ExportConfig(
            str(tiny_chat.folder()),
            out=split,
            quant=("F32",),
            name="base",
            verify=False,
            split_max_size=150_000,
        )
    )
    parts = sorted(split.glob("*.gguf"))
    assert len(parts) > 2
    export(config(tmp_path / "whole", parts[0]))
    export(config(tmp_path / "same", bases / "base-F32.gguf"))
    assert rows(tmp_path / "whole", "tuned") == rows(tmp_path / "same", "tuned")
    assert "split.count" not in read_gguf_header(next((tmp_path / "whole").glob("*.gguf"))).metadata
    export(config(tmp_path / "again", parts[-1], split_max_size=150_000))  # any part stands for all
    assert rows(tmp_path / "again", "tuned-F32-00001-of") == rows(tmp_path / "same", "tuned")
    parts[1].unlink()
    with pytest.raises(InputError, match="parts of the model are missing"):
        export(config(tmp_path / "lost", parts[0]))


def test_a_plan_says_what_is_touched_and_what_is_kept(bases: Path, tmp_path: Path) -> None:
    lines = dict(plan_export(config(tmp_path / "out", bases / "base-F32.gguf", plan=True)))
    assert lines["onto"].endswith("base-F32.gguf (llama, F32)")
    assert lines["folded"] == "6 tensors, found by their values: 4 by rows, 2 by permuted rows"
    assert lines["kept"] == "15 tensors that the adapter leaves alone, copied byte by byte"
    assert not (tmp_path / "out").exists()


def refused(capsys: pytest.CaptureFixture[str], out: Path, onto: Path, *more: str) -> str:
    command = ["export", str(tiny_chat.adapter()), "--base", str(tiny_chat.folder()), "--onto", str(onto)]
    code = main([*command, "--out", str(out), *more])
    said = capsys.readouterr().err
    assert code in (2, 3), said
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "fix:" in error and "Traceback" not in said, said
    assert not out.exists() and not list(out.parent.glob(".*partial*"))
    return said


def test_what_is_refused_writes_nothing(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    other = tmp_path / "other"
    export(ExportConfig(str(tiny_chat.folder(1)), out=other, quant=("F32",), name="other", verify=False))
    said = refused(capsys, out, other / "other-F32.gguf")
    assert "6 of 6 tensors that the adapter changes are not in it" in said and "same revision" in said
    (tmp_path / "cut.gguf").write_bytes((bases / "base-F32.gguf").read_bytes()[:-100])
    assert "truncated" in refused(capsys, out, tmp_path / "cut.gguf")
    assert "no such file" in refused(capsys, out, tmp_path / "none.gguf")
    assert "quantized a second time" in refused(capsys, out, bases / "base-Q8_0.gguf", "--quant", "Q4_0")
    assert "keeps its type" in refused(capsys, out, bases / "base-F32.gguf", "--tensor-type", "ffn=Q8_0")
    assert "no meaning for --format folder" in refused(
        capsys, out, bases / "base-F32.gguf", "--format", "folder"
    )


def test_a_base_alone_has_nothing_to_fold(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing to fold onto base-F32\.gguf"):
        export(ExportConfig(str(tiny_chat.folder()), out=tmp_path / "out", onto=bases / "base-F32.gguf"))


def test_the_file_is_not_overwritten(bases: Path, tmp_path: Path) -> None:
    place = tmp_path / "export"
    shutil.copytree(bases, place)
    with pytest.raises(UsageError, match="overlaps the input"):
        export(config(place, place / "base-F32.gguf", force=True))


def test_an_adapter_with_other_tokens(bases: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_chat.adapter(), adapter)
    tokenizer = json.loads((tiny_chat.folder() / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 300, "content": "<new>", "special": True})
    (adapter / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = config(tmp_path / "out", bases / "base-F32.gguf")
    with pytest.raises(InputError, match="the adapter brings other tokens"):
        export(ExportConfig(str(adapter), out=settings.out, base=settings.base, onto=settings.onto))


def test_the_template_of_the_adapter_goes_into_the_header(bases: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_chat.adapter(), adapter)
    own = read_gguf_header(bases / "base-F32.gguf").text("tokenizer.chat_template")
    assert own is not None
    other = own.replace("'\\n'", "'\\n\\n'")
    assert other != own
    (adapter / "chat_template.jinja").write_text(other)
    settings = config(tmp_path / "out", bases / "base-F32.gguf")
    export(ExportConfig(str(adapter), out=settings.out, base=settings.base, onto=settings.onto, verify=False))
    (made,) = settings.out.glob("*.gguf")
    assert read_gguf_header(made).text("tokenizer.chat_template") == other
    assert (settings.out / "Modelfile").is_file()


def test_results_do_not_depend_on_threads_and_blocks(bases: Path, tmp_path: Path) -> None:
    made = []
    for number, (threads, memory) in enumerate(((1, 200_000_000), (3, 100_000))):
        out = tmp_path / str(number)
        export(config(out, bases / "base-F32.gguf", quant=("Q8_0",), threads=threads, max_memory=memory))
        made.append(np.frombuffer((out / "tuned-Q8_0.gguf").read_bytes(), np.uint8))
    assert np.array_equal(*made)


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0"])
def test_as_much_survives_as_in_the_native_way(type_: str, bases: Path, tmp_path: Path) -> None:
    """Types kept or quantized anew; of the same tensors, under the same names."""
    shares = []
    for place, onto in (("kept", type_), ("anew", "F32"), ("native", None)):
        settings = config(tmp_path / place, bases / f"base-{onto}.gguf", quant=(type_,) * (onto != type_))
        result = export(settings if onto else replace(settings, onto=None))
        (found,) = result.survival.values()
        shares.append({one.tensor: one.share for one in found})
    kept, anew, native = shares
    assert kept == pytest.approx(native) and anew == pytest.approx(native) and len(native) > 4
