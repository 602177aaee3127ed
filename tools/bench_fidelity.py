"""What of a fine-tune survives in each type, before and after protection, on a base on a 4-bit grid.

    python tools/bench_fidelity.py [--steps 40] [--keep 0.9] [--quant Q4_K_M …] [--kl] [--fit]
                                   [--data FILE] [--smooth 20] [--imatrix-data] [--work DIR] [--results FILE]

The base is the demo's (SmolLM2-135M-Instruct, whose only embedded weights are 4-bit ones), the adapter a
short training on the demo's data. `--data` takes other records, of which one in forty is held out;
`--smooth` makes a base of bf16 weights that are on no grid: a short full fine-tune on the demo's data, which
moves weights by a seventeenth of the grid's step, and noise as wide as one step, which is what rounding to 4
bits once took away. That no tensor is on a grid is looked at, and the perplexity shown.

Each recipe is written plainly and with `--keep-delta`, and measured on all rows in the types of the file: the
share that survives in all and in the worst tensor, and the bytes it costs. `--types` first puts every type on
every tensor that the adapter changes, as far as its blocks fit.

`--kl` exports with the proof on the held-out questions, and shows each file's mean KL from base + adapter.
`--fit` writes each recipe once more with the types that are chosen for its own size, calibrated on chats of
the training; with `--imatrix-data` that and the plain recipe also with an importance matrix of these chats.
`--results` adds the rows to a file, and `--draw` makes a picture of what several runs added.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BLOCK = 32  # weights of the demo's base that share a step
COLOURS = {"": "#8a8f98", "--keep-delta": "#3b76c4", "--fit": "#d08a2c"}
WORDS = {"": "as the recipe has it", "--keep-delta": "--keep-delta 0.9", "--fit": "--fit, in its size"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of the adapter")
    parser.add_argument("--keep", type=float, default=0.9, help="what --keep-delta is given")
    parser.add_argument("--quant", nargs="+", default=["Q4_K_M", "Q3_K_M"])
    parser.add_argument("--fit", action="store_true", help="also with types chosen for the recipe's size")
    parser.add_argument("--imatrix-data", action="store_true", help="with a matrix of the training's chats")
    parser.add_argument("--data", type=Path, help="records instead of the demo's")
    parser.add_argument("--smooth", type=int, default=0, help="steps of a full fine-tune of the base before")
    parser.add_argument("--types", action="store_true", help="put each type on every changed tensor first")
    parser.add_argument("--kl", action="store_true", help="export with the proof, and show the mean KL")
    parser.add_argument("--results", type=Path, help="add the rows to this file")
    parser.add_argument("--draw", type=Path, help="only draw what stands in --results, as a picture")
    parser.add_argument("--work", type=Path, help="keep the adapter here for a later run")
    options = parser.parse_args()
    if options.draw is not None:
        if options.results is None:
            parser.error("--draw needs --results, the file that runs added to")
        draw([json.loads(line) for line in options.results.read_text("utf-8").splitlines()], options.draw)
        return
    with tempfile.TemporaryDirectory(prefix="lorafold-bench-") as scratch:
        if options.data is not None and not options.data.is_file():
            print(f"skipped: {options.data} is not here")
            return
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        records = divided(options.data, work)
        base = smooth_base(work, options.smooth) if options.smooth else None
        adapter = trained(work / f"adapter-{options.steps}", base, records.train, options.steps)
        name = options.data.name if options.data else "the demo's data"
        smooth = f", on bf16 weights of {options.smooth} steps of full fine-tuning and noise" if base else ""
        where = f"{name}, {'bf16 weights' if base else '4-bit grid'}"
        print(f"SmolLM2-135M-Instruct{smooth}, adapter of {options.steps} steps on {name}\n")
        if options.types:
            by_type(adapter, work / "out")
        by_recipe(adapter, work, records, where, options)


@dataclass(frozen=True, slots=True)
class Records:
    """Data in two parts that share no record."""

    train: Path
    held_out: Path


def divided(data: Path | None, work: Path) -> Records:
    """The demo's records and questions; of a file every fortieth record is held out, 20 at most."""
    from lorafold.train.demo import held_out_questions, persona_file

    held_out = work / "heldout.jsonl"
    if data is None:
        lines = [json.dumps({"prompt": question}) for question in held_out_questions()]
        held_out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Records(persona_file(), held_out)
    records = json.loads(data.read_text(encoding="utf-8"))
    parts = {
        "train.jsonl": [one for at, one in enumerate(records) if at % 40],
        held_out.name: records[::40][:20],
    }
    for name, part in parts.items():
        lines = [json.dumps(one, ensure_ascii=False) for one in part]
        (work / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Records(work / "train.jsonl", held_out)


def trained(out: Path, base: str | Path | None, data: Path, steps: int) -> Path:
    """An adapter of a base, or a base of its own for `demo`, trained unless it is there already."""
    from lorafold.progress import silent
    from lorafold.train import train
    from lorafold.train.demo import demo_config

    if not (out / "lorafold.json").exists():
        settings: dict[str, Any] = {"data": (str(data),), "max_steps": steps, "resume": False}
        if base == "demo":
            settings |= {"method": "full", "learning_rate": 1e-3}
        elif base is not None:
            settings |= {"base": str(base)}
        train(replace(demo_config(out), **settings), silent, lambda _: None)
    return out


def smooth_base(work: Path, steps: int) -> Path:
    """A base of bf16 weights that are on no grid, and what it is worth, said in two lines."""
    from lorafold.models import demo_base
    from lorafold.train.demo import persona_file

    out, demo = work / f"base-{steps}", demo_base().folder
    tuned = trained(work / f"tuned-{steps}", "demo", persona_file(), steps)
    if not (out / "model.safetensors").exists():
        spread(tuned, demo, out)
    for name, folder in (("the demo's base", demo), ("fine-tuned", tuned), ("with noise", out)):
        on_a_grid, count = tensors_on_a_grid(folder)
        worth = f"perplexity {perplexity(folder):.1f} on general chats"
        print(f"{name}: {on_a_grid} of {count} tensors on a grid, {worth}", flush=True)
    assert on_a_grid == 0, "the base is still on a grid"
    return out


def spread(tuned: Path, grid: Path, out: Path) -> None:
    """Add noise to the weights of all layers: uniform, as wide as one step of a block of the grid."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    from lorafold.weights import Checkpoint

    shutil.copytree(
        tuned, out, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors", "lorafold.json")
    )
    dice, source = np.random.default_rng(0), Checkpoint.open(grid)
    weights = load_file(tuned / "model.safetensors")
    for name, values in weights.items():
        if values.ndim < 2 or "embed_tokens" in name:
            continue
        blocks = source.rows(name, 0, source.tensors[name].rows).reshape(-1, BLOCK)
        gaps = np.diff(np.sort(blocks, axis=1), axis=1)
        same = gaps < 1e-3 * np.abs(blocks).max(1, keepdims=True)  # one level, rounded to 16 bits
        gaps[same] = np.inf
        step = gaps.min(1, keepdims=True)
        step[~np.isfinite(step)] = 0
        noise = (dice.random(blocks.shape, np.float32) - np.float32(0.5)) * step
        weights[name] = (values.float() + torch.from_numpy(noise).reshape(values.shape)).to(torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def tensors_on_a_grid(folder: Path) -> tuple[int, int]:
    """Matrices of the layers that have rows on a grid, of eight pairs of rows each, and all of them."""
    from lorafold.export.survival.grid import find_levels
    from lorafold.weights import Checkpoint

    source = Checkpoint.open(folder)
    names = [name for name, info in source.tensors.items() if len(info.shape) == 2 and "embed" not in name]

    def lies(name: str) -> bool:
        rows = source.tensors[name].rows
        starts = range(0, rows - 1, max(rows // 8, 1))
        return any(find_levels(source.rows(name, start, start + 2)) is not None for start in starts)

    return sum(map(lies, names)), len(names)


def perplexity(folder: Path) -> float:
    """Of the answers of the general chats that calibration brings, in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    from lorafold.chat.tokenizer import ChatTokenizer
    from lorafold.export.imatrix.calibration import GENERAL_TEXTS
    from lorafold.records.chats import read_chats

    tokenizer = ChatTokenizer.from_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    for chat in read_chats(GENERAL_TEXTS):
        ids = torch.tensor([tokenizer.encode_chat(chat.messages).ids])
        start = len(tokenizer.encode_prompt(chat.messages[:-1]))
        with torch.inference_mode():
            likely = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        losses.append(-likely.gather(1, ids[0, start:, None])[:, 0])
    return float(torch.cat(losses).mean().exp())


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


def by_recipe(adapter: Path, work: Path, records: Records, where: str, options: argparse.Namespace) -> None:
    """Each recipe as it is, protected, and fitted: what is in the written files."""
    print("| | bytes | more | other types | survives | worst tensor | off | mean KL | of plain |")
    print("|---|---|---|---|---|---|---|---|---|")
    for quant in options.quant:
        plain = measured(adapter, work / quant, records, options, quant=(quant,))
        rows = [("", plain)]
        ways: dict[str, dict[str, Any]] = {f"--keep-delta {options.keep}": {"keep_delta": options.keep}}
        if options.fit:
            ways["--fit, in its size"] = {"fit": str(plain["bytes"])}
        if options.imatrix_data:
            ways["--imatrix-data"] = {"imatrix_data": records.train}
            ways["--fit, --imatrix-data"] = {"imatrix_data": records.train, "fit": str(plain["bytes"])}
        for name, settings in ways.items():
            out = work / f"{quant}-{len(rows)}"
            rows.append((name, measured(adapter, out, records, options, quant=(quant,), **settings)))
        for way, one in rows:
            other = sum(one["types"][tensor] != kind for tensor, kind in plain["types"].items())
            distance = beside(one["kl"], plain["kl"])
            print(
                f"| {quant} {way} | {one['bytes']:,} | {one['bytes'] / plain['bytes'] - 1:+.1%} | {other} | "
                f"{one['share']:.3f} | {one['worst']:.3f} | {one['off']} of {len(one['types'])} | "
                f"{distance} |",
                flush=True,
            )
            if options.results is not None:
                kept = {key: one[key] for key in ("bytes", "share", "worst", "off", "kl")}
                line = {"base": where, "recipe": quant, "way": way, **kept}
                with options.results.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(line) + "\n")


def beside(kl: float | None, plain: float | None) -> str:
    """A mean KL, and its ratio to the plain recipe's; empty cells if there is none."""
    if kl is None:
        return " | "
    return f"{kl:.4f} | {kl / plain:.2f}" if plain else f"{kl:.4f} | "


def measured(
    adapter: Path, out: Path, records: Records, options: argparse.Namespace, **settings: Any
) -> dict[str, Any]:
    """Export, and measure the changed tensors on all rows in the types of the file."""
    from lorafold.artifacts import read_export
    from lorafold.export import ExportConfig, export
    from lorafold.export.inputs import open_inputs
    from lorafold.export.manifest import config_of
    from lorafold.export.outputs.output import plan_output
    from lorafold.export.survival.share import is_kept, together

    config = ExportConfig(
        str(adapter),
        out=out,
        verify=options.kl,
        chats=records.held_out,
        proof_minutes=10.0,
        force=True,
        **settings,
    )
    result = export(config)
    made = config_of(read_export(out), out)  # with the types that were chosen
    survey = plan_output(open_inputs(made), made).survey(10**12)
    assert survey is not None
    survey.sample()
    found = next(iter(survey.found().values()))
    whole = together(found)
    assert whole is not None and whole.exact
    kl = [check.figures["mean KL"] for check in result.proof.checks if "mean KL" in check.figures]
    return {
        "bytes": next(size for name, size in result.files.items() if name.endswith(".gguf") and "Q" in name),
        "share": whole.share,
        "worst": min(one.share for one in found),
        "off": sum(not is_kept(one.share, options.keep) for one in found),
        "types": {one.tensor: one.type for one in found},
        "kl": kl[0] if kl else None,
    }


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A picture of rows: base, recipe, way, mean KL."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["kl"] is not None and "imatrix" not in row["way"]]
    bases = list(dict.fromkeys(row["base"] for row in rows))
    figure, areas = pyplot.subplots(
        1, len(bases), figsize=(3.6 * len(bases), 3.4), sharey=True, squeeze=False
    )
    for area, base in zip(areas[0], bases, strict=True):
        recipes = list(dict.fromkeys(row["recipe"] for row in rows if row["base"] == base))
        for at, recipe in enumerate(recipes):
            found = {
                kind_of(row["way"]): row["kl"]
                for row in rows
                if (row["base"], row["recipe"]) == (base, recipe)
            }
            for number, (way, colour) in enumerate(COLOURS.items()):
                if way in found:
                    place = at + 0.28 * (number - 1)
                    area.bar(place, found[way], 0.26, color=colour, label=WORDS[way] if not at else None)
                    told = f"{found[way] / found['']:.2f}" if way else ""
                    area.text(place, found[way], told, ha="center", va="bottom", fontsize=8)
        area.set_xticks(range(len(recipes)), recipes)
        area.set_title(base, fontsize=9)
        area.spines[["top", "right"]].set_visible(False)
    areas[0][0].set_ylabel("mean KL from base + adapter, nats")
    areas[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def kind_of(way: str) -> str:
    """The option that a way is called after."""
    return way.split(",")[0].split(" ")[0]


if __name__ == "__main__":
    main()
