"""What a proof says: one `Check` per question, each with its verdict, its figures, and a sentence on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lorafold.errors import NumericError

# "note" is no verdict on the export: something that the user should know about the adapter.
Verdict = Literal["passed", "failed", "not checked", "note"]

AGAIN = "export again; if the base or the adapter has changed since, name the right base with --base"


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question about an export.

    Attributes:
        name: what was looked at, with the file if it is about one: "tokenizer", "tensors FILE".
        verdict: whether it holds; "not checked" if something was missing.
        meaning: one sentence: what the figures mean, or why it was not checked.
        figures: the numbers themselves.
        fix: what helps if it failed.
    """

    name: str
    verdict: Verdict
    meaning: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    fix: str = AGAIN


@dataclass(frozen=True, slots=True)
class Proof:
    """All checks of one export."""

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """Failed if a check failed; passed if all were made and passed; else not checked."""
        verdicts = {check.verdict for check in self.checks} - {"note"}
        if "failed" in verdicts:
            return "failed"
        return "passed" if verdicts == {"passed"} else "not checked"

    @property
    def passed(self) -> bool | None:
        """True only if everything was checked and held, False if something failed, None if neither."""
        return {"passed": True, "failed": False}.get(self.verdict)

    @property
    def unchecked(self) -> list[str]:
        """Names of the checks that could not be made."""
        return [check.name for check in self.checks if check.verdict == "not checked"]

    def summary(self) -> str:
        """The verdict in one sentence."""
        count = sum(check.verdict == "passed" for check in self.checks)
        if self.verdict == "passed":
            return f"all {count} checks passed"
        if self.verdict == "failed":
            failed = [check.name for check in self.checks if check.verdict == "failed"]
            return f"{', '.join(failed)} failed; {count} other checks passed"
        return f"{count} checks passed; not checked: {', '.join(self.unchecked) or 'everything'}"

    def as_json(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [{k: v for k, v in asdict(check).items() if k != "fix"} for check in self.checks]

    def with_summary(self) -> dict[str, Any]:
        """For the next program: the verdict, its sentence, and every check."""
        return {"verdict": self.verdict, "summary": self.summary(), "checks": self.as_json()}

    def require(self, *, everything: bool = False) -> None:
        """Raise if a check failed.

        Args:
            everything: raise also if something was not checked.

        Raises:
            NumericError: naming each such check with its sentence, and what helps against the first.
        """
        failed = [check for check in self.checks if check.verdict == "failed"]
        if failed:
            raise NumericError(f"the proof failed: {_told(failed)}", fix=failed[0].fix)
        if everything and self.verdict != "passed":
            missing = [check for check in self.checks if check.verdict == "not checked"]
            raise NumericError(
                f"--require-proof: not everything was checked: {_told(missing)}",
                fix="provide what is missing, or leave out --require-proof",
            )


def _told(checks: list[Check]) -> str:
    return "; ".join(f"{check.name}: {check.meaning}" for check in checks)
