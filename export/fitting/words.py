"""What `--fit` and `--max-kl` chose, in a sentence, and as it stands in the manifest."""

from __future__ import annotations

from typing import Any

from lorafold.export.fitting.fit import Fitted, Tried

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
    plain, last = fitted.tried[0], fitted.tried[1]
    on = f"on chats that nothing was learnt from ({fitted.why})"
    if fitted.unmeasured:
        on += f"; {fitted.unmeasured} tensors have the recipe's type, because their cost cannot be measured"
    if not fitted.taken:
        return "fit", (
            f"{model} is {fitted.recipe} as it is; {asked}; its mean KL is {plain.kl:.4f}, and the mixture "
            f"that was predicted to be best has {last.kl:.4f}, {on}"
        )
    mine = last if most is None else _smallest(fitted, most)
    return "fit", (
        f"{model} is {fitted.recipe} with {sum(fitted.changed.values())} other types ({told}); {asked}; "
        f"mean KL {mine.kl:.4f} beside {plain.kl:.4f} of {fitted.recipe} in {plain.size:,} bytes, {on}"
    )


def _smallest(fitted: Fitted, most: float) -> Tried:
    return min(
        (each for each in fitted.tried[1:] if each.kl <= most),
        key=lambda each: each.size,
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
