"""Rows of the table of architectures, sorted by maker.

What several makers share by kind: `llama_like`, `layer_norm`, `state_space`.
"""
