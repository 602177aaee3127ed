"""What of a fine-tune survives in each type, before and after protection, on a base on a 4-bit grid.

    python tools/bench_fidelity.py [--steps 40] [--keep 0.9] [--quant Q4_K_M …] [--kl]
                                   [--fit Q3_K_M] [--imatrix FILE] [--work DIR]

The base is the demo's (SmolLM2-135M-Instruct, whose only embedded weights are 4-bit ones), the adapter a
short training on the demo's data. First every type is put on every tensor that the adapter changes, as far
as its blocks fit, and the survival of all of it and of the worst tensor is measured on all rows. Then each
recipe is written plainly and with `--keep-delta`, and measured on all rows in the types of the file: the
share that survives in all and in the worst tensor, and the bytes it costs.

`--kl` exports with the proof on the demo's held-out questions, and shows each file's mean KL from base +
adapter.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of the adapter")
    parser.add_argument("--keep", type=float, default=0.9, help="what --keep-delta is given")
    parser.add_argument("--quant", nargs="+", default=["Q4_K_M", "Q3_K_M"])
    parser.add_argument("--fit", help="a smaller recipe, to be filled up to the size of each")
    parser.add_argument("--imatrix", type=Path, help="an importance matrix for all")
    parser.add_argument("--kl", action="store_true", help="export with the proof, and show the mean KL")
    parser.add_argument("--work", type=Path, help="keep the adapter here for a later run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        work = options.work or Path(scratch)
        adapter = trained(work / f"adapter-{options.steps}", options.steps)
        print(f"SmolLM2-135M-Instruct, adapter of {options.steps} steps on the demo's data\n")
        by_type(adapter, work / "out")
        by_recipe(adapter, work, options)


def trained(out: Path, steps: int) -> Path:
    """The adapter, trained unless it is there already."""
    from lorafold.progress import silent
    from lorafold.train import train
    from lorafold.train.demo import demo_config

    if not (out / "lorafold.json").exists():
        train(replace(demo_config(out), max_steps=steps, resume=False), silent, lambda _: None)
    return out


def by_type(adapter: Path, out: Path) -> None:
    """Each type on every changed tensor that it fits."""
    from lorafold.export import ExportConfig
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.output import plan_output
    from lorafold.export.survival.ladder import LADDER, bits, fitting
    from lorafold.export.survival.share import together
    from lorafold.export.survival.survey import Survey

    config = ExportConfig(str(adapter), out=out, verify=False)
    inputs = open_inputs(config)
    planned = plan_output(inputs, config).survey()
    assert planned is not None
    tensors = [one.tensor for one in planned.measured.values()]
    fitted = {kind: [(tensor, kind) for tensor in tensors if kind in fitting(tensor)] for kind in LADDER}
    survey = Survey({kind.name: fitted[kind] for kind in LADDER}, inputs.source, weights=10**12)
    survey.sample()
    print("| type | bits a weight | tensors | survives | worst tensor | error beside the change |")
    print("|---|---|---|---|---|---|")
    for name, found in survey.found().items():
        whole, kind = together(found), next(kind for kind in LADDER if kind.name == name)
        assert whole is not None
        worst = max(found, key=lambda one: abs(1 - one.share))
        print(
            f"| {name} | {bits(kind):.2f} | {whole.count} | {whole.share:.3f} | {worst.share:.3f} "
            f"`{worst.tensor}` | {whole.error:.2f} |"
        )
    print()


def by_recipe(adapter: Path, work: Path, options: argparse.Namespace) -> None:
    """Each recipe as it is and protected: what is in the written files."""
    print("| | bytes | more | tensors raised | survives | worst tensor | off | mean KL |")
    print("|---|---|---|---|---|---|---|---|")
    for quant in options.quant:
        plain = measured(adapter, work / quant, quant, None, options)
        kept = measured(adapter, work / f"{quant}-kept", quant, options.keep, options)
        rows = [(quant, plain), (f"{quant} --keep-delta {options.keep}", kept)]
        if options.fit:  # of a smaller recipe, filled up to the same size
            size = str(plain["bytes"])
            filled = measured(adapter, work / f"{quant}-fit", options.fit, None, options, size)
            rows.append((f"{options.fit} --fit {size}", filled))
        for name, one in rows:
            raised = sum(one["types"][tensor] != kind for tensor, kind in plain["types"].items())
            print(
                f"| {name} | {one['bytes']:,} | {one['bytes'] / plain['bytes'] - 1:+.1%} | {raised} | "
                f"{one['share']:.3f} | {one['worst']:.3f} | {one['off']} of {len(one['types'])} | "
                f"{one['kl']} |"
            )


def measured(
    adapter: Path,
    out: Path,
    quant: str,
    keep: float | None,
    options: argparse.Namespace,
    fit: str | None = None,
) -> dict[str, Any]:
    """Export, and measure the changed tensors on all rows in the types of the file."""
    from lorafold.export import ExportConfig, export
    from lorafold.export.inputs import open_inputs
    from lorafold.export.outputs.output import plan_output
    from lorafold.export.survival.share import is_kept, together
    from lorafold.train.demo import held_out_questions

    out.parent.mkdir(parents=True, exist_ok=True)
    questions = out.parent / "questions.txt"
    questions.write_text("\n".join(held_out_questions()) + "\n", encoding="utf-8")
    config = ExportConfig(
        str(adapter),
        out=out,
        quant=(quant,),
        keep_delta=keep,
        fit=fit,
        imatrix=options.imatrix,
        verify=options.kl,
        chats=questions,
        force=True,
    )
    result = export(config)
    survey = plan_output(open_inputs(config), config).survey(10**12)
    assert survey is not None
    survey.sample()
    found = next(iter(survey.found().values()))
    whole = together(found)
    assert whole is not None and whole.exact
    kl = [check.figures["mean KL"] for check in result.proof.checks if "mean KL" in check.figures]
    return {
        "bytes": next(size for name, size in result.files.items() if name.endswith(".gguf")),
        "share": whole.share,
        "worst": min(one.share for one in found),
        "off": sum(not is_kept(one.share, options.keep) for one in found),
        "types": {one.tensor: one.type for one in found},
        "kl": f"{kl[0]:.4f}" if kl else "",
    }


if __name__ == "__main__":
    main()
