"""The page of an export: what stands in it, that nothing in it is obeyed, and that it loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tuned_models import MODULES, tuned_adapter, tuned_base, tuned_config

from lorafold.export import export, verify
from lorafold.export.report.page import export_page
from lorafold.export.report.picture import bars, curve, place_of, points, survival_map

HOSTILE = "<script>alert(1)</script>\x1b[2J"


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "rect", "path", "polyline", "i"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def survival(share: float, tensor: str = "blk.0.ffn_up.weight") -> dict[str, Any]:
    return {"tensor": tensor, "type": "Q4_K", "share": share, "uncertainty": 0.0, "error": 2.0}


def facts(**changes: Any) -> dict[str, Any]:
    whole = {"share": 0.8, "uncertainty": 0.0, "error": 2.0, "count": 2, "exact": False}
    tensors = [survival(1.0), survival(0.1, "blk.1.ffn_up.weight")]
    return {
        "name": HOSTILE,
        "base": {"id": HOSTILE},
        "adapters": [{"folder": f"/a/{HOSTILE[:8]}", "weight": 1.0}],
        "verdict": "passed",
        "mixtures": {
            "m.gguf": {
                "why": HOSTILE,
                "tried": [
                    {"name": "Q4_K_M", "size": 2_000_000, "KL": 0.04},
                    {"name": HOSTILE, "size": 1_000_000, "KL": 0.02},
                ],
            }
        },
        "choice of the base": {
            "taken": HOSTILE,
            "type": HOSTILE,
            "chats": HOSTILE,
            "tokens": 300,
            "mean KL": {"/models/deep/packed-4bit": 0.0123, HOSTILE: 0.0456},
        },
        "survival": {"models": {"m.gguf": {**whole, "tensors": tensors}}, "grid": None},
        "proof": [
            {"name": "tokenizer", "verdict": "passed", "meaning": HOSTILE, "figures": {}},
            {
                "name": "logits m.gguf",
                "verdict": "passed",
                "meaning": "near",
                "figures": {
                    "mean KL": 0.02,
                    "top-1 agreement": 0.914,
                    "KL by position": [0.01, 0.03, 0.02],
                    "greedy answers": [
                        {
                            "both say": f"I am {HOSTILE}",
                            "tokens": 2,
                            "the reference goes on": " an",
                            "the file goes on": " the",
                        },
                        {
                            "both say": "Yes",
                            "tokens": 1,
                            "the reference goes on": None,
                            "the file goes on": None,
                        },
                    ],
                },
            },
            {"name": "effect", "verdict": "passed", "meaning": "much", "figures": {"KL of the adapter": 2.5}},
        ],
        **changes,
    }


def test_what_was_tried_for_a_matrix_is_drawn() -> None:
    tried = [{"name": "no matrix", "KL": 0.03}, {"name": "yours alone", "KL": 0.0213}]
    calibration = {"said": f"the best of 2 {HOSTILE}", "tried": {"Q4_K_M": tried}}
    text = export_page(facts(calibration=calibration), [("m.gguf", 1_000_000)], [])
    parser = Balanced()
    parser.feed(text)
    assert not parser.open and parser.seen.count("svg") == 7 and "script" not in parser.seen
    assert "yours alone" in text and "0.0213" in text and "The best of 2" in text


def test_the_page_is_whole_and_nothing_in_it_is_obeyed_or_loaded() -> None:
    text = export_page(facts(), [("m.gguf", 123_456_789)], [HOSTILE])
    parser = Balanced()
    parser.feed(text)
    assert not parser.open and "script" not in parser.seen and "\x1b" not in text
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", text)
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text
    assert parser.seen.count("svg") == 6  # survival, KL, by position, bases, what was tried, files
    for said in (
        "80%",
        "1 of 2 changed tensors fall short, the worst keeps 10%",
        "123.5 MB",
        "0.0200",
        "2.5000",
        "<h2>Which base</h2>",
        ">packed-4bit</text>",
        "300 tokens of",
        "word by word",
        "<b>91%</b>of the time m.gguf would say the same next word",
        "<table class='long'>",
        "<td> an …</td><td> the …</td>",
        "<td>Yes</td><td></td><td></td>",
    ):
        assert said in text, said


def test_what_was_not_measured_has_no_picture() -> None:
    checks = [{"name": "proof", "verdict": "not checked", "meaning": "left out", "figures": {}}]
    nothing = {"models": {}, "grid": None}
    text = export_page(
        facts(proof=checks, survival=nothing, mixtures={}, adapters=[]), [("m.gguf", 3_000_000_000)], []
    )
    assert "What survives" not in text and "How close" not in text and "To know" not in text
    assert "converted as it is" in text and "3.00 GB" in text and "not checked" in text


def test_pictures_are_wellformed_and_to_scale() -> None:
    tensors = [survival(1.0), survival(0.25, "blk.7.attn_q.weight"), survival(1.2, "token_embd.weight")]
    picture = ElementTree.fromstring(survival_map(tensors))
    cells = list(picture.iter("rect"))
    shown = [re.search(r"var\(--good\) (\d+)%", cell.get("style", "")) for cell in cells]
    # token_embd has too much of the change, which is as wrong as too little.
    assert [found and found[1] for found in shown] == ["25", "100", "80"]
    title = cells[0].find("title")
    assert title is not None and str(title.text).startswith("blk.7.attn_q.weight, Q4_K: 25.0% survives")
    drawn = ElementTree.fromstring(bars([("a", 1, ""), ("b", 4, "")]))
    lengths = [float(rect.get("width", 0)) for rect in drawn.iter("rect")]
    assert lengths[1] == pytest.approx(4 * lengths[0])
    line = ElementTree.fromstring(curve([1.0, 2.0, 0.0], "x", "y")).find("polyline")
    assert line is not None and line.get("points", "").split() == ["60.0,65.0", "340.0,20.0", "620.0,110.0"]
    for empty in (survival_map([]), bars([]), curve([], "", "")):
        ElementTree.fromstring(empty)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("blk.12.ffn_down.weight", ("ffn_down", 12)),
        ("model.layers.3.self_attn.q_proj.weight", ("self_attn.q_proj", 3)),
        ("model.layers.3.mlp.experts.17.up_proj.weight", ("mlp.experts.*.up_proj", 3)),
        ("token_embd.weight", ("token_embd", -1)),
        ("blk.0.attn_q.bias", ("attn_q.bias", 0)),
    ],
)
def test_where_a_tensor_stands(tensor: str, place: tuple[str, int]) -> None:
    assert place_of(tensor) == place


@pytest.mark.parametrize("changes", [{"quant": ("Q4_0", "Q8_0")}, {"format": "folder", "dtype": "bf16"}])
def test_an_export_writes_it_if_asked(changes: dict[str, Any], tmp_path: Path) -> None:
    base = tuned_base(tmp_path / "base")
    adapter = tuned_adapter(tmp_path / "adapter", MODULES, 5e-4)
    export(tuned_config(adapter, base, tmp_path / "out", report=True, **changes))
    text = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    models = json.loads((tmp_path / "out/lorafold.json").read_text())["survival"]["models"]
    assert text.count("<title>model.layers.0.mlp") + text.count("<title>blk.0.ffn_") >= 2 * len(models)
    assert all(f"<h3>{name}</h3>" in text for name in models)
    assert "model.safetensors" in text or "m-Q4_0.gguf" in text
    assert verify(tmp_path / "out").checks[0].verdict == "passed"  # it is one of the files with a checksum
    export(tuned_config(adapter, base, tmp_path / "plain", **changes))
    assert not (tmp_path / "plain/report.html").exists()


def test_a_sample_that_wavers_is_no_loss() -> None:
    """86% of some rows, give or take 9%, is no tensor that falls short, as the export's line has it."""
    whole = {"share": 0.99, "uncertainty": 0.0, "error": 2.0, "count": 1, "exact": False}
    tensors = [{**survival(0.86), "uncertainty": 0.09}]
    text = export_page(
        facts(survival={"models": {"m.gguf": {**whole, "tensors": tensors}}, "grid": None}), [], []
    )
    assert "none of its 1 changed tensors falls short" in text and "class='bad'" not in text


def test_what_was_tried_lies_at_its_size_and_distance() -> None:
    drawn = ElementTree.fromstring(points([("a", 10.0, 0.04), ("b & c", 20.0, 0.01)], "size", "KL"))
    places = [(float(each.get("x", "")), float(each.get("y", ""))) for each in drawn.iter("rect")]
    assert places == [(85.0, 25.0), (525.0, 220 - 190 / 4 - 5)]
    assert [each.text for each in drawn.iter("text")][-2:] == ["a", "b & c"]
    assert [each[0].text for each in drawn.iter("rect")] == ["a: 10, 0.0400", "b & c: 20, 0.0100"]


def test_mixtures_of_one_size_do_not_fill_the_axis() -> None:
    """A few bytes between two mixtures are no reason to draw them at both ends."""
    drawn = ElementTree.fromstring(points([("a", 100.0, 0.04), ("b", 100.01, 0.02)], "size", "KL"))
    assert [float(each.get("x", "")) for each in drawn.iter("rect")] == pytest.approx([305, 305], abs=1)
    assert {"95", "105"} <= {each.text for each in drawn.iter("text")}


def test_before_and_after_protection() -> None:
    whole = {"share": 0.99, "uncertainty": 0.0, "error": 2.0, "count": 2, "exact": True}
    tensors = [survival(1.0), {**survival(0.98, "blk.1.ffn_up.weight"), "type": "Q5_0"}]
    models = {
        "m.gguf": {
            **whole,
            "tensors": tensors,
            "before it was raised": [survival(0.1, "blk.1.ffn_up.weight")],
        }
    }
    text = export_page(facts(survival={"models": models, "grid": None}), [], [])
    before, after = text.index("m.gguf, if nothing were done"), text.index("<h3>m.gguf</h3>")
    assert before < text.index("blk.1.ffn_up.weight, Q4_K: 10.0% survives") < after
    assert after < text.index("blk.1.ffn_up.weight, Q5_0: 98.0% survives")
    assert "1 tensor would not keep enough of the change (Q4_K)" in text
    assert "if nothing were done" not in export_page(facts(), [], [])


def test_a_mixture_that_was_not_measured_has_no_picture() -> None:
    mixtures = {"m.gguf": {"why": "torch is missing", "tried": []}}
    assert "What was tried" not in export_page(facts(mixtures=mixtures), [], [])
    assert "What was tried" in export_page(facts(), [], [])
