"""What an export is held against: tokens, tensors, logits; each answer a `check.Check`."""
