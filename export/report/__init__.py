"""An export as a page for a reader who never heard of KL: what was made, what survives, what was proven."""
