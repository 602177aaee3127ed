"""The base in transformers with the adapter active beside it, as a whole.

An importance matrix is collected on it, and the answers are held against it if they cannot be computed layer
by layer. It needs the [train] extra and memory for the whole model.
transformers and PEFT may refuse what was folded well: then there is no reference, and the proof says why.
That is never the end of a finished export.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.adapters.patterns import try_patterns
from lorafold.errors import InputError
from lorafold.export.fold.folded import vocabulary_size
from lorafold.export.fold.for_peft import differs_for_peft, empty_products, write_for_peft
from lorafold.export.inputs import Inputs
from lorafold.libraries.causal_lm import REFUSALS, load_causal_lm, told
from lorafold.machine import memory_available
from lorafold.packed.layouts.bnb import FourBit
from lorafold.packed.source import PackedCheckpoint

if TYPE_CHECKING:
    import torch

OWN_CODE = "the base brings its own Python code, which an export does not run"
UNPACKED_BY = {"bitsandbytes": "bitsandbytes"}
"""Which packed bases transformers unpacks on any machine, and the package that it needs for it."""


def missing_packages(*names: str) -> str | None:
    """What is to be installed, or None."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)} (pip install 'lorafold[train]')" if missing else None


def why_no_reference(inputs: Inputs) -> str | None:
    """Why the reference cannot be run here, or None."""
    if missing := missing_packages("torch", "transformers", "peft"):
        return missing
    base = inputs.source.base
    if isinstance(base, PackedCheckpoint):
        needs = UNPACKED_BY.get(base.method)
        if needs is None:
            return f"transformers does not unpack this base here ({base.words})"
        if importlib.util.find_spec(needs) is None:
            return f"the base is packed ({base.words}): needs {needs} (pip install {needs})"
        if any(isinstance(tensor, FourBit) and not tensor.aligned for tensor in base.packed.values()):
            return "bitsandbytes unpacks rows wrongly on a CPU if they begin inside a block, as here"
    if inputs.config.get("auto_map"):
        return OWN_CODE
    if any(weight != 1.0 for _, weight in inputs.adapters) or len(inputs.adapters) > 1:
        return "several weighted adapters have no reference in one model"
    needed, free = 4 * inputs.parameters, memory_available()
    if free and needed > 0.7 * free:
        return f"the reference needs {needed / 1e9:.0f} GB in float32 and {free / 1e9:.0f} GB are free"
    return None


def own_reading(inputs: Inputs) -> str | None:
    """Why the installed PEFT would read another adapter from its folder; None if it reads this one.

    Then the reference is made of what this program reads in it, which PEFT itself does not confirm.
    """
    return differs_for_peft(inputs.source.plans[0]) if inputs.adapters else None


def load_base(inputs: Inputs) -> torch.nn.Module:
    """The base alone, in float32 and in evaluation mode.

    If the adapters resize the vocabulary it is resized too: tokens that it does not know get the mean of
    those that it knows, as transformers begins them.

    Raises:
        InputError: transformers cannot load it.
    """
    with _refusals(inputs.base.folder):
        import torch

        if isinstance(inputs.source.base, PackedCheckpoint):
            model: Any = _unpacked(inputs.base.folder)
        else:
            model = load_causal_lm(inputs.base.folder, dtype=torch.float32)
        known, rows = vocabulary_size(inputs.base.config()), vocabulary_size(inputs.config)
        if known is not None and rows is not None and rows != known:
            # Without transformers' own means: those are drawn at random, and take the square of the width.
            model.resize_token_embeddings(rows, mean_resizing=False)
            for side in (model.get_input_embeddings(), model.get_output_embeddings()):
                if side is not None and rows > known:
                    with torch.no_grad():
                        side.weight[known:] = side.weight[:known].mean(0)
        evaluated: torch.nn.Module = model.eval()
        return evaluated


def _unpacked(folder: Path) -> Any:
    """A packed base as bitsandbytes itself unpacks it, in float32."""
    import torch

    model = load_causal_lm(folder, dtype=torch.float32, device_map="cpu")
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.dtype = torch.float32  # else each weight would be rounded to the type of its training
    return model.dequantize().float()


_IS_B = re.compile(r"\.lora_(?:embedding_)?B\.")


def with_adapter(model: torch.nn.Module, inputs: Inputs) -> torch.nn.Module:
    """The base with the adapter beside it, not merged; the base itself if there is none.

    Raises:
        InputError: PEFT cannot load the adapter, or not all of it.
    """
    if not inputs.adapters:
        return model
    folder, plan = inputs.adapters[0][0].folder, inputs.source.plans[0]
    with _refusals(folder), tempfile.TemporaryDirectory() as rewritten:
        from peft import PeftModel

        config = inputs.adapters[0][0].config
        try_patterns(config.patterns, (name for name, _ in model.named_modules()), config.path)
        if differs_for_peft(plan):
            write_for_peft(plan, Path(rewritten))
            tuned: torch.nn.Module = PeftModel.from_pretrained(model, rewritten)
        else:
            tuned = PeftModel.from_pretrained(model, folder)
        # What PEFT does not find in the file it leaves as it was made: with a B of zeros.
        products = [value for name, value in tuned.named_parameters() if _IS_B.search(name)]
        lost = sum(not bool(value.any()) for value in products) - empty_products(plan)
        if lost > 0:
            raise ValueError(f"PEFT leaves {lost} of the adapter's products out, by a wrong renaming")
        return tuned.eval()


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """Turn what transformers and PEFT raise while they load into an `InputError`."""
    try:
        yield
    except (*REFUSALS, InputError) as error:
        cause = error.__cause__ or error
        said = cause.problem if isinstance(cause, InputError) else f"{type(cause).__name__}: {told(cause)}"
        raise InputError(
            f"transformers and PEFT cannot load it as a reference ({said})",
            at=folder,
            fix="collect an importance matrix elsewhere (llama-imatrix), and give it with --imatrix",
        ) from error
