"""base + adapter → GGUF, merged folder or adapter GGUF; Modelfile; proof: the export stage.

`lorafold.export(ExportConfig(...))` is the entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafold.api.stages import make_stage
from lorafold.export.config import ExportConfig, ModelfileConfig, PushConfig

if TYPE_CHECKING:
    from lorafold.export.hub.stage import PushResult, push
    from lorafold.export.modelfile.plan import ModelfileResult, make_modelfile
    from lorafold.export.stage import ExportResult, export, plan_export, verify

__all__ = [
    "ExportConfig",
    "ExportResult",
    "ModelfileConfig",
    "ModelfileResult",
    "PushConfig",
    "PushResult",
    "export",
    "make_modelfile",
    "plan_export",
    "push",
    "verify",
]

make_stage(
    __name__,
    {
        "ExportResult": "stage",
        "export": "stage",
        "plan_export": "stage",
        "verify": "stage",
        "ModelfileResult": "modelfile.plan",
        "make_modelfile": "modelfile.plan",
        "PushResult": "hub.stage",
        "push": "hub.stage",
    },
    ExportConfig,
)
