"""What adapter_config.json says: patterns, options and initialisations of every PEFT, and wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import Q, adapter_folder, fold, lora, refused, zeros

from lorafold.adapters.fields import FOLDABLE, LOST_BASE, NOT_FOLDABLE_OPTIONS, NOT_IN_WEIGHTS
from lorafold.adapters.folder import Adapter
from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint


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
