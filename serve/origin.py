"""Where a model's file comes from, as the manifest of its export tells."""

from __future__ import annotations

from pathlib import Path

from lorafold.artifacts import read_manifest
from lorafold.errors import LorafoldError
from lorafold.serve.engines.open import pieces_of
from lorafold.serve.engines.servers.fields import fields, rows, text


def origin_of(source: str, digest: str) -> str:
    """What the manifest of an export says of the GGUF in it, if the file is still the one that was proven."""
    path = Path(pieces_of(source)[0]).expanduser()
    try:
        manifest = read_manifest(path.parent) or {}
    except LorafoldError:  # the answers are worth as much without it
        return ""
    noted = fields(fields(manifest.get("files")).get(path.name))
    if manifest.get("kind") != "export" or noted.get("sha256") != digest.split("+")[0]:
        return ""
    base = fields(manifest.get("base"))
    adapters = [Path(text(row.get("folder"))).name for row in rows(manifest.get("adapters"))]
    verdicts = [text(check.get("verdict")) for check in rows(manifest.get("proof"))]
    passed = sum(verdict == "passed" for verdict in verdicts)
    proof = "proof passed" if passed == len(verdicts) else f"{passed} of {len(verdicts)} checks passed"
    made = " + ".join(filter(None, [text(base.get("id")) or text(base.get("path")), *adapters]))
    return f"exported from {made}; {proof if verdicts else 'not proven'}"
