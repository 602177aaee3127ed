"""The merged folder: transformers loads it, its bytes depend on the inputs alone, nothing is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import adapter_folder, base_folder

from lorafold.adapters.folder import Adapter
from lorafold.errors import NumericError, SystemFault
from lorafold.export.fold.folded import Folded
from lorafold.export.outputs.merged_folder import (
    FolderPlan,
    plan_merged_folder,
    plan_shards,
    write_merged_folder,
)
from lorafold.export.outputs.side_files import find_side_files
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")


def small_fold(tmp_path: Path) -> Folded:
    base = base_folder(tmp_path / "base")
    return Folded(base, [(Adapter.open(adapter_folder(tmp_path / "adapter")), 1.0)])


def planned(source: Any, base: Path, **options: Any) -> FolderPlan:
    how = {name: options.pop(name) for name in ("dtype", "shard_bytes") if name in options}
    return plan_merged_folder(source, base, find_side_files(base, **options), **how)


def written(source: Any, base: Path, out: Path, **options: Any) -> Path:
    work = {name: options.pop(name) for name in ("threads", "progress") if name in options}
    out.mkdir()
    write_merged_folder(planned(source, base, **options), source, out, **work)
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_it_answers_as_peft_merges(dtype: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from peft_models import base_model, load, logits, make_adapter

    base = base_model(tmp_path / "base", "qwen2", dtype)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    adapter = make_adapter(base, tmp_path / "adapter", dtype, config)
    wanted = logits(peft.PeftModel.from_pretrained(load(base, dtype), adapter).merge_and_unload())
    folded = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)], "peft")
    out = written(folded, base, tmp_path / "out", threads=2)
    assert np.array_equal(logits(load(out, dtype)), wanted)


def test_shards_and_their_index_are_as_transformers_reads_them(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft_models import base_model, load, logits

    base = base_model(tmp_path / "base", "llama", "float32")
    source = Folded(Checkpoint.open(base))
    out = written(source, base, tmp_path / "out", shard_bytes=100_000)
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(names) > 3 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = sum(info.nbytes for info in source.tensors.values())
    assert index["metadata"] == {"total_parameters": total // 4, "total_size": total}
    assert index["weight_map"].keys() == source.tensors.keys()
    assert np.array_equal(logits(load(out, "float32")), logits(load(base, "float32")))
    again = Checkpoint.open(out)  # our own strict reader agrees
    for name, info in source.tensors.items():
        assert np.array_equal(again.rows(name, 0, info.rows), source.rows(name, 0, info.rows))
    for plan in plan_shards(source, "keep", 100_000):
        assert plan.size == (out / plan.name).stat().st_size
        assert len(plan.tensors) == 1 or sum(info.nbytes for info in plan.tensors) <= 100_000


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bf16", "BF16"), ("f16", "F16"), ("f32", "F32"), ("keep", "F32")]
)
def test_types(dtype: Any, stored: str, tmp_path: Path) -> None:
    source = small_fold(tmp_path)
    out = written(source, tmp_path / "base", tmp_path / "out", dtype=dtype)
    result = Checkpoint.open(out)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert {info.dtype for info in result.tensors.values()} == {stored}
    assert np.array_equal(result.rows(name, 0, 8), np.full((8, 6), 4.0))
    config = json.loads((out / "config.json").read_text())
    names = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
    assert config.get("torch_dtype") == names.get(dtype)


def test_mixed_types_and_integers_are_kept_and_aligned(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    base.mkdir()
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(3, 5).bfloat16(),
        "ids": torch.arange(7),
        "wide": torch.randn(2, 3, dtype=torch.float64),
        "full": torch.randn(3),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    out = written(Checkpoint.open(base), base, tmp_path / "out")
    read = load_file(out / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    widths = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8, "I64": 8}
    for info in Checkpoint.open(out).tensors.values():
        assert info.offset % widths[info.dtype] == 0


def test_the_bytes_depend_on_no_thread(tmp_path: Path) -> None:
    source = small_fold(tmp_path)
    folders = [
        written(source, tmp_path / "base", tmp_path / f"out{n}", dtype="bf16", threads=n) for n in (1, 2, 7)
    ]
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1] == contents[2]


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float | None]] = []
    source = small_fold(tmp_path)
    written(source, tmp_path / "base", tmp_path / "out", progress=lambda *args: seen.append(args[:3]))
    total = sum(info.nbytes for info in source.tensors.values())
    assert seen[0] == ("write", 0, total) and seen[-1] == ("write", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_what_belongs_to_the_model_comes_along(tmp_path: Path) -> None:
    source = small_fold(tmp_path)
    base, own = tmp_path / "base", tmp_path / "adapter"
    (base / "tokenizer_config.json").write_text("{}")
    for name in ("tokenizer.json", "added_tokens.json", "chat_template.jinja"):
        (base / name).write_text(f"base {name}")
    for name in ("generation_config.json", "configuration_x.py", "LICENSE", "README.md", "optimizer.pt"):
        (base / name).write_text(f"base {name}")
    (own / "tokenizer.json").write_text("own tokenizer.json")

    out = written(source, base, tmp_path / "plain")
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "configuration_x.py",
        "LICENSE",
    }
    assert (out / "tokenizer.json").read_text() == "base tokenizer.json"

    # A tokenizer of the adapter's own comes whole: none of the base's files beside it, but for the template.
    out = written(source, base, tmp_path / "own", tokenizer=own)
    assert (out / "tokenizer.json").read_text() == "own tokenizer.json"
    assert not (out / "added_tokens.json").exists() and not (out / "tokenizer_config.json").exists()
    assert (out / "chat_template.jinja").read_text() == "base chat_template.jinja"

    out = written(source, base, tmp_path / "chat", template="{{ mine }}")
    assert (out / "chat_template.jinja").read_text() == "{{ mine }}"


def test_a_weight_too_large_for_f16(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    base = base_folder(tmp_path / "base")
    values = np.array([[1.0, -70000.0]], np.float32)
    save_file({"w": values}, tmp_path / "base" / "model.safetensors")
    source = Checkpoint.open(base.folder)
    with pytest.raises(NumericError, match=r"a weight of w is too large for F16.*bf16"):
        written(source, base.folder, tmp_path / "out", dtype="f16")
    assert (written(source, base.folder, tmp_path / "wide", dtype="bf16") / "model.safetensors").exists()


def test_nan_in_a_weight_that_nothing_touches(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    base = base_folder(tmp_path / "base")
    save_file({"w": np.array([[1.0, np.nan]], np.float32)}, base.folder / "model.safetensors")
    with pytest.raises(NumericError, match="NaN or infinity in tensor 'w', row 0"):
        written(Checkpoint.open(base.folder), base.folder, tmp_path / "out", threads=3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    """The configuration is a link to a device that is always full: the write itself fails."""
    source = small_fold(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").symlink_to("/dev/full")
    with pytest.raises(SystemFault, match="the disk is full"):
        write_merged_folder(planned(source, tmp_path / "base"), source, out)


@pytest.mark.parametrize(
    ("rotary", "older"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        (
            {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ),
        ({"full_attention": {"rope_theta": 1e6}}, {}),
        (None, {}),
    ],
)
def test_rotary_settings_stand_where_older_readers_look(rotary: Any, older: dict[str, Any]) -> None:
    """Ollama takes a frequency of 0 from a config.json that tells it in `rope_parameters` only."""
    from lorafold.export.outputs.merged_folder import _as_older

    given = {"model_type": "llama"} | ({} if rotary is None else {"rope_parameters": rotary})
    assert _as_older(dict(given)) == given | older
    nested = _as_older({"text_config": dict(given)})["text_config"]
    assert nested == given | older
    kept = _as_older({**given, "rope_theta": 7.0})
    assert kept["rope_theta"] == 7.0, "what is there stays"


def test_transformers_reads_the_older_settings_as_the_newer(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from lorafold.export.outputs.merged_folder import _as_older

    rotary = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    ours = LlamaConfig(rope_parameters=dict(rotary), max_position_embeddings=8192).to_dict()
    again = LlamaConfig.from_dict(_as_older(json.loads(json.dumps(ours))))
    assert again.rope_parameters == LlamaConfig.from_dict(ours).rope_parameters
