"""The bill of materials: all that went in, with its hashes, and the same bytes each time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tiny_chat

from lorafold.export import ExportConfig, export
from lorafold.export.report.sbom import SBOM


def test_what_went_in_stands_there_with_its_hashes(tmp_path: Path) -> None:
    bills = []
    for number in (1, 2):
        out = tmp_path / str(number) / "tuned"
        export(
            ExportConfig(str(tiny_chat.folder()), out=out, quant=("Q8_0",), verify=False, modelfile=False,
                         pre_tokenizer="gpt-2", sbom=True, name="tiny")
        )  # fmt: skip
        bills.append((out / SBOM).read_text())
    bill = json.loads(bills[0])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    base = next(part for part in bill["components"] if part["bom-ref"] == "base")
    weights = next(file for file in base["components"] if file["name"] == "model.safetensors")
    content = (tiny_chat.folder() / "model.safetensors").read_bytes()
    assert weights["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
    made = {
        file["name"]: file["hashes"][0]["content"] for file in bill["metadata"]["component"]["components"]
    }
    (gguf,) = (tmp_path / "1" / "tuned").glob("*.gguf")
    assert made[gguf.name] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    libraries = {part["name"]: part for part in bill["components"] if part["type"] == "library"}
    assert libraries["numpy"]["version"] and libraries["numpy"]["licenses"]
    assert str(tmp_path) not in bills[0] and str(tiny_chat.folder().parent) not in bills[0]
    assert bills[0] == bills[1]
    manifest = json.loads((tmp_path / "1" / "tuned" / "lorafold.json").read_text())
    assert SBOM in manifest["files"]
