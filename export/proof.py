"""What a proof says: one `Check` per question, each with its verdict, its figures, and a sentence on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lorafold.errors import NumericError

Verdict = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question about an export.

    Attributes:
        name: what was looked at, with the file where it is about one: "tokenizer", "tensors FILE".
        verdict: whether it holds; "not checked" where something was missing.
        meaning: one sentence: what the figures mean, or why it was not checked.
        figures: the numbers themselves.
    """

    name: str
    verdict: Verdict
    meaning: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """All checks of one export."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed (what was not checked does not count)."""
        return all(check.verdict != "failed" for check in self.checks)

    def as_json(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [asdict(check) for check in self.checks]

    def require(self) -> None:
        """Raise if a check failed.

        Raises:
            NumericError: naming each failed check with its sentence.
        """
        failed = [check for check in self.checks if check.verdict == "failed"]
        if failed:
            raise NumericError(
                "the proof failed: " + "; ".join(f"{check.name}: {check.meaning}" for check in failed),
                fix="choose a larger --quant, or look at the export with --no-verify",
            )


def rows(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    """The checks as table rows: name, verdict, meaning."""
    return [(check.name, check.verdict, check.meaning) for check in checks]
