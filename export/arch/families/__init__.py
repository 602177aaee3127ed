"""Rows of the table of architectures, one module for each maker of models."""
