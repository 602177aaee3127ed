"""Which of two bases an adapter is better folded into, measured: a packed one, or its 16-bit original."""
