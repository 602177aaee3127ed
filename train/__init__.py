"""examples → adapter: the training stage."""
