"""What a base's weights are while an adapter is trained on it: as its folder has them, or packed for the run.

A folder whose weights are packed already (`unsloth/NAME-bnb-4bit`) is trained on as it is: transformers reads
its packing from config.json, and an adapter learns on exactly these weights.
"""

from __future__ import annotations

from lorafold.errors import UsageError
from lorafold.models import Base
from lorafold.packed.formats import FORMATS, method_of
from lorafold.packed.originals import original_of
from lorafold.train.config import TrainConfig
from lorafold.train.methods import Method


def packing_of(base: Base) -> str | None:
    """How a base is packed, in words; None if its weights are plain numbers."""
    if (found := method_of(base.config())) is None:
        return None
    _, method, settings = found
    return FORMATS[method].words(settings) if method in FORMATS else method


def check_packed(base: Base, method: Method) -> None:
    """Refuse a method that needs the weights themselves on a base that has them packed.

    Raises:
        UsageError: it trains them, or starts from a part of them.
    """
    needs = "trains the weights" if method.peft is None else "starts from a part of the weights"
    if (method.peft is None or method.name == "pissa") and (packing := packing_of(base)) is not None:
        original = original_of(base.id, base.folder)
        raise UsageError(
            f"it {needs}, and those of {base.id} are packed ({packing})",
            at=f"--method {method.name}",
            fix="choose --method qlora, or give its 16-bit original" + (f", {original}" if original else ""),
        )


def packs(config: TrainConfig, method: Method) -> bool:
    """Whether weights that are plain are packed by bitsandbytes for the run."""
    return config.load_in_4bit or config.load_in_8bit or method.quantized


def in_4bit(config: TrainConfig) -> bool:
    """Whether they are packed in 4 bits, if they are: QLoRA does it unless 8 are asked for."""
    return config.load_in_4bit or not config.load_in_8bit


def trained_weights(base: Base, config: TrainConfig, method: Method) -> str:
    """What the adapter saw, for the manifest: export folds by the base's name, and this says what it was."""
    if (packing := packing_of(base)) is not None:
        return f"{packing}, as the folder has them"
    stored = stored_type(base)
    if not packs(config, method):
        return stored
    kind = config.bnb_4bit_quant_type.upper() if in_4bit(config) else "int8"
    return f"{stored}, packed for the training (bitsandbytes, {kind})"


def packing_note(base: Base, config: TrainConfig, method: Method) -> str | None:
    """What the user should know of it; None if nothing is packed."""
    if (packing := packing_of(base)) is not None:
        return (
            f"the base's weights are packed ({packing}) and trained on as they are; export folds into them, "
            "unpacked, or into their 16-bit original with --fold-into original"
        )
    if packs(config, method):
        return "the base is quantized for training; export folds into the unquantized base"
    return None


def stored_type(base: Base) -> str:
    """The type of plain weights by config.json; float32 if it does not say."""
    config = base.config()
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
