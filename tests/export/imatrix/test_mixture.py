"""Two matrices mixed: by hand, at the ends, and with experts that one kind of text never enters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_chat

from lorafold.errors import UsageError
from lorafold.export import ExportConfig, arch
from lorafold.export.imatrix.collect import collect
from lorafold.export.imatrix.data import folded_model
from lorafold.export.imatrix.file import Imatrix, ImatrixEntry
from lorafold.export.imatrix.mixture import mixed
from lorafold.export.inputs import open_inputs


def entry(sums: list[float], *counts: float) -> ImatrixEntry:
    return ImatrixEntry(np.array(sums, np.float32), np.array(counts, np.float32))


OWN = Imatrix({"a": entry([8, 40], 8), "exps": entry([6, 2, 0, 0], 2, 0)}, ("own",), 3, 5)
GENERAL = Imatrix({"a": entry([20, 60], 20), "exps": entry([1, 1, 9, 3], 1, 3)}, ("general",), 2, 7)


def test_the_means_of_a_token_are_weighed() -> None:
    """Of 8 tokens with means 1 and 5, and of 20 with means 1 and 3: three quarters and a quarter."""
    found = mixed(OWN, GENERAL, 0.75)
    assert found.entries["a"].weights().tolist() == pytest.approx([1.0, 0.75 * 5 + 0.25 * 3])
    assert found.entries["a"].counts.item() == pytest.approx(8 / 0.75)
    assert (found.datasets, found.chunks, found.chunk_size) == (("own", "general"), 5, 7)


def test_an_expert_counts_as_often_as_it_is_entered() -> None:
    """Expert 0 sees 2 of 8 tokens and 1 of 20, so of the mixture 0.5 · 2/8 and 0.5 · 1/20."""
    found = mixed(OWN, GENERAL, 0.5).entries["exps"]
    own, general = 0.5 / 8, 0.5 / 20
    first = [(own * 6 + general * 1) / (own * 2 + general * 1), (own * 2 + general * 1) / (own * 2 + general)]
    assert found.weights().tolist() == pytest.approx([*first, 3.0, 1.0])


def test_what_one_kind_of_text_never_enters_has_the_others_means() -> None:
    lacking = Imatrix({"a": OWN.entries["a"]}, ("own",), 3, 5)
    found = mixed(lacking, GENERAL, 0.5)
    assert found.entries["exps"].weights().tolist() == pytest.approx([1, 1, 3, 1])
    swapped = mixed(GENERAL, lacking, 0.5)
    assert swapped.entries["exps"].weights().tolist() == pytest.approx([1, 1, 3, 1])


def test_a_small_share_scales_the_user_s() -> None:
    found = mixed(OWN, GENERAL, 0.25)
    assert found.entries["a"].weights().tolist() == pytest.approx([1.0, 0.25 * 5 + 0.75 * 3])
    assert (found.datasets, found.chunks, found.chunk_size) == (("own", "general"), 5, 7)
    least = mixed(OWN, GENERAL, 1e-42).entries
    assert all(np.isfinite(each.sums).all() and np.isfinite(each.counts).all() for each in least.values())


def test_at_the_ends_a_matrix_is_unchanged() -> None:
    assert mixed(OWN, GENERAL, 1.0) is OWN and mixed(OWN, GENERAL, 0.0) is GENERAL


def test_half_of_each_is_what_both_together_collect(tmp_path: Path) -> None:
    """As many tokens of both, and half of each: the means of one run over all of them."""
    inputs = open_inputs(ExportConfig(str(tiny_chat.adapter()), out=tmp_path / "out"))
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    model = folded_model(inputs)
    texts = [[5, 9, 20, 33], [7, 8, 90, 12]]
    own, general, both = (collect(model, tensors, part) for part in (texts[:1], texts[1:], texts))
    found = mixed(own, general, 0.5)
    assert found.entries.keys() == both.entries.keys()
    for name, wanted in both.entries.items():
        assert np.allclose(found.entries[name].sums, wanted.sums, rtol=1e-5), name
        assert found.entries[name].counts.tolist() == wanted.counts.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imatrix_share": 0.5}, "--imatrix-share: there are no texts to mix; fix: pass --imatrix-data"),
        (
            {"imatrix_share": 1.5, "imatrix_data": Path("x")},
            "--imatrix-share: expected a share from 0 to 1, got 1.5; fix: 0.75 makes three",
        ),
        ({"imatrix_share": float("nan"), "imatrix_data": Path("x")}, "expected a share from 0 to 1, got nan"),
    ],
)
def test_a_share_that_is_none(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig("a", out=Path("out"), **changes)  # type: ignore[arg-type]
