"""The page of an export, made of what its manifest says: one file, no script, nothing that is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafold.console import sanitize
from lorafold.export.report.picture import bars, curve, points, survival_map
from lorafold.export.survival.share import distance, is_off
from lorafold.pages.page import as_text, html_page, notes_in

_SURVIVAL = """\
A fine-tune changes each weight by very little, often by less than one step of the file's number format.
The picture shows how much of that change is still there after the numbers were rounded. A column is one of
the model's layers, through which a text passes one after the other; a row is one kind of weights in them
(attn: by which words look at each other; ffn: what is made of what they saw). Where it is low, what was
trained is lost. Above 100% it overshoots: a weight that the change moves over the middle between two steps
goes a whole step. The rounding error itself may be many times larger: it points in no direction, so it
disturbs little."""
_LEGEND = "<p class='legend'>nothing is left <i></i> all is there; columns are layers</p>"
_RAISED = """\
With the types of the recipe alone {of} would not keep enough of the change ({types}), as this picture shows.
They were given larger types; the next picture is the file's."""
_KL = """\
At each word the model gives every possible next word a probability. KL says how far the file's
probabilities are from those of the base with the adapter, before anything was rounded: 0 means the same
model, and 0.03 means that the words which the unrounded model would say get 3% less probability, on average.
The bar of the adapter says how far the adapter moved the base. If the other bars are short beside it, the
fine-tune is well kept."""

_GREEDY = """\
Both take the likeliest word each time. Where the last two columns are empty, they never said different
things. Where they part, both words were nearly as likely to the model, unless the file is a poor one. A mark
like &lt;|im_end|&gt; is the end of an answer."""

_BASES = """\
The adapter was trained on a packed base, whose original is on this disk too. Both were tried before the file
was written: the shorter the bar, the nearer the answers are to what was trained, once all weights are rounded
to the type of the file."""
_TRIED = """\
A file is a mixture: some parts of the model need more bits than others. Each point is a mixture that was
tried before the file was written, with the size that it has and its distance from the unrounded model. The
lower, the nearer; the further left, the smaller."""

_CALIBRATION = """\
Rounding can spare the numbers that matter most on some texts, which an importance matrix names. Each bar is
a matrix, by whose texts it is made of; its length says how far the answers are from the unrounded model's, if
all weights are rounded to the recipe's own types. Types that were raised or fitted came later."""


def export_page(facts: Mapping[str, Any], made: Sequence[tuple[str, int]], notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        facts: what the manifest will say: name, base, adapters, proof, survival.
        made: files with their bytes.
        notes: what the user should know.
    """
    name = as_text(facts["name"])
    body = [
        f"<header><h1>{name}</h1><p class='soft'>{_origin(facts)}</p></header>",
        *_tiles(facts, made),
        *_survival(facts["survival"]),
        *_answers(facts["proof"]),
        *_bases(facts.get("choice of the base") or {}),
        *_calibration(facts.get("calibration") or {}),
        *_tried(facts.get("mixtures") or {}),
        "<h2>Files</h2><div class='panel'>",
        bars([(sanitize(name), size / 1e6, _size(size)) for name, size in made]),
        "</div>",
        *_checks(facts["proof"]),
        *notes_in(notes),
    ]
    return html_page(facts["name"], body)


def _origin(facts: Mapping[str, Any]) -> str:
    adapters = [Path(one["folder"]).name for one in facts["adapters"]]
    base = facts["base"].get("id") or facts["base"].get("path") or ""
    folded = f", with {', '.join(adapters)} folded in" if adapters else ", converted as it is"
    return as_text(f"{base}{folded}")


def _tiles(facts: Mapping[str, Any], made: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What one wants to know first."""
    verdict = facts["verdict"]
    tone = {"passed": "good", "failed": "bad"}.get(verdict, "")
    models = facts["survival"]["models"]
    yield "<section class='tiles'>"
    yield f"<div class='tile'><b class='{tone}'>{as_text(verdict)}</b>is what the proof says</div>"
    answers = _logits(facts["proof"])
    for model in dict.fromkeys([*models, *answers]):
        if (whole := models.get(model)) is not None:
            lost = [one for one in whole["tensors"] if is_off(one["share"], one["uncertainty"])]
            share = whole["share"] if lost else min(whole["share"], 1.0)
            yield f"<div class='tile'><b class='{'bad' if lost else 'good'}'>{share:.0%}</b>"
            yield f"of what was trained is in {as_text(model)}; {_worst(lost, whole)}</div>"
        if (figures := answers.get(model)) is not None:
            yield f"<div class='tile'><b>{figures['top-1 agreement']:.0%}</b>of the time {as_text(model)} "
            yield "would say the same next word as the unrounded model</div>"
    total = _size(sum(size for _, size in made))
    files = f"{len(made)} file" + ("s" if len(made) != 1 else "")
    yield f"<div class='tile'><b>{total}</b>in {files}</div></section>"


def _worst(lost: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    if not lost:
        return f"none of its {len(whole['tensors'])} changed tensors falls short"
    worst = max(lost, key=lambda one: distance(one["share"]))
    of = f"{len(lost)} of {len(whole['tensors'])} changed tensors fall short"
    return f"{of}, the worst keeps {worst['share']:.0%}"


def _survival(survival: Mapping[str, Any]) -> Iterator[str]:
    if not survival["models"]:
        return
    yield f"<h2>What survives of the fine-tune</h2><p>{_SURVIVAL}</p>"
    if (grid := survival.get("grid")) is not None:
        yield f"<p>The base's weights were in {grid['levels']['bits']} bits before: they lie on a grid "
        yield f"({grid['tensors']} of {grid['of']} tensors). That is where a change is lost most easily.</p>"
    for model, whole in survival["models"].items():
        kinds = ", ".join(dict.fromkeys(one["type"] for one in whole["tensors"]))
        yield from _before_raising(model, whole)
        yield f"<h3>{as_text(model)}</h3><div class='panel'>{survival_map(whole['tensors'])}{_LEGEND}"
        yield f"<p class='soft'>Types: {as_text(kinds)}. "
        yield f"The rounding error is {whole['error']:.2g} times the change."
        yield f"{'' if whole['exact'] else ' Measured on some rows of each tensor.'}</p></div>"


def _before_raising(model: str, whole: Mapping[str, Any]) -> Iterator[str]:
    """What `--keep-delta` was asked to prevent, if it raised anything."""
    if not (raised := {one["tensor"]: one for one in whole.get("before it was raised") or ()}):
        return
    of = f"{len(raised)} tensor" + ("s" if len(raised) != 1 else "")
    types = ", ".join(dict.fromkeys(one["type"] for one in raised.values()))
    tensors = [raised.get(one["tensor"], one) for one in whole["tensors"]]
    yield f"<h3>{as_text(model)}, if nothing were done</h3><p>{_RAISED.format(of=of, types=as_text(types))}"
    yield f"</p><div class='panel'>{survival_map(tensors)}{_LEGEND}</div>"


def _logits(proof: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The figures of the answers, by file."""
    found = {check["name"].removeprefix("logits "): check["figures"] for check in proof}
    return {name: figures for name, figures in found.items() if "mean KL" in figures}


def _answers(proof: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    found = _logits(proof)
    losses = {name: one["mean KL"] for name, one in found.items()}
    if not losses:
        return
    told = (check["figures"].get("KL of the adapter") for check in proof)
    effect = next((each for each in told if each is not None), None)
    rows = [(name, float(loss), f"{loss:.4f}") for name, loss in losses.items()]
    if effect is not None:
        rows.insert(0, ("the adapter's effect", float(effect), f"{effect:.4f}"))
    yield f"<h2>How close the answers are</h2><p>{_KL}</p><div class='panel'>{bars(rows)}</div>"
    for name in losses:
        if positions := found[name].get("KL by position"):
            yield f"<h3>{as_text(name)}, word by word</h3><div class='panel'>"
            yield f"{curve(positions, 'token of the answer', 'mean KL in nats')}</div>"
        if answers := found[name].get("greedy answers"):
            yield f"<h3>{as_text(name)}, answer by answer</h3>"
            yield f"<p>{_GREEDY}</p>" if name == next(iter(losses)) else ""
            yield "<div class='panel'><table class='long'>"
            yield "<tr><th>both say</th><th>then base + adapter</th><th>then the file</th></tr>"
            for one in answers:
                goes_on = [one["the reference goes on"], one["the file goes on"]]
                at_once = "" if one["the file goes on"] is None else "(they differ at once)"
                both = one["both say"] or at_once
                cells = [both, *("" if each is None else f"{each} …" for each in goes_on)]
                yield "<tr>" + "".join(f"<td>{as_text(cell)}</td>" for cell in cells) + "</tr>"
            yield "</table></div>"


def _bases(choice: Mapping[str, Any]) -> Iterator[str]:
    """What both bases have in KL, if they were compared."""
    if means := choice.get("mean KL"):
        yield f"<h2>Which base</h2><p>{_BASES}</p><div class='panel'>"
        yield bars([(_called(name), float(mean), f"{mean:.4f}") for name, mean in means.items()])
        yield f"<p class='soft'>Taken: {as_text(choice['taken'])}. Rounded to {as_text(choice['type'])}, "
        yield f"{choice['tokens']} tokens of {as_text(choice['chats'])}.</p></div>"


def _called(base: str) -> str:
    """A base's id; of a folder the last part of its path, since a picture is narrow."""
    return sanitize(Path(base).name if Path(base).is_absolute() else base)


def _tried(mixtures: Mapping[str, Any]) -> Iterator[str]:
    """Size against KL of what was tried for `--fit` and `--max-kl`."""
    for name, mixture in mixtures.items():
        tried = [(sanitize(one["name"]), one["size"] / 1e6, float(one["KL"])) for one in mixture["tried"]]
        if tried:
            yield f"<h2>What was tried for {as_text(name)}</h2><p>{_TRIED}</p><div class='panel'>"
            yield f"{points(tried, 'size in MB', 'mean KL in nats')}"
            yield "<p class='soft'>Measured on chats that nothing was learnt from: "
            yield f"{as_text(mixture['why'])}.</p></div>"


def _calibration(calibration: Mapping[str, Any]) -> Iterator[str]:
    """What of the importance matrix was tried for `--imatrix-data`."""
    if not calibration:
        return
    yield f"<h2>What the rounding was calibrated on</h2><p>{_CALIBRATION}</p><div class='panel'>"
    for recipe, tried in calibration["tried"].items():
        yield f"<h3>{as_text(recipe)}, on texts of yours that were held out</h3>"
        yield bars([(one["name"], float(one["KL"]), f"{one['KL']:.4f}") for one in tried])
    said = str(calibration["said"])
    yield f"<p class='soft'>{as_text(said[:1].upper() + said[1:])}.</p></div>"


def _checks(proof: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>What was checked</h2><div class='panel'><table>"
    for check in proof:
        tone = {"passed": "good", "failed": "bad"}.get(check["verdict"], "soft")
        yield f"<tr><td class='{tone}'>{as_text(check['verdict'])}</td>"
        yield f"<td><b>{as_text(check['name'])}</b>: {as_text(check['meaning'])}</td></tr>"
    yield "</table></div>"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
