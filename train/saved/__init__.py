"""What a run leaves on disk: checkpoints, curve, card and result, and how the next run goes on from them."""
