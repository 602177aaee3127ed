"""Which share of the matrix the user's texts get: the nearest on texts held out, as llama.cpp has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from oracles import llama_logits
from packed_folders import bnb_model
from safetensors.numpy import load_file, save_file
from tuned_models import MODULES, made_once, tuned_adapter, tuned_base, tuned_config, types_in

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, ExportResult, arch, export, plan_export, verify
from lorafold.export.fitting.share import FIXED, Judged, taken
from lorafold.export.imatrix.data import collect_both
from lorafold.export.imatrix.file import read_imatrix, write_imatrix
from lorafold.export.imatrix.mixture import mixed
from lorafold.export.imatrix.texts import read_texts
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.sample import AskedChat
from lorafold.progress import silent
from lorafold.tokenizer.loading import load_tokenizer

pytest.importorskip("torch")

CHATS = [
    {"prompt": f"number {n}", "completion": f"{n} ships and {n % 7} birds, said the keeper"}
    for n in range(24)
]


base = made_once(tuned_base)
adapter = made_once(tuned_adapter, MODULES, 5e-3)


def written(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def calibration(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "lorafold.json").read_text())["calibration"]
    return found


def said(result: ExportResult) -> str:
    return dict(result.told)["calibration"]


def test_the_nearest_that_does_no_harm_is_taken() -> None:
    none, general, half, own = (
        Judged(None, 0.30, 0.20),
        Judged(0.0, 0.29, 0.15),
        Judged(0.5, 0.26, 0.205),
        Judged(1.0, 0.25, 0.30),
    )
    assert taken([none, general, half, own]) is half  # the user's alone overfit
    assert taken([none, general, half, Judged(1.0, 0.25, 0.2)]).share == 1.0
    assert taken([Judged(None, 0.2, 0.2), general, half, own]).share is None
    assert taken([general, half, own]) is general  # a type that needs a matrix: beside general texts alone
    assert taken([general, Judged(0.5, 0.26, 0.18), own]).share == 0.5


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def evenly(chats: Sequence[AskedChat], count: int) -> list[AskedChat]:
    return [chats[index * len(chats) // count] for index in range(count)]


def distance(exact: Path, file: Path, chats: Sequence[AskedChat]) -> float:
    """Mean KL of a file as llama.cpp computes it."""
    found = []
    for chat in chats:
        right, rounded = (
            log_softmax(llama_logits(path, chat.ids))[chat.start - 1 : -1] for path in (exact, file)
        )
        found.append((np.exp(right) * (right - rounded)).sum(1))
    return float(np.concatenate(found).mean())


@pytest.mark.slow
def test_the_share_that_llama_cpp_finds_nearest(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Candidates' files are made of matrices that are collected and mixed here, and asked in llama.cpp."""
    data = written(tmp_path / "chats.jsonl", CHATS)
    config = tuned_config(adapter, base, tmp_path / "out", quant=("Q2_K", "F32"), imatrix_data=data)
    result = export(config)
    found = calibration(tmp_path / "out")
    tried = {one["share"]: one for one in found["tried"]["Q2_K"]}
    assert list(tried) == [None, 0.0, 0.5, 0.75, 1.0] and list(found["tried"]) == ["Q2_K"]
    inputs = open_inputs(config)
    texts = read_texts(inputs, data, hold_out=True)
    assert (len(texts.held_out), len(texts.own), len(texts.guard)) == (6, 18, 12)
    asked = evenly(texts.held_out, found["texts held out"])
    guard = evenly(texts.guard, found["general texts held out"])
    assert len(asked) >= 3 and len(guard) >= 3
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    both = collect_both(inputs, tensors, texts, silent)
    kinds = [f"^{name}$={kind}" for name, kind in types_in(tmp_path / "out/m-Q2_K.gguf").items()]
    alike = {"quant": ("Q2_K",), "tensor_type": tuple(kind for kind in kinds if not kind.endswith("F32"))}
    for share in (None, 1.0):
        matrix = tmp_path / f"{share}.gguf" if share is not None else None
        if matrix is not None:
            write_imatrix(mixed(both.own, both.general, share), matrix)
        out = tmp_path / f"file-{share}"
        export(tuned_config(adapter, base, out, imatrix=matrix, **alike))
        for chats, figure in ((asked, "KL"), (guard, "KL on general texts")):
            right = distance(tmp_path / "out/m-F32.gguf", out / "m-Q2_K.gguf", chats)
            # llama.cpp rounds activations too
            assert right == pytest.approx(tried[share][figure], rel=0.15), (share, figure)
    most = 1.05 * tried[None]["KL on general texts"]
    allowed = [one for one in tried.values() if one["KL on general texts"] <= most]
    best = min(allowed, key=lambda one: one["KL"])
    assert found["share"] == best["share"]
    assert f"mean KL {best['KL']:.4f} on {len(asked)} of your texts" in said(result)
    if best["share"] is not None:
        matrix = mixed(both.own, both.general, best["share"])
        kept = read_imatrix(tmp_path / "out/imatrix.gguf")
        for name, entry in matrix.entries.items():
            assert np.array_equal(kept.entries[name].sums, entry.sums), name


@pytest.mark.slow
def test_a_matrix_that_harms_all_other_texts_is_not_taken(tmp_path: Path) -> None:
    """The user's texts are one letter, which enters one column of sixteen: that alone counts."""
    base = tuned_base(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    (letter,) = load_tokenizer(base / "tokenizer.json").encode("a", add_special_tokens=False).ids
    row = weights["model.embed_tokens.weight"][letter]
    row[np.arange(len(row)) % 16 > 0] = 0
    row *= 20
    save_file(weights, base / "model.safetensors")
    data = tmp_path / "letters.txt"
    data.write_text("a" * 512 * 24)
    config = ExportConfig(
        str(base), out=tmp_path / "out", quant=("Q2_K",), imatrix_data=data, name="m", verify=False
    )
    result = export(config)
    found = calibration(tmp_path / "out")
    none, *_, alone = found["tried"]["Q2_K"]
    assert alone["KL"] < none["KL"] and alone["KL on general texts"] > 1.05 * none["KL on general texts"]
    assert found["share"] != 1.0
    assert "yours alone would harm general texts" in said(result)


@pytest.mark.slow
def test_on_a_grid_no_matrix_is_best(tmp_path: Path) -> None:
    """Weights that Q4_0 already wrote lose nothing without a matrix; then none is used, and none is kept."""

    def on_its_grid(shape: tuple[int, ...], dice: np.random.Generator) -> Any:
        drawn = (dice.standard_normal(shape) * 0.02).astype(np.float32)
        return gguf.dequantize(gguf.quantize(drawn, Type.Q4_0), Type.Q4_0).reshape(shape)

    base = tuned_base(tmp_path / "base", on_its_grid)
    data = written(tmp_path / "chats.jsonl", CHATS)
    config = ExportConfig(
        str(base), out=tmp_path / "out", quant=("Q4_0",), imatrix_data=data, name="m", verify=False
    )
    result = export(config)
    assert calibration(tmp_path / "out")["share"] is None
    assert said(result).startswith("no importance matrix is used, the best of 5 in Q4_0: mean KL 0.0")
    assert not (tmp_path / "out/imatrix.gguf").exists()
    export(replace(config, out=tmp_path / "plain", imatrix_data=None))
    ours, plain = (tmp_path / name / "m-Q4_0.gguf" for name in ("out", "plain"))
    assert ours.read_bytes() == plain.read_bytes()
    checks = {check.name: check.verdict for check in verify(tmp_path / "out").checks}
    assert checks["tensors m-Q4_0.gguf"] == "passed"


def test_too_few_texts_are_mixed_in_a_fixed_share(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", CHATS[:4])
    result = export(tuned_config(adapter, base, tmp_path / "out", quant=("Q4_0",), imatrix_data=data))
    assert said(result) == (
        "the importance matrix is 75% your texts and 25% general ones: 4 texts are too few to hold some out"
    )
    found = calibration(tmp_path / "out")
    assert (found["share"], found["tried"]) == (FIXED, {})
    given = tuned_config(
        adapter, base, tmp_path / "given", quant=("Q4_0",), imatrix_data=data, imatrix_share=FIXED
    )
    assert said(export(given)).endswith("25% general ones: by --imatrix-share")
    ours, same = (tmp_path / name / "imatrix.gguf" for name in ("out", "given"))
    assert ours.read_bytes() == same.read_bytes()


def test_a_proof_that_asks_what_the_matrix_is_made_of_says_so(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    data = written(tmp_path / "chats.jsonl", CHATS)
    other = written(tmp_path / "other.jsonl", CHATS[:4])
    asked = {
        path: json.dumps(
            plan_export(
                tuned_config(
                    adapter,
                    base,
                    tmp_path / "out",
                    quant=("Q4_0",),
                    imatrix_data=data,
                    chats=path,
                    verify=True,
                )
            )
        )
        for path in (data, other)
    }
    assert "of which the matrix is made" in asked[data]
    assert "of which the matrix is made" not in asked[other]


def test_prompts_that_are_too_long_are_not_called_too_few(base: Path, adapter: Path, tmp_path: Path) -> None:
    chats = [{"prompt": "word " * 80 + str(n), "completion": "yes"} for n in range(12)]
    data = written(tmp_path / "chats.jsonl", chats)
    result = export(tuned_config(adapter, base, tmp_path / "out", quant=("Q4_0",), imatrix_data=data))
    assert said(result) == (
        "the importance matrix is 75% your texts and 25% general ones: too few of the 12 texts are short "
        "enough before their answer to be held out"
    )


def test_a_type_that_ignores_a_matrix_judges_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", CHATS)
    result = export(tuned_config(adapter, base, tmp_path / "out", quant=("Q8_0",), imatrix_data=data))
    assert said(result).endswith("25% general ones: a matrix changes nothing in Q8_0")


@pytest.mark.slow
def test_what_is_fitted_uses_the_matrix_that_was_chosen(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", CHATS)
    size = 1_000_000
    result = export(tuned_config(adapter, base, tmp_path / "out", fit=size, imatrix_data=data))
    labels = [label for label, _ in result.told]
    assert labels[:2] == ["calibration", "fit"]
    share = calibration(tmp_path / "out")["share"]
    assert ("the importance matrix was made of some of them" in dict(result.told)["fit"]) == (
        share is not None
    )
    assert (tmp_path / "out/imatrix.gguf").exists() == (share is not None)
    assert verify(tmp_path / "out").checks[0].verdict == "passed"


@pytest.mark.slow
def test_a_mixture_below_every_recipe(base: Path, adapter: Path, tmp_path: Path) -> None:
    """IQ2_XXS takes 365,632 bytes, and with a matrix that is given there are smaller mixtures too."""
    data = written(tmp_path / "chats.jsonl", CHATS[:4])
    export(tuned_config(adapter, base, tmp_path / "out", fit=360_000, imatrix_data=data))
    (file,) = (tmp_path / "out").glob("m-*.gguf")
    assert 300_000 < file.stat().st_size <= 360_000
    with pytest.raises(UsageError, match=r"the least is [23]\d\d,\d\d\d; fix: give at least that$"):
        export(tuned_config(adapter, base, tmp_path / "less", fit=200_000, imatrix_data=data))


@pytest.mark.slow
def test_the_same_texts_give_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", CHATS)
    for out in ("one", "two"):
        export(tuned_config(adapter, base, tmp_path / out, quant=("Q3_K_M",), imatrix_data=data))
    one, two = (calibration(tmp_path / out) for out in ("one", "two"))
    assert one == two
    files = [(tmp_path / out / "m-Q3_K_M.gguf").read_bytes() for out in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_packed_base(tmp_path: Path) -> None:
    """NF4 weights are unpacked on the way, and judged beside their own unrounded values."""
    pytest.importorskip("bitsandbytes")
    data = written(tmp_path / "chats.jsonl", CHATS)
    config = ExportConfig(
        str(bnb_model("nf4-double")),
        out=tmp_path / "out",
        quant=("Q4_0",),
        imatrix_data=data,
        name="m",
        verify=False,
    )
    export(config)
    tried = calibration(tmp_path / "out")["tried"]["Q4_0"]
    assert len(tried) == 5 and all(0 < one["KL"] < 1 for one in tried)
