"""Where a user's Ollama listens: OLLAMA_HOST as Ollama reads it."""

from __future__ import annotations

import os

DEFAULT_HOST = "http://127.0.0.1:11434"


def ollama_url(given: str = "") -> str:
    """The address with scheme and port.

    Args:
        given: an address in which both may be missing; empty: OLLAMA_HOST, else this machine.
    """
    given = (given or os.environ.get("OLLAMA_HOST", "")).strip().rstrip("/")
    if not given:
        return DEFAULT_HOST
    if "://" not in given:
        given = f"http://{given}"
    host = given.partition("://")[2]
    return given if ":" in host or "/" in host else f"{given}:11434"
