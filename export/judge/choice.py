"""Which base was taken, in a sentence and as it stands in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorafold.export.proof.measured import PerToken

FEWEST_CHATS = 6
"""Conversations that a choice rests on: fewer may all agree by chance."""


@dataclass(frozen=True, slots=True)
class BaseDistances:
    """How far two bases with an adapter are from base + adapter as trained.

    Attributes:
        trained: KL of the base that the adapter was trained on, once its weights are rounded.
        other: the same of the other one.
        type: what the weights were rounded to.
        chats: where the conversations come from.
    """

    trained: PerToken
    other: PerToken
    type: str
    chats: str

    @property
    def apart(self) -> PerToken:
        """How much farther away the other one is, at each token; below zero where it is nearer."""
        pairs = zip(self.trained.values, self.other.values, strict=True)
        return PerToken([far - near for near, far in pairs])

    @property
    def better(self) -> str:
        """ "trained" or "other" if one is better beyond the uncertainty, else ""."""
        enough = len(self.trained.values) >= FEWEST_CHATS
        low, high = (self.apart.interval if enough else None) or (0.0, 0.0)
        return "other" if high < 0 else "trained" if low > 0 else ""


@dataclass(frozen=True, slots=True)
class BaseChoice:
    """Which of two bases was taken, and why.

    Attributes:
        trained: what the base is called that the adapter was trained on.
        other: the other one that is on this disk.
        taken: that of the two which is taken.
        found: what was measured, or in a sentence why nothing was; None in a plan.
    """

    trained: str
    other: str
    taken: str
    found: BaseDistances | str | None = None

    @property
    def note(self) -> str:
        """The choice in a sentence."""
        both = f"the adapter was trained on {self.trained}, and {self.other} is on this disk too"
        found = self.found
        if found is None:
            return f"{both}; the export measures both and takes the better one, this plan is of {self.taken}"
        if isinstance(found, str):
            return f"{both}; it is folded into {self.taken}, and the two were not compared: {found}"
        low, high = sorted(map(abs, found.apart.interval or (0.0, 0.0)))
        by = f" by {low:.4f} to {high:.4f} nats"
        than = {"other": f"better{by}", "trained": f"worse{by}", "": "no difference for sure"}[found.better]
        return (
            f"{both}; it is folded into {self.taken}: rounded to {found.type}, the former with the adapter "
            f"is a mean KL of {found.trained.mean:.4f} nats away from what was trained and the latter "
            f"{found.other.mean:.4f}, which is {than} ({len(found.apart.all)} tokens of {found.chats})"
        )

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        told: dict[str, Any] = {"trained on": self.trained, "other": self.other, "taken": self.taken}
        found = self.found
        if found is None or isinstance(found, str):
            return {**told, "not measured": found}
        means = {self.trained: found.trained.mean, self.other: found.other.mean}
        return {
            **told,
            "type": found.type,
            "chats": found.chats,
            "tokens": len(found.apart.all),
            "mean KL": means,
            "difference": float(found.apart.all.mean()),
            "difference, 95% interval": found.apart.interval,
        }
