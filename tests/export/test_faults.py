"""Every fault of a base, an adapter, a safetensors file or an index of shards, through the command line.

One line on stderr with a cure, the promised exit code, and an old output left as it was. What exactly each
message says is tested where it is made (test_weights, test_adapters, test_models, tests/export/arch).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_chat
from adapter_folders import adapter_folder, lora
from safetensors.numpy import load_file, save_file

from lorafold.cli import main

Damage = Callable[[Path], object]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Q, NORM = "model.layers.1.self_attn.q_proj", "model.norm.weight"


def settings(name: str, **changes: Any) -> Damage:
    """Change fields of a JSON file."""

    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def weights(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the tensors of a safetensors file."""

    def damage(folder: Path) -> None:
        tensors = {key: value.copy() for key, value in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return damage


def element(name: str, tensor: str, value: float) -> Damage:
    """Put one value into a tensor."""
    return weights(name, lambda tensors: np.put(tensors[tensor], 5, value))


def raw(content: bytes, name: str = SINGLE) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def header(header: Any, data: bytes = b"") -> Damage:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(len(text).to_bytes(8, "little") + text + data)


def f32(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def only_pickles(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def in_shards(change: Callable[[Path, dict[str, str]], object]) -> Damage:
    """Cut the base into two shards, then damage the folder or the index's map."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        weight_map = {name: PARTS[index % 2] for index, name in enumerate(sorted(tensors))}
        for part in PARTS:
            save_file({name: tensors[name] for name in tensors if weight_map[name] == part}, folder / part)
        (folder / SINGLE).unlink()
        change(folder, weight_map)
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return damage


def both_shards_away(folder: Path, weight_map: dict[str, str]) -> None:
    for part in PARTS:
        (folder / part).unlink()


def key_in_both(folder: Path, weight_map: dict[str, str]) -> None:
    weights(PARTS[1], lambda tensors: tensors.update({NORM: np.ones(64, np.float32)}))(folder)
    weights(PARTS[0], lambda tensors: tensors.update({NORM: np.ones(64, np.float32)}))(folder)


def shard_behind(link: str) -> Callable[[Path, dict[str, str]], None]:
    """Move a shard out of the folder, and name it as `link` says."""

    def damage(folder: Path, weight_map: dict[str, str]) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / PARTS[0], outside / PARTS[0])
        if link == "symlink":
            (folder / PARTS[0]).symlink_to(outside / PARTS[0])
            return
        place = f"../outside/{PARTS[0]}" if link == "relative" else str(outside / PARTS[0])
        weight_map.update({name: place for name, part in weight_map.items() if part == PARTS[0]})

    return damage


def flipped_bit(name: str) -> Damage:
    """Flip the last bit of a file whose checksum a manifest holds."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "lorafold.json").write_text(json.dumps({"kind": "x", "files": {name: entry}}))
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return damage


BASE_FAULTS: dict[str, tuple[Damage, int, str]] = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), 3, "no config.json"),
    "unknown architecture": (
        settings("config.json", architectures=["NewForCausalLM"]),
        3,
        "'NewForCausalLM' is not in the table of architectures that become GGUF (",
    ),
    "only pickles": (only_pickles, 4, "pytorch_model.bin; fix: if you trust their author, convert them"),
    "LFS pointer": (
        raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        3,
        "Git LFS pointer, not the weights; fix: run `git lfs pull`",
    ),
    "a page as weights": (
        raw(b"<!DOCTYPE html><html></html>"),
        3,
        "this is a web page (HTML), not the weights; fix: download the file itself",
    ),
    "a page as the tokenizer": (
        raw(b"<!DOCTYPE html><html></html>", "tokenizer.json"),
        3,
        "tokenizer.json: this is a web page (HTML), not the file itself; fix: download the file itself",
    ),
    "a cut tokenizer": (
        raw(b'{"model": {"vo', "tokenizer.json"),
        3,
        "tokenizer.json: truncated or invalid JSON (line 1, column 12: Unterminated string starting at); "
        "fix: download the file again",
    ),
    "shape against the config": (
        settings("config.json", intermediate_size=256),
        3,
        "gate_proj.weight has shape (128, 64), expected (256, 64) (ff x width by config.json)",
    ),
    "vocabulary against the config": (
        settings("config.json", vocab_size=300),
        3,
        "has shape (259, 64), expected (300, 64) (vocab x width by config.json)",
    ),
    "more layers in the config": (settings("config.json", num_hidden_layers=3), 3, "are missing"),
    "fewer layers in the config": (settings("config.json", num_hidden_layers=1), 3, "are no part of this"),
    "heads that do not divide": (settings("config.json", num_attention_heads=5), 3, "num_attention_heads"),
    "NaN": (element(SINGLE, NORM, np.nan), 6, f"NaN or infinity in tensor '{NORM}', row 0"),
    "infinity": (element(SINGLE, f"{Q}.weight", np.inf), 6, f"NaN or infinity in tensor '{Q}.weight', row 0"),
    "remote code": (settings("config.json", auto_map={"AutoModel": "x.Y"}), 4, "--trust-remote-code"),
    # The weights' file itself.
    "under 8 bytes": (raw(b"{}"), 3, "2 bytes, expected at least 8"),
    "header of 2^63": (raw((1 << 63).to_bytes(8, "little") + b"{}"), 3, "over the format's limit"),
    "header over 100 MB": (raw((100_000_001).to_bytes(8, "little") + b"{}"), 3, "over the format's limit"),
    "invalid JSON": (header(b'{"w": '), 3, "not valid JSON"),
    "overlap": (header({"w": f32([2], 0, 8), "v": f32([2], 4, 12)}, bytes(12)), 3, "overlaps w"),
    "hole": (header({"w": f32([2], 0, 8), "v": f32([1], 12, 16)}, bytes(16)), 3, "a hole of 4 bytes"),
    "trailing bytes": (header({"w": f32([2], 0, 8)}, bytes(12)), 3, "4 bytes follow the last tensor"),
    "shape overflow": (header({"w": f32([1 << 62, 1 << 62], 0, 8)}, bytes(8)), 3, "overflows 63 bits"),
    "truncated": (
        lambda folder: raw((folder / SINGLE).read_bytes()[:-1])(folder),
        3,
        "truncated: the tensors need",
    ),
    "flipped bit": (flipped_bit(SINGLE), 3, f"{SINGLE} is not what"),
    # The index of shards.
    "shard outside": (in_shards(shard_behind("relative")), 4, "leads out of the folder"),
    "absolute path": (in_shards(shard_behind("absolute")), 4, "leads out of the folder"),
    "symlink outside": (in_shards(shard_behind("symlink")), 4, "leads out of the folder"),
    "shards missing": (in_shards(both_shards_away), 3, f"2 of 2 shards are missing: {', '.join(PARTS)}"),
    "key in the wrong shard": (
        in_shards(lambda folder, weight_map: weight_map.update({NORM: PARTS[PARTS[0] == weight_map[NORM]]})),
        3,
        f"tensor '{NORM}' is in ",
    ),
    "key in two shards": (in_shards(key_in_both), 3, f"tensor '{NORM}' is in two shards"),
}

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"

ADAPTER_FAULTS: dict[str, tuple[Damage, int, str]] = {
    "no config": (lambda folder: (folder / CONFIG).unlink(), 3, "adapter_config.json"),
    "truncated config": (raw(b'{"peft_type": "LO', CONFIG), 3, "truncated or invalid JSON"),
    "made for another base": (
        weights(WEIGHTS, lambda tensors: tensors.update({A: np.ones((2, 48), np.float32)})),
        3,
        "made for another base",
    ),
    "a module that the base lacks": (
        weights(WEIGHTS, lambda tensors: tensors.update(lora("model.layers.7.self_attn.q_proj"))),
        3,
        "belong to nothing in the base",
    ),
    "rank mismatch": (settings(CONFIG, r=3), 3, "the configuration says 3"),
    "key left over": (
        weights(WEIGHTS, lambda tensors: tensors.update({"x.y": np.ones(3, np.float32)})),
        3,
        "the first is 'x.y'",
    ),
    "key missing": (weights(WEIGHTS, lambda tensors: tensors.pop(B)), 3, "has lora_A but no lora_B"),
    "module missing": (
        weights(WEIGHTS, lambda tensors: (tensors.pop(A), tensors.pop(B))),
        3,
        f"it holds nothing for {Q}, which its target_modules names",
    ),
    "NaN": (element(WEIGHTS, B, np.nan), 6, f"NaN or infinity in tensor '{B}'"),
    "method": (settings(CONFIG, peft_type="PREFIX_TUNING"), 3, "prefix tuning puts trained keys and values"),
    "option": (settings(CONFIG, use_qalora=True), 3, "QA-LoRA (`use_qalora`)"),
    "initialisation": (settings(CONFIG, init_lora_weights="loftq"), 3, "LoftQ adapters belong to a base"),
    "pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
        4,
        "weights only as a pickle",
    ),
    "truncated weights": (
        lambda folder: raw((folder / WEIGHTS).read_bytes()[:-1], WEIGHTS)(folder),
        3,
        "truncated: the tensors need",
    ),
    "flipped bit": (flipped_bit(WEIGHTS), 3, f"{WEIGHTS} is not what"),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_chat.folder(), tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = lora(Q.replace("1", "0"), rows=64, cols=64) | lora(Q, rows=64, cols=64)
    return adapter_folder(tmp_path / "adapter", tensors)


def fails(
    arguments: list[object], code: int, words: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export over an old output and see that nothing but one line comes of it."""
    out.mkdir()
    (out / "old").write_text("as it was")
    (out / "lorafold.json").write_text('{"kind": "export", "files": {}}')  # else --force refuses, rightly
    command = ["export", *map(str, arguments), "--out", str(out), "--force", "--quant", "Q8_0", "--no-verify"]
    assert main(command) == code
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.out == "" and "Traceback" not in said.err
    assert len(errors) == 1 and words in errors[0] and "; fix: " in errors[0], said.err
    assert {path.name for path in out.iterdir()} == {"old", "lorafold.json"}
    assert (out / "old").read_text() == "as it was" and not list(out.parent.glob(".out*partial"))


@pytest.mark.parametrize("name", BASE_FAULTS)
def test_a_faulty_base(name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, code, words = BASE_FAULTS[name]
    damage(base)
    fails([base], code, words, tmp_path / "out", capsys)


@pytest.mark.parametrize("name", ADAPTER_FAULTS)
def test_a_faulty_adapter(
    name: str, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, code, words = ADAPTER_FAULTS[name]
    damage(adapter)
    fails([adapter, "--base", base], code, words, tmp_path / "out", capsys)


def test_without_a_fault_both_are_exported(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The faults above are what makes the exports fail."""
    in_shards(lambda folder, weight_map: None)(base)
    for folder, name in ((base, PARTS[0]), (adapter, WEIGHTS)):
        content = (folder / name).read_bytes()
        flipped_bit(name)(folder)
        (folder / name).write_bytes(content)
    command = ["export", str(adapter), "--base", str(base), "--out", str(tmp_path / "out"), "--no-verify"]
    assert main([*command, "--quant", "Q8_0"]) == 0
    assert len(list((tmp_path / "out").glob("*.gguf"))) == 1
