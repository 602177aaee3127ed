"""The ways to run a model: `llama`, `transformers` and `servers/`; `open.open_engines` chooses."""
