"""Adapter folders: what is read from them, and what is refused, by name, with what to do instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import PREFIX, Q, adapter_folder, base_folder, fold, lora, refused, zeros
from safetensors.numpy import load_file, save_file

from lorafold.adapters.folder import Adapter
from lorafold.errors import NumericError, UnsafeInputError
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint


def test_by_hand(tmp_path: Path) -> None:
    folded = fold(tmp_path)
    # ones (8, 2) @ ones (2, 6) = 2, times alpha / r = 2
    assert np.array_equal(folded.rows(f"{Q.format(1)}.weight", 0, 8), np.full((8, 6), 4.0))
    assert not folded.rows("model.layers.1.mlp.up_proj.weight", 0, 8).any()
    assert folded.touched == {f"{Q.format(i)}.weight": "LoRA from adapter" for i in (0, 1)}


def test_names_of_adapters_and_wrappers_in_keys(tmp_path: Path) -> None:
    module = Q.format(0)
    tensors = {
        f"{PREFIX}_orig_mod.{module}.lora_A.my-name.weight": np.ones((2, 6), np.float32),
        f"{PREFIX}{module}.lora_B.my-name.weight": np.ones((8, 2), np.float32),
        f"{PREFIX}{module}.lora_magnitude_vector.my-name.weight": np.ones(8, np.float32),
        f"{PREFIX}model.embed_tokens.lora_embedding_A.default": zeros(2, 10),
        f"{PREFIX}model.embed_tokens.lora_embedding_B.default": zeros(6, 2),
        f"{PREFIX}lm_head.modules_to_save.default.weight": np.ones((10, 6), np.float32),
        f"{PREFIX}lm_head.original_module.weight": zeros(10, 6),
    }
    adapter = Adapter.open(adapter_folder(tmp_path / "a", tensors, modules_to_save=["lm_head"]))
    found = {entry.module: set(entry.parts) for entry in adapter.modules}
    assert found == {
        module: {"lora_A", "lora_B", "lora_magnitude_vector"},
        "model.embed_tokens": {"lora_embedding_A", "lora_embedding_B"},
    }
    assert [(entry.tensor, entry.trained) for entry in adapter.saved] == [("lm_head.weight", True)]


# What programs around a model leave in the names of its tensors: before the prefix, behind it, or instead.
WRAPPED = [
    "_orig_mod.{prefix}{name}",
    "module.{prefix}{name}",
    "_fsdp_wrapped_module.{prefix}{name}",
    "module._orig_mod.{prefix}{name}",
    "{prefix}_orig_mod.{name}",
    "{prefix}module._fsdp_wrapped_module.{name}",
    "pretrained_model.{prefix}{name}",
    "{prefix}{prefix}{name}",
    "module.{prefix}_orig_mod.{prefix}module.{name}",
    "model.{prefix}{name}",  # a LightningModule's attribute
    "_forward_module.model.{prefix}{name}",
    "base_model.{name}",
    "{name}",
    "pretrained_model.{name}",
    "policy.{name}",  # programs of reinforcement learning
    "actor.model.{prefix}{name}",
    "llm.{name}",  # the language part of a multimodal model
]


@pytest.mark.parametrize("pattern", WRAPPED)
def test_wrappers_are_taken_off_until_nothing_changes(pattern: str, tmp_path: Path) -> None:
    wanted = fold(tmp_path).rows(f"{Q.format(1)}.weight", 0, 8)
    plain = lora(Q.format(0)) | lora(Q.format(1))
    tensors = {
        pattern.format(prefix=PREFIX, name=key.removeprefix(PREFIX)): value for key, value in plain.items()
    }
    folded = fold(tmp_path, tensors)
    assert np.array_equal(folded.rows(f"{Q.format(1)}.weight", 0, 8), wanted)
    assert len(folded.touched) == 2


def test_two_wrapped_names_of_one_tensor(tmp_path: Path) -> None:
    more = {f"module.{key}": value for key, value in lora(Q.format(0)).items()}
    refused(lambda: fold(tmp_path, lora(Q.format(0)) | lora(Q.format(1)) | more), "the same tensor of two")


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    refused(lambda: Adapter.open(tmp_path), "no adapter_config.json: not a PEFT adapter")
    folder = adapter_folder(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    refused(lambda: Adapter.open(folder), "no adapter_model.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"")
    refused(lambda: Adapter.open(folder), "weights only as a pickle", UnsafeInputError)


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    tensors = {f"{PREFIX}{Q.format(0)}.lora_A.{name}.weight": zeros(2, 6) for name in ("a", "b")}
    refused(lambda: Adapter.open(adapter_folder(tmp_path / "a", tensors)), "the same tensor of two adapters")


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    """As PEFT writes a module to save whose rows were resized: under its own name too."""
    head = np.arange(72, dtype=np.float32).reshape(12, 6)
    tensors = {
        **lora(Q.format(0)),
        **lora(Q.format(1)),
        f"{PREFIX}lm_head.weight": head,
        f"{PREFIX}lm_head.original_module.weight": head - 1,
        f"{PREFIX}lm_head.modules_to_save.weight": head,
        f"{PREFIX}model.embed_tokens.weight": zeros(12, 6),
    }
    folded = fold(tmp_path, tensors, modules_to_save=["lm_head"])
    assert np.array_equal(folded.rows("lm_head.weight", 0, 12), head)
    (saved,) = (
        entry for entry in Adapter.open(tmp_path / "adapter").saved if entry.tensor == "lm_head.weight"
    )
    assert saved.key.endswith("modules_to_save.weight") and saved.trained
    tensors[f"{PREFIX}lm_head.weight"] = head + 1
    refused(
        lambda: fold(tmp_path, tensors, modules_to_save=["lm_head"]),
        r"'base_model.model.lm_head.modules_to_save.weight' and '.*lm_head.weight' hold different numbers",
    )
    tensors[f"{PREFIX}lm_head.modules_to_save.other.weight"] = head
    refused(
        lambda: fold(tmp_path, tensors, modules_to_save=["lm_head"]), "are the same tensor of two adapters"
    )


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8"])
def test_a_fold_into_quantized_weights_is_refused(dtype: str, tmp_path: Path) -> None:
    """A merged folder copies such tensors as they are: the fold would be lost, and nothing would tell."""
    base_folder(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    entries, data = {}, b""
    for name, tensor in tensors.items():
        kind, raw = ("F32", tensor.tobytes()) if "q_proj" not in name else (dtype, bytes(tensor.size))
        entries[name] = {
            "dtype": kind,
            "shape": tensor.shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    adapter = Adapter.open(adapter_folder(tmp_path / "adapter"))
    refused(
        lambda: Folded(Checkpoint.open(tmp_path / "base"), [(adapter, 1.0)]),
        rf"tensor 'model.layers.\d.self_attn.q_proj.weight' is {dtype}: quantized or integer, expected BF16",
    )


def without(key: str) -> dict[str, Any]:
    tensors = lora(Q.format(0)) | lora(Q.format(1))
    return {name: value for name, value in tensors.items() if not (key and name.endswith(key))}


FOLD_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "more layers": ({"layers": 1}, "2 of its tensors belong to nothing in the base, the first is .*layers.1"),
    "fewer layers": (
        {"layers": 3},
        "it holds nothing for model.layers.2.self_attn.q_proj, which its target_modules",
    ),
    "left over": ({"tensors": {**without(""), "x.y": zeros(3)}}, "1 of its tensors .* is 'x.y'"),
    "no B": ({"tensors": without("0.self_attn.q_proj.lora_B.weight")}, "has lora_A but no lora_B"),
    "no A": ({"tensors": without("0.self_attn.q_proj.lora_A.weight")}, "has lora_B but no lora_A"),
    "other width": (
        {"tensors": {**without(""), **lora(Q.format(0), cols=7)}},
        r"made for another base: .* has the shape \[8, 7\], model.layers.0.*\[8, 6\]",
    ),
    "factors transposed": (
        {
            "tensors": {
                **without(""),
                f"{PREFIX}{Q.format(0)}.lora_A.weight": zeros(6, 2),
                f"{PREFIX}{Q.format(0)}.lora_B.weight": zeros(2, 8),
            }
        },
        r"lora_A.weight' \[6, 2\] and .*lora_B.weight' \[2, 8\] are stored transposed: PEFT writes lora_A",
    ),
    "factors swapped": (
        {
            "tensors": {
                **without(""),
                f"{PREFIX}{Q.format(0)}.lora_A.weight": zeros(8, 2),
                f"{PREFIX}{Q.format(0)}.lora_B.weight": zeros(2, 6),
            }
        },
        r"\[8, 2\] and .* \[2, 6\] are swapped: PEFT writes lora_A as \(rank, in\)",
    ),
    "other rank": ({"r": 3}, "A has rank 2 and B has rank 2, the configuration says 3"),
    "ranks differ": (
        {"tensors": {**without(""), f"{PREFIX}{Q.format(0)}.lora_A.weight": zeros(3, 6)}},
        "A has rank 3 and B has rank 2",
    ),
    "one dimension": (
        {"tensors": {**without(""), f"{PREFIX}{Q.format(0)}.lora_A.weight": zeros(0)}},
        r"holds nothing \(its shape is \[0\]\), expected two dimensions; fix: gather sharded weights",
    ),
    "saved with another shape": (
        {"tensors": {**without(""), f"{PREFIX}lm_head.weight": zeros(10, 5)}, "modules_to_save": ["lm_head"]},
        "made for another base: .*lm_head",
    ),
    "not saved": (
        {"modules_to_save": ["lm_head"]},
        "it holds nothing for lm_head, which its modules_to_save names",
    ),
    "no bias": (
        {
            "tensors": {
                **without(""),
                **{f"{PREFIX}{Q.format(layer)}.lora_B.bias": zeros(8) for layer in (0, 1)},
            },
            "lora_bias": True,
        },
        "the base has no bias there",
    ),
    "magnitude": (
        {
            "tensors": {
                **without(""),
                **{f"{PREFIX}{Q.format(layer)}.lora_magnitude_vector": zeros(6) for layer in (0, 1)},
            },
            "use_dora": True,
        },
        "made for another base: .*magnitude",
    ),
    "more tokens": (
        {
            "tensors": {
                **without(""),
                f"{PREFIX}model.embed_tokens.lora_embedding_A": zeros(2, 12),
                f"{PREFIX}model.embed_tokens.lora_embedding_B": zeros(6, 2),
            }
        },
        "with a vocabulary of 12 tokens, model.embed_tokens.weight of the base has 10; fix: give the base",
    ),
    "tokens beyond": (
        {
            "tensors": {
                **without(""),
                f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": zeros(1, 6),
            },
            "trainable_token_indices": [10],
        },
        "token 10 was trained, but model.embed_tokens.weight has 10 rows",
    ),
    "tokens miscounted": (
        {
            "tensors": {
                **without(""),
                f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": zeros(2, 6),
            },
            "trainable_token_indices": [3],
        },
        "expected one row for each of the 1 different token indices",
    ),
    "pissa too large": (
        {"r": 9, "tensors": lora(Q.format(0), 9) | lora(Q.format(1), 9), "init_lora_weights": "pissa"},
        "",
    ),
}


@pytest.mark.parametrize("name", FOLD_FAULTS)
def test_an_adapter_that_does_not_fit(name: str, tmp_path: Path) -> None:
    arguments, problem = FOLD_FAULTS[name]
    if problem:
        refused(lambda: fold(tmp_path, **arguments), problem)
    else:  # seen when the weight is read
        folded = fold(tmp_path, **arguments)
        refused(lambda: folded.rows(f"{Q.format(0)}.weight", 0, 1), "rank 9 is too large for a weight")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_an_adapter(value: float, tmp_path: Path) -> None:
    tensors = without("")
    tensors[f"{PREFIX}{Q.format(1)}.lora_B.weight"][3, 1] = value
    error = refused(
        lambda: fold(tmp_path, tensors), "NaN or infinity in tensor .*layers.1.*lora_B", NumericError
    )
    assert error.exit_code == 6


def test_a_direction_without_length(tmp_path: Path) -> None:
    tensors = without("")
    for layer in (0, 1):
        tensors[f"{PREFIX}{Q.format(layer)}.lora_B.weight"][:] = 0
        tensors[f"{PREFIX}{Q.format(layer)}.lora_magnitude_vector"] = np.ones(8, np.float32)
    folded = fold(tmp_path, tensors, use_dora=True)  # the base is zero: no norm to divide by
    error = refused(lambda: folded.rows(f"{Q.format(0)}.weight", 0, 8), "DoRA", NumericError)
    assert error.exit_code == 6


def test_names_between_models_and_files(tmp_path: Path) -> None:
    """The file may lack "model." or carry another prefix than the model that the adapter was trained on."""
    for prefix in ("layers.{}", "model.language_model.layers.{}", "language_model.model.layers.{}"):
        folder = tmp_path / prefix.split(".")[0]
        folder.mkdir(exist_ok=True)
        save_file(
            {f"{prefix.format(i)}.self_attn.q_proj.weight": zeros(8, 6) for i in (0, 1)},
            folder / "model.safetensors",
        )
        adapter = Adapter.open(adapter_folder(tmp_path / "adapter"))
        folded = Folded(Checkpoint.open(folder), [(adapter, 1.0)], config={})
        assert len(folded.touched) == 2 and all("LoRA" in words for words in folded.touched.values())
