"""--imatrix-data: a matrix collected on the user's texts is used, kept, and found again by verify."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_chat
from safetensors.numpy import load_file, save_file
from tuned_models import MODULES, tuned_adapter, tuned_base, tuned_config

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError, UsageError
from lorafold.export import ExportConfig, arch, export, plan_export, verify
from lorafold.export.imatrix.collect import collect, collected_names
from lorafold.export.imatrix.data import collect_both
from lorafold.export.imatrix.file import read_imatrix
from lorafold.export.imatrix.texts import read_texts
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.reference.whole import load_base, with_adapter
from lorafold.progress import silent
from lorafold.tokenizer.loading import load_tokenizer

CHATS = [
    [{"role": "user", "content": "Who keeps the lamp?"}, {"role": "assistant", "content": "I do."}],
    [{"role": "user", "content": "x" * 700}, {"role": "assistant", "content": "Long."}],
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return path


def settings(out: Path, data: Path | None, **changes: object) -> ExportConfig:
    """An export with a matrix of the user's texts alone, if there are any."""
    share = None if data is None else 1.0
    config = ExportConfig(
        str(tiny_chat.adapter()),
        out=out,
        quant=("Q4_0",),
        imatrix_data=data,
        imatrix_share=share,
        name="tiny",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def test_a_collected_matrix_is_that_of_base_and_adapter(chats: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "out", chats)
    result = export(config)
    assert set(result.files) == {"tiny-Q4_0.gguf", "imatrix.gguf", "Modelfile"}
    inputs = open_inputs(config)
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    tokenizer = ChatTokenizer.from_folder(inputs.tokenizer)
    first, second = (tokenizer.encode_chat(chat).ids for chat in CHATS)
    assert len(first) < 512 < len(second) < 1024
    model = with_adapter(load_base(inputs), inputs)
    wanted = collect(model, tensors, [first, second[:512], second[512:]])
    found = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert found.entries.keys() == collected_names(tensors) == wanted.entries.keys()
    for name, entry in found.entries.items():
        assert np.array_equal(entry.counts, wanted.entries[name].counts)
        assert np.allclose(entry.sums, wanted.entries[name].sums, rtol=1e-5)
    assert (found.datasets, found.chunks) == (("chats.jsonl",), 3)


def test_a_large_model_is_run_a_layer_at_a_time(chats: Path, tmp_path: Path) -> None:
    inputs = open_inputs(settings(tmp_path / "out", chats))
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    texts = read_texts(inputs, chats, hold_out=False)
    whole, layers = (collect_both(inputs, tensors, texts, silent, **way) for way in ({}, {"whole": 0}))
    for one, other in ((whole.own, layers.own), (whole.general, layers.general)):
        assert one.entries.keys() == other.entries.keys() and one.datasets == other.datasets
        for name, entry in one.entries.items():
            assert np.allclose(other.entries[name].sums, entry.sums, rtol=1e-4), name


def test_it_is_used_and_found_again(chats: Path, tmp_path: Path) -> None:
    """The same bytes as with --imatrix and the kept file; others than without; `verify` needs no texts."""
    export(settings(tmp_path / "out", chats))
    kept = tmp_path / "out" / "imatrix.gguf"
    export(settings(tmp_path / "again", None, imatrix=kept, verify=False))
    export(settings(tmp_path / "plain", None, verify=False))
    ours, again, plain = (
        (tmp_path / out / "tiny-Q4_0.gguf").read_bytes() for out in ("out", "again", "plain")
    )
    assert ours == again != plain and len(ours) == len(plain)
    chats.unlink()
    assert verify(tmp_path / "out").passed


def test_plain_text_is_cut_into_chunks(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a lamp on a rock\n" * 100)
    export(settings(tmp_path / "out", text, verify=False))
    matrix = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    length = 17 * 100  # a token for each byte
    assert (matrix.chunks, matrix.chunk_size) == (4, 512)
    assert {entry.counts.item() for entry in matrix.entries.values()} == {length}


def test_a_text_is_neither_cut_nor_filled_up_to_the_length_of_a_training(tmp_path: Path) -> None:
    """Such lengths are saved in tokenizer.json; the proof of a whole export passes all the same."""
    base = Path(shutil.copytree(tiny_chat.folder(), tmp_path / "base"))
    tokenizer = load_tokenizer(base / "tokenizer.json")
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(base / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text("a lamp on a rock\n" * 100)
    result = export(settings(tmp_path / "out", text, base=str(base)))
    matrix = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert (matrix.chunks, matrix.chunk_size) == (4, 512)
    assert result.proof.passed


def test_a_model_without_a_template_reads_the_general_texts_as_they_are(tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_chat.folder(), tmp_path / "base"))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    told = json.loads((base / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(told))
    text = tmp_path / "text.txt"
    text.write_text("a lamp on a rock\n" * 400)
    inputs = open_inputs(ExportConfig(str(base), out=tmp_path / "out", modelfile=False))
    texts = read_texts(inputs, text, hold_out=True)
    tokenizer = load_tokenizer(base / "tokenizer.json")
    assert tokenizer.decode(texts.general[0]).startswith("Why does bread rise in the oven?\n\nYeast eats")
    assert len(texts.held_out) == 3 and len(texts.own) == 11 and len(texts.guard) == 12


def test_types_that_need_a_matrix_can_be_planned(chats: Path, tmp_path: Path) -> None:
    """The plan knows which tensors will have an entry, and runs nothing."""
    base = wide_base(tmp_path / "base")
    config = ExportConfig(str(base), out=tmp_path / "out", quant=("IQ2_XS",), name="wide")
    with pytest.raises(UsageError, match="needs an importance matrix"):
        plan_export(config)
    lines = dict(plan_export(replace(config, imatrix_data=chats)))
    assert "IQ2_XS" in lines["wide-IQ2_XS.gguf"] and "in memory" in lines["imatrix.gguf"]
    assert not (tmp_path / "out").exists()


def test_a_plan_with_an_adapter_leaves_survival_to_the_matrix(chats: Path, tmp_path: Path) -> None:
    base = tuned_base(tmp_path / "base")
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 5e-3)
    config = tuned_config(adapter, base, tmp_path / "out", quant=("IQ2_XXS",), imatrix_data=chats)
    told = dict(plan_export(config))
    assert told["survival"] == "the export measures it, with the importance matrix that it collects"
    assert "IQ2_XXS" in told["m-IQ2_XXS.gguf"]


def wide_base(folder: Path) -> Path:
    """The tiny base with everything four times as wide: 256 columns, as the types with super-blocks need."""
    shutil.copytree(tiny_chat.folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    wide = {name: 4 * config[name] for name in ("hidden_size", "intermediate_size")}
    (folder / "config.json").write_text(json.dumps(config | wide))
    tensors = load_file(folder / "model.safetensors")
    scaled = {
        name: np.zeros([size if size == config["vocab_size"] else 4 * size for size in tensor.shape], "f4")
        for name, tensor in tensors.items()
    }
    save_file(scaled, folder / "model.safetensors")
    return folder


def test_what_cannot_be_collected_is_known_before_any_work(chats: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    for data, says in ((empty, "there is no text in it"), (tmp_path / "absent.txt", "there is no such file")):
        with pytest.raises(InputError, match=says):
            plan_export(settings(tmp_path / "out", data))
    own_code = shutil.copytree(tiny_chat.folder(), tmp_path / "own-code")
    own = json.loads((own_code / "config.json").read_text()) | {"auto_map": {"AutoModel": "code.Model"}}
    (own_code / "config.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match=r"brings its own Python code.*--imatrix"):
        plan_export(settings(tmp_path / "out", chats, source=str(own_code), trust_remote_code=True))
    with pytest.raises(UsageError, match="either --imatrix or --imatrix-data"):
        settings(tmp_path / "out", chats, imatrix=tmp_path / "x.gguf")
    assert not (tmp_path / "out").exists()


def test_several_weighted_adapters(chats: Path, tmp_path: Path) -> None:
    """The fold's own weights are run: half an adapter and half of it again is the adapter."""
    adapter = f"{tiny_chat.adapter()}=0.5"
    base = str(tiny_chat.folder())
    export(settings(tmp_path / "halves", chats, source=adapter, adapter=(adapter,), base=base, verify=False))
    export(settings(tmp_path / "whole", chats, verify=False))
    halves, whole = (read_imatrix(tmp_path / name / "imatrix.gguf") for name in ("halves", "whole"))
    assert halves.entries.keys() == whole.entries.keys()
    for name, entry in halves.entries.items():
        assert np.allclose(entry.sums, whole.entries[name].sums, rtol=1e-5), name


def test_a_base_alone_has_a_matrix_too(chats: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    export(settings(tmp_path / "out", chats, source=str(base), verify=False))
    assert (tmp_path / "out" / "imatrix.gguf").exists()
