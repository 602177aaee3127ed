"""A base with its adapters folded in, row block by row block: `folded.Folded`."""
