"""What `--fit` and `--max-kl` chose, in a sentence, and as it stands in the manifest."""

from __future__ import annotations

from typing import Any

from lorafold.export.fitting.fit import Fitted

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
