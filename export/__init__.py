"""base + adapter → GGUF, merged folder or adapter GGUF; Modelfile; proof: the export stage."""
