"""Adapter folders: what is read from them, and what is refused, by name, with what to do instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import PREFIX, Q, adapter_folder, base_folder, lora, zeros
from safetensors.numpy import load_file, save_file

from lorafold.adapters.fields import FOLDABLE, LOST_BASE, NOT_FOLDABLE_OPTIONS, NOT_IN_WEIGHTS
from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError, LorafoldError, NumericError, UnsafeInputError
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint


def fold(tmp_path: Path, tensors: dict[str, Any] | None = None, layers: int = 2, **config: Any) -> Folded:
    adapter = Adapter.open(adapter_folder(tmp_path / "adapter", tensors, **config))
    return Folded(base_folder(tmp_path / "base", layers), [(adapter, 1.0)])


def refused(action: Any, problem: str, kind: type[LorafoldError] = InputError) -> LorafoldError:
    with pytest.raises(kind, match=problem) as caught:
        action()
    assert "\n" not in str(caught.value) and caught.value.at
    return caught.value


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


def test_patterns_and_scales(tmp_path: Path) -> None:
    config = Adapter.open(
        adapter_folder(
            tmp_path / "a",
            r=4,
            lora_alpha=8,
            use_rslora=True,
            rank_pattern={"layers.1.*": 16, "q_proj": 9},
            alpha_pattern={"^.*k_proj": 3},
            peft_version="0.18.0",
        )
    ).config
    assert config.rank("model.layers.1.self_attn.q_proj") == 16  # the first pattern that matches
    assert config.rank("model.layers.0.self_attn.q_proj") == 9
    assert config.rank("model.layers.0.self_attn.my_q_proj") == 4  # whole parts of names only
    assert config.scale("model.layers.0.self_attn.q_proj") == 8 / 3
    assert config.scale("model.layers.0.self_attn.k_proj") == 3 / 2


@pytest.mark.parametrize("version", ["0.13.2", "0.14.0", "0.21.2", None])
def test_one_pattern_for_rank_and_alpha_or_one_for_each(version: str | None, tmp_path: Path) -> None:
    """PEFT 0.13: `next(key for key in [*rank_pattern, *alpha_pattern] if ...)`, then both looked up by it."""
    folder = adapter_folder(
        tmp_path / "a",
        r=4,
        lora_alpha=8,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"self_attn.q_proj": 20, "v_proj": 12, "model.layers.0.self_attn.k_proj": 2},
        peft_version=version,
    )
    config = Adapter.open(folder).config
    assert config.scale("model.layers.0.self_attn.v_proj") == 12 / 4  # the same by both rules
    assert config.scale("model.layers.0.self_attn.k_proj") == 2 / 4
    module = "model.layers.0.self_attn.q_proj"
    if version is None:
        error = refused(
            lambda: config.scale(module), "alpha of .* is 8 by .* 0.13 and older, and 20 since 0.14"
        )
        assert 'set "peft_version"' in str(error)
    else:
        assert config.scale(module) == (8 if version == "0.13.2" else 20) / 2


PATTERNS = {
    "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 3},
    "alpha_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 5},
}


@pytest.mark.parametrize(
    ("more", "rank", "scale"),
    [
        ({}, 3, 5 / 2),  # layer 0 has the pattern's rank: it counted, as since 0.14
        ({}, 2, 4 / 2),  # it has the default: no pattern counted, as up to 0.13
        # A field that came with 0.14, if no rank tells.
        ({"rank_pattern": {}, "exclude_modules": None}, 2, 5 / 2),
    ],
)
def test_ranks_and_fields_tell_the_version(
    more: dict[str, Any], rank: int, scale: float, tmp_path: Path
) -> None:
    """A pattern with a caret matched nothing up to PEFT 0.13."""
    tensors = lora(Q.format(0), rank) | lora(Q.format(1))
    folded = fold(tmp_path, tensors, **(PATTERNS | more))
    assert np.array_equal(folded.rows(f"{Q.format(1)}.weight", 0, 8), np.full((8, 6), 2 * scale))
    assert np.array_equal(folded.rows(f"{Q.format(0)}.weight", 0, 8), np.full((8, 6), rank * 4 / rank))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.13.2", "0.15.2"])
def test_patterns_of_the_peft_that_wrote_them(version: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from old_peft import written_by_peft
    from peft_models import base_model

    base = base_model(tmp_path / "base", "llama", "float32")
    adapter, merged = written_by_peft(
        version, base, tmp_path / "old", r=4, lora_alpha=8, target_modules=["q_proj"], **PATTERNS
    )
    folded, oracle = Folded(Checkpoint.open(base), [(Adapter.open(adapter), 1.0)]), Checkpoint.open(merged)
    for name in folded.touched:
        rows = oracle.tensors[name].rows
        assert np.abs(folded.rows(name, 0, rows) - oracle.rows(name, 0, rows)).max() <= 1e-5, name


@pytest.mark.parametrize("method", NOT_IN_WEIGHTS)
def test_methods_that_no_weight_can_hold(method: str, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", {"prompt_embeddings": zeros(4, 6)}, peft_type=method)
    error = refused(lambda: Adapter.open(folder), "it cannot be folded")
    assert error.problem.startswith(NOT_IN_WEIGHTS[method]) and "train LoRA" in str(error)


@pytest.mark.slow  # importing PEFT takes seconds
def test_every_method_of_peft_is_folded_or_refused_by_name(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for method in peft.PeftType:
        folder = adapter_folder(tmp_path / "a", peft_type=method.value, token_indices=[1])
        if method.value in FOLDABLE:
            assert Adapter.open(folder).config.peft_type == method.value
        elif method.value not in NOT_IN_WEIGHTS:
            refused(
                lambda folder=folder: Adapter.open(folder),
                f"{method.value} is not folded here.*merge_and_unload",
            )


@pytest.mark.parametrize("option", NOT_FOLDABLE_OPTIONS)
def test_options_that_cannot_be_folded(option: str, tmp_path: Path) -> None:
    error = refused(lambda: Adapter.open(adapter_folder(tmp_path / "a", **{option: [1]})), option)
    assert error.fix


@pytest.mark.parametrize("init", [*LOST_BASE, "pissa_niter_16"])
def test_bases_that_cannot_be_computed_again(init: str, tmp_path: Path) -> None:
    error = refused(
        lambda: Adapter.open(adapter_folder(tmp_path / "a", init_lora_weights=init)), "base|random"
    )
    assert "path_initial_model_for_weight_conversion" in str(error)


@pytest.mark.parametrize(
    "init", [None, True, False, "gaussian", "Gaussian", "eva", "orthogonal", "OLoRA", "mica"]
)
def test_initialisations_that_peft_knows(init: Any, tmp_path: Path) -> None:
    assert Adapter.open(adapter_folder(tmp_path / "a", init_lora_weights=init)).modules


@pytest.mark.parametrize("init", ["milora", "PiSSA", "pissa_4", "true", 1, ["eva"]])
def test_initialisations_that_peft_does_not_know(init: Any, tmp_path: Path) -> None:
    """PEFT raises; such a method may have taken its part out of the base, as PiSSA does."""
    folder = adapter_folder(tmp_path / "a", init_lora_weights=init)
    error = refused(lambda: Adapter.open(folder), "which PEFT 0.21 does not know: .* changed the base")
    assert str(error.at).endswith("init_lora_weights") and "set it to true" in str(error)


@pytest.mark.slow  # importing PEFT takes seconds
@pytest.mark.parametrize("init", ["milora", "PiSSA", "true", "Gaussian", "OLoRA", "orthogonal", "MiCA"])
def test_which_initialisations_peft_knows(init: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch

    def make() -> Any:
        model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=init))

    folder = adapter_folder(tmp_path / "a", init_lora_weights=init)
    try:
        make()
    except ValueError:
        refused(lambda: Adapter.open(folder), "does not know")
    else:
        assert Adapter.open(folder).modules


@pytest.mark.parametrize("field", ["use_merged_linear", "enable_lora", "use_qa_lora"])
def test_options_of_other_programs(field: str, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", **{field: [True, False, True]})
    assert refused(lambda: Adapter.open(folder), f"{field}.*it cannot be folded").fix
    assert Adapter.open(adapter_folder(tmp_path / "a", **{field: None})).modules


def test_fields_of_other_programs_are_no_news(tmp_path: Path) -> None:
    """Unsloth's, ms-swift's, and of a PEFT before 0.3: none changes what the tensors mean."""
    more = {"unsloth_fixed": True, "swift_type": "LORA", "lora_dtype": "bf16", "merge_weights": True}
    assert not Adapter.open(adapter_folder(tmp_path / "a", **more)).notes


CONFIG_FAULTS = {
    "alpha null": ('{"peft_type": "LORA", "lora_alpha": null}', "got None, expected a number"),
    "truncated": ('{"peft_type": "LO', "truncated or invalid JSON"),
    "no method": ("{}", "peft_type is missing"),
    "rank 0": ('{"peft_type": "LORA", "r": 0}', "got 0, expected at least 1"),
    "rank of text": ('{"peft_type": "LORA", "r": "8"}', "got '8', expected an integer"),
    "alpha NaN": ('{"peft_type": "LORA", "lora_alpha": NaN}', "got nan, expected a number"),
    "pattern of text": ('{"peft_type": "LORA", "rank_pattern": {"q": "x"}}', "expected an integer"),
    "no pattern": (
        '{"peft_type": "LORA", "rank_pattern": {"q(": 3}}',
        "regular expressions; 'q.' is not one",
    ),
    "pattern list": ('{"peft_type": "LORA", "alpha_pattern": [1]}', "expected an object of patterns"),
    "modules": ('{"peft_type": "LORA", "modules_to_save": 3}', "got 3, expected a list of names"),
    "layers": ('{"peft_type": "LORA", "layers_to_transform": ["a"]}', "expected a list of layer numbers"),
    "tokens": ('{"peft_type": "LORA", "trainable_token_indices": [-1]}', r"token indices are \[-1\]"),
    "blocks": ('{"peft_type": "LORA", "use_bdlora": {"a": 1}}', "an object with `nblocks`"),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_a_wrong_configuration(name: str, tmp_path: Path) -> None:
    text, problem = CONFIG_FAULTS[name]
    folder = adapter_folder(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    error = refused(lambda: Adapter.open(folder), problem)
    assert "adapter_config.json" in str(error)


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
