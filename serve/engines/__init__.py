"""One module per way to run a model; `open.open_engines` chooses."""
