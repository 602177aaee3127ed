"""The fast forward pass, and the check that it gives what the plain one gives."""
