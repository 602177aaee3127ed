"""Examples as token ids, and token ids as the batches of each step."""
