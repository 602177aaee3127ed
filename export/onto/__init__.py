"""A fold onto a GGUF that exists: where its rows come from is measured, not looked up in a table of names."""
