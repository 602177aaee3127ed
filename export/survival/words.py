"""What survives, in sentences: for the plan, the end of an export, its report, and the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gguf import GGMLQuantizationType as Type

from lorafold.export.config import ExportConfig
from lorafold.export.survival.fill import Filled
from lorafold.export.survival.grid import Grid
from lorafold.export.survival.protect import Raised
from lorafold.export.survival.rows import kind_of
from lorafold.export.survival.share import ENOUGH, Survival, Whole, distance, is_kept, is_off, together
from lorafold.export.survival.survey import Survey
from lorafold.progress import Lines

_Found = Mapping[str, Sequence[Survival]]

_NAMED = 3
_READ = """\
How to read it: an adapter changes a weight by little, often by less than the steps of a quantized type. The
share says how much of that change is still there after rounding, along its own direction: 100% is all of it.
Above 100% it overshoots: a weight that the change moves over the middle between two steps goes a whole step.
The rounding error may be many times larger and still do little harm, since it points in no direction."""


def cure_for(config: ExportConfig) -> str:
    """What brings back a change that the rounding of an export loses."""
    if config.format == "folder":
        random = ", --rounding stochastic nearly all in the same size"
        return "--dtype f32 keeps all of it" + (random if config.rounding != "stochastic" else "")
    if config.keep_delta is not None:
        return "choose a larger --quant" + (", or leave out --tensor-type" if config.tensor_type else "")
    return f"--keep-delta {ENOUGH} raises the types of these tensors alone"


def percent(share: float) -> str:
    """A share as whole percent; between 99 and 101, where most lie, with a decimal."""
    return f"{share:.1%}" if 0.99 <= share < 0.9995 or 1.0005 <= share <= 1.01 else f"{share:.0%}"


def off(found: Sequence[Survival], keep: float = ENOUGH) -> list[Survival]:
    """The tensors that keep too little of their change, or too much, and not by chance; worst first."""
    lost = [one for one in found if is_off(one.share, one.uncertainty, keep)]
    return sorted(lost, key=lambda one: -distance(one.share))


def describe(found: _Found, cure: str) -> Lines:
    """A line for each model: how much survives, what that means, and the tensors that lose most.

    Args:
        found: what survives, by model.
        cure: what helps if too little does.
    """
    lines: Lines = []
    for model, each in found.items():
        if (whole := together(each)) is not None:
            lines.append(("survival", f"{model}: {sentence(whole, off(each), cure)}"))
    return lines


@dataclass(frozen=True, slots=True)
class Findings:
    """What a survey found, ready to be told.

    Attributes:
        found: what survives, by model.
        grid: the grid of the base, or None.
        safe: the share that is furthest off 1 on that grid, by type; empty if it was not measured.
        unmeasured: changed tensors that cannot be compared with the base's.
        cure: what helps if too little survives.
        raised: what `--keep-delta` raised, by model.
    """

    found: _Found = field(default_factory=dict)
    grid: Grid | None = None
    safe: Mapping[Type, float] = field(default_factory=dict)
    unmeasured: Sequence[str] = ()
    cure: str = ""
    raised: Mapping[str, Sequence[Raised]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        survey: Survey | None,
        config: ExportConfig,
        safe: Mapping[Type, float] | None = None,
        raised: Mapping[str, Sequence[Raised]] | None = None,
    ) -> Findings:
        """The findings of a survey that was taken; empty ones of None."""
        if survey is None:
            return cls()
        cure = cure_for(config)
        return cls(survey.found(), survey.grid(), safe or {}, survey.unmeasured, cure, raised or {})

    def lines(self) -> Lines:
        """Label and text."""
        lines = [*describe(self.found, self.cure), *describe_grid(self.grid, self.safe)]
        if lines and self.unmeasured:
            few = ", ".join(self.unmeasured[:_NAMED]) + (" …" if len(self.unmeasured) > _NAMED else "")
            lines.append(("note", f"not measured, since the base has nothing in their place: {few}"))
        return lines

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        models = {
            model: {
                **asdict(whole),
                "tensors": [asdict(one) for one in each],
                "before it was raised": [asdict(one.survived) for one in self.raised.get(model, ())],
            }
            for model, each in self.found.items()
            if (whole := together(each)) is not None
        }
        return {
            "models": models,
            "grid": None if self.grid is None else asdict(self.grid),
            "not measured": list(self.unmeasured),
        }

    def as_markdown(self) -> list[str]:
        """The report's section; empty if nothing was measured."""
        if not any(self.found.values()):
            return []
        lines = ["## What survives", "", _READ, ""]
        lines += [f"- **{label}**: {text}" for label, text in self.lines()]
        for model, each in self.found.items():
            lines += [
                "",
                f"**{model}**",
                "",
                "| tensors | type | survives | error beside the change | worst |",
            ]
            lines += ["|---|---|---|---|---|"]
            for name, kind, whole, worst in by_kind(each):
                doubt = "" if whole.exact else f" ± {2 * whole.uncertainty:.1%}"
                lines.append(
                    f"| `{name}` ({whole.count}) | {kind} | {percent(whole.share)}{doubt} | "
                    f"{whole.error:.2g} | `{worst.tensor}` {percent(worst.share)} |"
                )
        return [*lines, ""]


def sentence(whole: Whole, lost: Sequence[Survival], cure: str) -> str:
    """What the figures of one model mean.

    Args:
        whole: the model's.
        lost: its tensors that keep too little.
        cure: what helps.
    """
    doubt = "" if whole.exact else f" ± {2 * whole.uncertainty:.1%}, from sampled rows"
    text = f"{percent(whole.share)} of the adapter's change is still there after rounding{doubt}; "
    text += f"the rounding error is {whole.error:.2g} times the change"
    if not lost:
        noise = ", which is noise in no direction" if whole.error > 1 else ""
        return text + noise + _overshoot([whole.share])
    worst = ", ".join(f"{one.tensor} {percent(one.share)} in {one.type}" for one in lost[:_NAMED])
    of = f"{len(lost)} of {whole.count} tensors keep less than {ENOUGH:.0%}"
    if any(one.share > 1 for one in lost):
        of += f" or more than {2 - ENOUGH:.0%}"
    over = _overshoot([whole.share, *(one.share for one in lost[:_NAMED])])
    return f"{text}; {of} (worst: {worst}){over}, so the answers lose part of what was trained; fix: {cure}"


def _overshoot(told: Iterable[float]) -> str:
    """What a share above 100% means, if one of those that are told is."""
    if not any(percent(share) != percent(1.0) and share > 1 for share in told):
        return ""
    return " (above 100%: a weight that crosses the middle between two steps goes a whole step)"


def describe_grid(grid: Grid | None, safe: Mapping[Type, float]) -> Lines:
    """The grid that the base lies on, and what each type keeps there.

    Args:
        grid: as found in the base's rows.
        safe: the share of the tensor that is furthest off, by type; empty if it was not measured.
    """
    if grid is None:
        return []
    text = (
        f"the base's weights lie on a grid ({grid.levels}; {grid.tensors} of {grid.of} tensors): they were "
        "quantized before, and types of about as many bits may round the adapter's change away"
    )
    if safe:
        keeps = [kind.name for kind, share in safe.items() if is_kept(share, ENOUGH)]
        loses = [f"{kind.name} ({percent(share)})" for kind, share in safe.items() if kind.name not in keeps]
        text += f"; here {', '.join(keeps) or 'no type'} keep it"
        text += f", {', '.join(loses)} do not" if loses else ""
    return [("grid", text)]


def describe_raised(model: str, raised: Sequence[Raised], keep: float, size: int) -> Lines:
    """What `--keep-delta` changed, alike tensors together.

    Args:
        model: the name of the file.
        raised: the tensors.
        keep: what was asked for.
        size: bytes of the model as it is now.
    """
    if not raised:
        return [
            (
                "raised",
                f"nothing in {model}: every tensor keeps {percent(keep)} of the adapter's change as it is",
            )
        ]
    more = sum(one.more for one in raised)
    groups: dict[tuple[str, str, str], list[Raised]] = {}
    for one in raised:
        key = (kind_of(one.tensor.name), one.before.name, one.after.name)
        groups.setdefault(key, []).append(one)
    head = f"{len(raised)} tensors of {model}, to keep {percent(keep)} of the adapter's change in each: "
    lines = [("raised", head + f"{more:+,} bytes ({more / max(size - more, 1):+.1%})")]
    for (name, before, after), each in groups.items():
        was = max((one.survived.share for one in each), key=distance)
        now = max((one.survives.share for one in each), key=distance)
        text = f"{len(each)} × {before} to {after}: {percent(was)} would survive, now {percent(now)}"
        lines.append((f"  {name}", text))
    return lines


def describe_filled(
    model: str, recipe: str, filled: Sequence[Filled], size: int, fit: int
) -> tuple[str, str]:
    """What `--fit` made of a recipe.

    Args:
        model: the name of the file.
        recipe: what it began with.
        filled: the tensors that were raised.
        size: bytes of the model as it is now.
        fit: bytes that were asked for.
    """
    text = f"{model} is {recipe}"
    if filled:
        groups: dict[str, int] = {}
        for one in filled:
            key = f"{one.before.name} to {one.after.name}"
            groups[key] = groups.get(key, 0) + 1
        most = sorted(groups.items(), key=lambda item: -item[1])
        kinds = ", ".join(f"{count} from {key}" for key, count in most[:_NAMED])
        text += f" with {len(filled)} tensors raised for {sum(one.more for one in filled):,} bytes ({kinds})"
    return ("fit", f"{text}; {size:,} of {fit:,} bytes")


def by_kind(found: Sequence[Survival]) -> list[tuple[str, str, Whole, Survival]]:
    """Name with `*`, type, the figures together, and the worst tensor, for each kind of tensor and type."""
    groups: dict[tuple[str, str], list[Survival]] = {}
    for one in found:
        groups.setdefault((kind_of(one.tensor), one.type), []).append(one)
    rows = []
    for (name, kind), each in groups.items():
        whole = together(each)
        assert whole is not None
        rows.append((name, kind, whole, max(each, key=lambda one: distance(one.share))))
    return rows
