"""Files -> checked examples: `load.load_splits`."""
