"""What other libraries print and download, kept out of our output; the user's own settings win."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings

_SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # With the package `kernels` installed, transformers would fetch code from the hub while a model runs.
    "USE_HUB_KERNELS": "NO",
}


def quiet_libraries() -> None:
    """Switch off other libraries' bars, telemetry and warnings, for a process that is ours."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # What other libraries will change in their next version is nothing that our user can act on.
    warnings.filterwarnings("ignore", category=FutureWarning)


def quiet_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, without a word and without the network.

    peft imports it whether or not anything is in 4 or 8 bit, so this is called before peft is. On processors
    with bfloat16 instructions the import looks for the package `kernels`: if that is missing, an error line
    tells the user to install it, and if it is there, it downloads code from the hub and runs it. So the
    package counts as missing while the import lasts; bitsandbytes' own code then does what it would do.
    """
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = logger.disabled
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "kernels"}
    for name in hidden:
        del sys.modules[name]
    # None makes an import fail (Python reference, "The module cache").
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logger.disabled = True
    try:
        import bitsandbytes  # noqa: F401
    finally:
        logger.disabled = before
        del sys.modules["kernels"]
        sys.modules.update(hidden)
