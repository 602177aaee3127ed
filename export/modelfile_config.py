"""What `lorafold modelfile` is asked to do."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class ModelfileConfig:
    """Write the proven Ollama Modelfile of any Hugging Face folder or GGUF."""

    path: Path
    """A Hugging Face folder or a GGUF file."""

    _: KW_ONLY

    out: Path | None = None
    """The file to write; standard: `Modelfile` beside a GGUF or in the folder."""

    from_name: str | None = None
    """What FROM shall name; standard: the GGUF, or `.` for a folder."""

    adapter: str | None = None
    """An adapter GGUF for ADAPTER."""

    chat_template: str | None = None
    """A Jinja file, or the name of a template (chatml, llama-2, …), instead of the model's own."""

    system: str | None = None
    """A system text for chats that bring none."""

    thinking: Literal["on", "off"] | None = None
    """Fix the template's thinking switch; standard: Ollama's own switch decides."""

    num_ctx: int | None = None
    """Context length in tokens; standard: what the model was made for."""

    conversations: int = 300
    """Random conversations that Jinja and the TEMPLATE are compared on."""

    allow_embedded_jinja: bool = False
    """If the template cannot be expressed, write a Modelfile that relies on the GGUF's Jinja template."""

    force: bool = False
    """Replace an existing file."""
