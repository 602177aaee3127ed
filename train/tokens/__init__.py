"""Examples -> token ids -> batches."""
