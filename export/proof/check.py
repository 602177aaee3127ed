"""What a proof says: one `Check` per question, each with its verdict, its figures, and a sentence on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lorafold.errors import NumericError

Verdict = Literal["passed", "failed", "not checked"]

# What helps against a failed proof of a new export, by its format.
FIXES = {
    "gguf": "choose a larger --quant, or look at the export with --no-verify",
    "folder": "choose --dtype f32, or look at the folder with --no-verify",
    "adapter": "choose --dtype f32, or look at the adapter with --no-verify",
}
AGAIN = "export again; if its inputs have changed since, name the right ones (--base)"


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
    """All checks of one export.

    Attributes:
        checks: the answers.
        fix: what to do where one of them failed.
    """

    checks: tuple[Check, ...]
    fix: str = AGAIN

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
                fix=self.fix,
            )
