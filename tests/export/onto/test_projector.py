"""`--mmproj`: the base's own projector is kept or folded onto, and handed over; any other is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_chat
from onto_cases import Tensors, drawn, merged, write_adapter, write_base
from tiny_base import tiny_tokenizer

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export import ExportConfig, export, plan_export, verify
from lorafold.export.fold.folded import Folded
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.projector import Projector, is_tower
from lorafold.weights import Checkpoint

SHAPES = {
    "model.language_model.layers.0.mlp.up_proj.weight": (48, 32),
    "model.visual.blocks.0.attn.qkv.weight": (60, 20),
    "model.visual.blocks.1.attn.qkv.weight": (60, 20),
    "model.visual.merger.fc.weight": (32, 20),
    "model.visual.patch_embed.proj.weight": (20, 3, 4, 4),
    "model.visual.blocks.0.norm1.weight": (20,),
}


def convert(t: Tensors) -> Tensors:
    """What a converter makes of the tower: fused tensors cut into parts, the rest as it is."""
    made = {
        "mm.2.weight": t["model.visual.merger.fc.weight"],
        "v.patch_embd.weight": t["model.visual.patch_embed.proj.weight"],
        "v.blk.0.ln1.weight": t["model.visual.blocks.0.norm1.weight"],
    }
    for block in (0, 1):
        parts = np.split(t[f"model.visual.blocks.{block}.attn.qkv.weight"], 3)
        made |= {f"v.blk.{block}.attn_{n}.weight": p for n, p in zip("qkv", parts, strict=True)}
    return made


def write_mmproj(path: Path, tensors: Tensors, width: int = 32, kind: str = "mmproj") -> Path:
    writer = gguf.GGUFWriter(path, "clip" if kind == "mmproj" else "llama")
    writer.add_type(kind)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_uint32("clip.vision.projection_dim", width)
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CONFIG: dict[str, Any] = {"text_config": {"hidden_size": 32}}


def opened(folder: Path, mmproj: Path, modules: list[str]) -> tuple[Projector, Tensors]:
    base = drawn(SHAPES)
    write_base(folder / "base", base)
    adapter = write_adapter(folder / "adapter", base, modules)
    fold = Folded(Checkpoint.open(folder / "base"), [(Adapter.open(adapter), 1.0)])
    return Projector.open(str(mmproj), fold, CONFIG, "tuned"), convert(merged(base, adapter))


def rows(projector: Projector, name: str) -> Any:
    tensor = projector.source.model.tensors[name]
    return projector.source.rows(name, 0, tensor.rows).reshape(tensor.shape)


def test_an_adapter_of_the_language_model_leaves_the_projector_alone(tmp_path: Path) -> None:
    file = write_mmproj(tmp_path / "m.gguf", convert(drawn(SHAPES)))
    projector, _ = opened(tmp_path, file, ["model.language_model.layers.0.mlp.up_proj"])
    assert projector.compared == 8 and not projector.touched and not projector.notes
    assert projector.file.name == "tuned-mmproj-F16.gguf"
    assert "8 matrices are the base's own; kept byte by byte" in projector.describe()[1]


def test_an_adapter_of_the_tower_is_folded_onto_it(tmp_path: Path) -> None:
    file = write_mmproj(tmp_path / "m.gguf", convert(drawn(SHAPES)))
    modules = ["model.visual.blocks.0.attn.qkv", "model.visual.merger.fc"]
    projector, wanted = opened(tmp_path, file, modules)
    assert set(projector.touched) == {f"{module}.weight" for module in modules}
    assert set(projector.source.touched) == {"mm.2.weight", *(f"v.blk.0.attn_{n}.weight" for n in "qkv")}
    for name, values in wanted.items():
        assert np.abs(rows(projector, name) - values).max() < (
            1e-6 if name in projector.source.touched else 1e-4
        )


def test_what_a_converter_computes_is_noted(tmp_path: Path) -> None:
    tensors = convert(drawn(SHAPES))
    tensors["v.patch_embd.weight"] = tensors["v.patch_embd.weight"] * 2
    projector, _ = opened(
        tmp_path, write_mmproj(tmp_path / "m.gguf", tensors), ["model.language_model.layers.0.mlp.up_proj"]
    )
    assert projector.compared == 7
    assert projector.notes == (
        "v.patch_embd.weight of the projector could not be compared: they are computed from the base's",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"7 of its 8 matrices are not in the base, the first is mm\.2\.weight.*same revision"),
        ({"only": "v.blk.1.attn_k.weight"}, r"1 of its 8 matrices are not in the base, .*blk\.1\.attn_k"),
        ({"width": 64}, r"projection_dim is 64, and the base's language model is 32 wide"),
        ({"kind": "model"}, r"no projector of a multimodal model.*goes to --onto"),
        ({"cut": 100}, r"truncated"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    tensors = convert(drawn(SHAPES, change.get("seed", 0)))
    if only := change.get("only"):
        tensors[only] = tensors[only] + drawn({only: tensors[only].shape}, 3)[only] * np.float32(0.1)
    file = write_mmproj(tmp_path / "m.gguf", tensors, change.get("width", 32), change.get("kind", "mmproj"))
    file.write_bytes(file.read_bytes()[: -change["cut"]] if "cut" in change else file.read_bytes())
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path, file, ["model.language_model.layers.0.mlp.up_proj"])
    assert str(file) in str(caught.value) and "fix:" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", False),
        ("language_model.model.layers.0.mlp.up_proj.weight", False),
        ("model.text_model.layers.0.mlp.up_proj.weight", False),
        ("model.layers.3.self_attn.q_proj.weight", False),
        ("model.embed_tokens_per_layer.weight", False),
        ("lm_head.weight", False),
        ("model.visual.blocks.0.attn.qkv.weight", True),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", True),
        ("multi_modal_projector.linear_1.weight", True),
        ("model.connector.modality_projection.proj.weight", True),
    ],
)
def test_names_of_towers(name: str, tower: bool) -> None:
    assert is_tower(name) == tower


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny chat model with a tower beside it, its GGUF, its projector."""
    from safetensors.numpy import load_file, save_file

    home = tmp_path_factory.mktemp("seeing")
    shutil.copytree(tiny_chat.folder(), home / "base")
    (weights,) = (home / "base").glob("*.safetensors")
    width = json.loads((home / "base/config.json").read_text())["hidden_size"]
    tower = {
        "model.visual.blocks.0.attn.qkv.weight": (60, 20),
        "model.visual.blocks.1.attn.qkv.weight": (60, 20),
        "model.visual.merger.fc.weight": (width, 20),
        "model.visual.patch_embed.proj.weight": (20, 3, 4, 4),
        "model.visual.blocks.0.norm1.weight": (20,),
    }
    tensors = drawn(tower)
    save_file(load_file(weights) | tensors, weights)
    write_mmproj(home / "mmproj.gguf", convert(tensors), width)
    plain = ExportConfig(str(tiny_chat.folder()), out=home / "gguf", quant=("F16",), name="b", verify=False)
    export(plain)
    return home


@pytest.mark.slow
def test_it_is_handed_over_in_modelfile_and_manifest(
    seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(seeing)
    settings = ExportConfig(
        str(tiny_chat.adapter()),
        base=str(seeing / "base"),
        out=tmp_path / "out",
        mmproj="mmproj.gguf",
        onto=str(seeing / "gguf/b-F16.gguf"),
        name="tuned",
    )
    assert "kept byte by byte, as tuned-mmproj-F16.gguf" in dict(plan_export(settings))["mmproj"]
    result = export(settings)
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    froms = [line for line in lines if line.startswith("FROM")]
    assert froms == ["FROM ./tuned-F16.gguf", "FROM ./tuned-mmproj-F16.gguf"]
    assert (tmp_path / "out/tuned-mmproj-F16.gguf").read_bytes() == (seeing / "mmproj.gguf").read_bytes()
    assert "tuned-mmproj-F16.gguf" in result.files
    manifest = json.loads((tmp_path / "out/lorafold.json").read_text())
    assert manifest["config"]["mmproj"] == str(seeing / "mmproj.gguf")
    verdicts = {check.name: check.verdict for check in result.proof.checks}
    assert verdicts["kept tuned-mmproj-F16.gguf"] == verdicts["prompt"] == "passed"
    assert (
        "llama.cpp",
        f"llama-server -m {tmp_path}/out/tuned-F16.gguf --mmproj {tmp_path}/out/tuned-mmproj-F16.gguf",
    ) in result.next_steps
    assert verify(tmp_path / "out").passed == result.proof.passed
    data = bytearray((tmp_path / "out/tuned-mmproj-F16.gguf").read_bytes())
    data[-1] ^= 1
    (tmp_path / "out/tuned-mmproj-F16.gguf").write_bytes(data)
    with pytest.raises(InputError, match=r"tuned-mmproj-F16\.gguf"):
        verify(tmp_path / "out")


PREPROCESSOR = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"longest_edge": 1000, "shortest_edge": 100, "height": 32, "width": 32},
    "patch_size": 14,
    "merge_size": 2,
    "min_pixels": 3136,
    "max_pixels": 100_000,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modules"),
    [
        (
            "Qwen3_5ForConditionalGeneration",
            ["model.visual.blocks.0.attn.qkv", "model.visual.merger.linear_fc1"],
        ),
        ("SmolVLMForConditionalGeneration", ["model.vision_model.encoder.layers.0.self_attn.q_proj"]),
        ("Glm4vForConditionalGeneration", ["model.visual.blocks.0.attn.qkv"]),
    ],
)
def test_the_converters_projector_of_the_merged_model(tmp_path: Path, name: str, modules: list[str]) -> None:
    peft, torch, transformers = (pytest.importorskip(module) for module in ("peft", "torch", "transformers"))
    from oracles import convert_hf_to_gguf
    from tiny_classes import write_tiny

    write_tiny(name, tmp_path / "base")
    load = getattr(transformers, name).from_pretrained
    model = load(tmp_path / "base", dtype=torch.float32)
    model.resize_token_embeddings(tiny_tokenizer(tmp_path / "base"))
    model.save_pretrained(tmp_path / "base")
    language = [
        n for n, _ in model.named_modules() if n.endswith("layers.0.mlp.up_proj") and "vision" not in n
    ]
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=[*modules, *language])
    )
    torch.manual_seed(0)
    for parameter, weight in tuned.named_parameters():
        if "lora_" in parameter:
            weight.data.normal_(0, 0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    for part in ("base", "merged"):
        (tmp_path / part / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
        convert_hf_to_gguf(tmp_path / part, tmp_path / f"mmproj-{part}.gguf", "--mmproj", "--outtype", "f32")
    fold = Folded(Checkpoint.open(tmp_path / "base"), [(Adapter.open(tmp_path / "adapter"), 1.0)])
    config = json.loads((tmp_path / "base/config.json").read_text())
    projector = Projector.open(str(tmp_path / "mmproj-base.gguf"), fold, config, "tuned")
    assert len(projector.touched) == len(modules) and len(projector.source.touched) >= len(modules)
    wanted = BaseGguf.open(tmp_path / "mmproj-merged.gguf", projector=True)
    assert list(wanted.tensors) == [tensor.name for tensor in projector.source.file_tensors()]
    changed = 0
    for tensor in wanted.tensors.values():
        values = wanted.values(tensor.name, 0, tensor.rows)
        assert np.abs(projector.source.rows(tensor.name, 0, tensor.rows) - values).max() <= 1e-6, tensor.name
        changed += not np.array_equal(values, projector.source.model.values(tensor.name, 0, tensor.rows))
    assert changed == len(projector.source.touched)
    if name.startswith("Qwen3_5"):  # the native way, which knows this class
        settings = ExportConfig(
            str(tmp_path / "adapter"),
            base=str(tmp_path / "base"),
            out=tmp_path / "out",
            quant=("F32",),
            mmproj=str(tmp_path / "mmproj-base.gguf"),
            modelfile=False,
            verify=False,
        )
        result = export(settings)
        assert any(file.endswith("-mmproj-F32.gguf") for file in result.files)
        assert not any("images are not seen" in note for note in result.notes), result.notes
