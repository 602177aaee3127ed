"""What `--fit`, `--max-kl` and `--imatrix-data` chose, in a sentence, and as it stands in the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lorafold.chat.calls import listed
from lorafold.export.fitting.fit import Fitted
from lorafold.export.fitting.share import Calibrated, taken

_NAMED = 3


def describe_fitted(
    model: str, fitted: Fitted, size: int, fit: int | None, most: float | None
) -> tuple[str, str]:
    """Label and text.

    Args:
        model: the name of the file.
        fitted: what was chosen.
        size: bytes of the model as it is now.
        fit: bytes that were asked for, or None.
        most: nats that were asked for, or None.
    """
    asked = f"{size:,} of {fit:,} bytes" if fit is not None else f"{size:,} bytes for at most {most:g} nats"
    if not fitted.tried:
        return "fit", f"types of {model} are only raised, by the rounding error alone: {fitted.why}"
    kinds = sorted(fitted.changed.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(
        f"{count} from {before.name} to {after.name}" for (before, after), count in kinds[:_NAMED]
    )
    plain, best = fitted.tried[0], fitted.best
    assert best is not None
    on = f"on chats that nothing was learnt from ({fitted.why})"
    if fitted.unmeasured:
        on += f"; {fitted.unmeasured} tensors have the recipe's type, because their cost cannot be measured"
    if not fitted.taken:
        return "fit", (
            f"{model} is {fitted.recipe} as it is; {asked}; its mean KL is {plain.kl:.4f}, and the mixture "
            f"that was predicted to be best has {best.kl:.4f}, {on}"
        )
    return "fit", (
        f"{model} is {fitted.recipe} with {sum(fitted.changed.values())} other types ({told}); {asked}; "
        f"mean KL {best.kl:.4f} beside {plain.kl:.4f} of {fitted.recipe} in {plain.size:,} bytes, {on}"
    )


def fitted_as_json(fitted: Fitted) -> dict[str, Any]:
    """For the manifest, which `verify` reads the types from."""
    return {
        "recipe": fitted.recipe,
        "tried": [{"name": one.name, "size": one.size, "KL": one.kl} for one in fitted.tried],
        "taken": fitted.taken,
        "why": fitted.why,
        "types": {name: kind.name for name, kind in fitted.types.items()},
    }


def describe_calibrated(calibrated: Calibrated) -> tuple[str, str]:
    """Label and text: which share was taken, by how much it is better, and what it did not improve."""
    share = calibrated.share
    used = "no importance matrix is used" if share is None else f"the importance matrix is {_mixture(share)}"
    if not calibrated.judged:
        return "calibration", f"{used}: {calibrated.why}"
    (recipe, judged), *_ = calibrated.judged.items()
    best = taken(judged)
    others = ", ".join(
        f"{one.own:.4f} ({_change(one.own, best.own)}) with {_candidate(one.share)}"
        for one in judged
        if one is not best
    )
    text = (
        f"{used}, the best of {len(judged)} in {recipe}: mean KL {best.own:.4f} on {calibrated.texts[0]} of "
        f"your texts that were held out, beside {others}"
    )
    if harmful := [one for one in judged if one.own < best.own]:
        text += f"; {listed([_candidate(one.share) for one in harmful])} would harm general texts"
    if share is not None and any(one.share is None for one in judged):
        worse = list(_not_improved(calibrated))
        text += f"; it did not improve {'; '.join(worse)}" if worse else "; it improved general texts too"
    return "calibration", text


def calibrated_as_json(calibrated: Calibrated) -> dict[str, Any]:
    """For the manifest."""
    return {
        "share": calibrated.share,
        "said": describe_calibrated(calibrated)[1],
        "texts held out": calibrated.texts[0],
        "general texts held out": calibrated.texts[1],
        "tried": {
            recipe: [
                {
                    "name": _candidate(one.share),
                    "share": one.share,
                    "KL": one.own,
                    "KL on general texts": one.general,
                }
                for one in judged
            ]
            for recipe, judged in calibrated.judged.items()
        },
        "not improved": list(_not_improved(calibrated)),
    }


def _not_improved(calibrated: Calibrated) -> Iterator[str]:
    """Type and part of what is no nearer with the matrix than without."""
    for recipe, judged in calibrated.judged.items():
        without, used = (
            next((one for one in judged if one.share == share), None) for share in (None, calibrated.share)
        )
        if without is None or used is None or used is without:
            continue
        for part, before, after in (
            ("your texts", without.own, used.own),
            ("general texts", without.general, used.general),
        ):
            if after >= before:
                yield f"{recipe} on {part} ({after:.4f} beside {before:.4f} without)"


def _mixture(share: float) -> str:
    if share == 1:
        return "of your texts alone"
    return f"{share:.0%} your texts and {1 - share:.0%} general ones" if share else "of general texts alone"


def _candidate(share: float | None) -> str:
    if share is None:
        return "no matrix"
    return {0.0: "general texts alone", 1.0: "yours alone"}.get(share, f"{share:.0%} yours")


def _change(value: float, best: float) -> str:
    return f"{value / best - 1:+.0%}" if best > 0 else "more"
