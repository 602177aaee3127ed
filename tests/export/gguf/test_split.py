"""A GGUF in several files: no file is larger than asked for, together they are the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_chat
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, export
from lorafold.export.gguf.header import encode_header, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.export.gguf.plan import GgufModel, plan_files
from lorafold.export.gguf.split import Typed, split_tensors
from lorafold.export.modelfile.parser import parse


def config(out: Path, **changes: Any) -> ExportConfig:
    settings = {"quant": ("F32",), "verify": False, "name": "m", **changes}
    return ExportConfig(str(tiny_chat.folder()), out=out, **settings)


def test_no_file_is_larger_than_the_limit(tmp_path: Path) -> None:
    """The limit is met to the byte: a file that it holds exactly is not cut, one byte less cuts it."""
    limit, sizes = 200_000, []
    while len(sizes) < 5:
        out = tmp_path / str(len(sizes))
        export(config(out, split_max_size=limit))
        files = [path.stat().st_size for path in sorted(out.glob("*.gguf"))]
        assert max(files) <= limit
        sizes.append((limit, files))
        limit = max(files) - 1 if max(files) == limit else max(files)
    assert any(max(files) == limit for limit, files in sizes)


def tensors_of(sizes: list[tuple[int, int]]) -> list[Typed]:
    kinds = (GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0)
    return [
        (MappedTensor(f"blk.{number}.{'x' * (number % 7)}.weight", (rows, 32)), kinds[number % 2])
        for number, (rows, _) in enumerate(sizes)
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.just(32)), min_size=1, max_size=30),
    st.integers(0, 3000),
    st.integers(200, 120_000),
)
def test_any_tensors_under_any_limit(sizes: list[tuple[int, int]], words: int, limit: int) -> None:
    tensors = tensors_of(sizes)
    metadata = (KeyValue("general.name", "x" * words, GGUFValueType.STRING),)
    whole = plan_files([GgufModel("F32", metadata, tuple(tensors))], "m", threads=1, max_memory=100_000)
    smallest = math.inf
    try:
        plan = plan_files(
            [GgufModel("F32", metadata, tuple(tensors))],
            "m",
            threads=1,
            max_memory=100_000,
            split_max_size=limit,
        )
    except UsageError as error:
        assert error.fix is not None
        smallest = int(error.fix.split()[-2])
        assert limit < smallest <= whole.size + 200
        split_tensors(tensors, metadata, smallest)  # what it advises is enough
        return
    assert max(file.size for file in plan.files) <= limit
    assert [typed.tensor for file in plan.files for typed in file.tensors] == [one for one, _ in tensors]
    assert (len(plan.files) == 1) == (whole.size <= limit)
    for file, after in zip(plan.files, plan.files[1:], strict=False):  # no file could take one tensor more
        more = [(typed.tensor, typed.type) for typed in (*file.tensors, after.tensors[0])]
        header = (
            len(file.header)
            - len(encode_header((), file.tensors))
            + len(encode_header((), place_tensors(more)))
        )
        placed = place_tensors(more)
        assert header + placed[-1].offset + placed[-1].nbytes > limit - 64


def test_a_limit_too_small_for_a_tensor_is_said_with_what_is_needed() -> None:
    tensors = [
        (MappedTensor("token_embd.weight", (1000, 64)), GGMLQuantizationType.F32),
        (MappedTensor("output_norm.weight", (64,)), GGMLQuantizationType.F32),
    ]
    for limit in (1000, 100_000):  # less than a header, less than the larger tensor
        with pytest.raises(UsageError, match=r"takes 256,\d+ bytes, more than") as caught:
            split_tensors(tensors, (), limit)
        assert caught.value.at == "--split-max-size" and caught.value.fix is not None
    needed = int(caught.value.fix.split()[-2])
    assert len(split_tensors(tensors, (), needed)) == 2
    with pytest.raises(UsageError):
        split_tensors(tensors, (), needed - 1)


def test_ollama_is_given_every_part(tmp_path: Path) -> None:
    settings = config(tmp_path / "out", split_max_size=200_000, quant=("F32", "Q8_0"))
    result = export(settings)
    for name in ("m-F32", "m-Q8_0"):
        parts = sorted(f"./{path.name}" for path in (tmp_path / "out").glob(f"{name}-*.gguf"))
        text = (tmp_path / "out" / ("Modelfile" if name == "m-F32" else "Modelfile-Q8_0")).read_text()
        read = parse(text)
        assert [read.model, *read.parts] == (parts or [f"./{name}.gguf"])
        assert (name == "m-F32") == (len(parts) > 1)
    assert any("ollama create" in text for _, text in result.next_steps)
    notes = [note for note in result.notes if "Ollama before 0.30 does not import split" in note]
    assert len(notes) == 1 and "llama-gguf-split --merge m-F32-00001-of-0000" in notes[0]
    assert f"# {notes[0]}" in (tmp_path / "out" / "Modelfile").read_text()


def test_a_model_that_fits_into_one_file_is_for_ollama(tmp_path: Path) -> None:
    result = export(config(tmp_path / "out", split_max_size=100_000_000))
    assert any("ollama create" in text for _, text in result.next_steps)
    assert parse((tmp_path / "out/Modelfile").read_text()).model == "./m-F32.gguf"
    assert "split.count" not in gguf.GGUFReader(tmp_path / "out/m-F32.gguf").fields
